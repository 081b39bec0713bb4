"""The explorers of receptive fields, heads and detections, in a real JupyterLab: turn, click, and see what follows."""

from __future__ import annotations

import re

import numpy as np

import minidet
from minidet.data.shapes import draw_scene
from minidet.explore.pictures import read_pictures
from minidet.explore.thresholds import ThresholdLab
from tests.browser.jupyter import ROOT

WEIGHTS = ROOT / "chapters" / "weights"
SETUP = f"""
import numpy as np, torch, minidet
from minidet.data.shapes import draw_scene
torch.manual_seed(0)
model = minidet.load_model({str(WEIGHTS / "yolox-nano-shapes.safetensors")!r})
scenes = [draw_scene(np.random.default_rng(338 + i)) for i in range(3)]
"""
DETECTIONS = "from minidet.explore import explore_detections\nexplore_detections(model, scenes)"
FIELDS = """
from minidet.explore import explore_receptive_fields
yolof = minidet.create_model("yolof-r18-c5", 8, input_hw=(192, 256), width=32, mid_width=16).eval()
explore_receptive_fields({"yolof": yolof, "nano": model}, scenes)
"""
HEADS = f"from minidet.explore import explore_heads\nexplore_heads({str(WEIGHTS / 'stages')!r}, scenes)"


class Page:
    """An explorer in a page, for a person who cannot see it: by its labels and its alternative text."""

    def __init__(self, notebook, name, cell, **options):
        self.book = notebook(name, [SETUP, cell], **options)
        self.book.run_all()
        self.page = self.book.page
        self.page.locator(".minidet-image").wait_for()

    def alt(self, pattern: str) -> re.Match:
        """Wait until the alternative text matches."""
        self.page.wait_for_function(
            "(pattern) => new RegExp(pattern).test(document.querySelector('.minidet-image').alt)", arg=pattern
        )
        return re.search(pattern, self.page.locator(".minidet-image").get_attribute("alt"))

    def slide(self, label: str, value: float) -> None:
        self.page.get_by_label(label).evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })); }",
            value,
        )

    def picture(self) -> str:
        return self.page.locator(".minidet-image").get_attribute("src")


def test_boxes_vanish_as_the_threshold_rises_and_the_counts_are_the_librarys(notebook):
    view = Page(notebook, "detections.ipynb", DETECTIONS)
    lab = ThresholdLab(
        minidet.load_model(WEIGHTS / "yolox-nano-shapes.safetensors"),
        read_pictures(draw_scene(np.random.default_rng(338 + i)) for i in range(3)),
    )

    def counts(of: str) -> tuple[int, ...]:
        return tuple(map(int, view.alt(of + r".* (\d+) found, (\d+) false alarms?, (\d+) missed\.$").groups()))

    assert counts("at least 0.30") == lab.view(0, 0.3, 0.65).counts
    before = view.picture()
    view.slide("Score at least", 0.6)
    assert counts("at least 0.60") == lab.view(0, 0.6, 0.65).counts != lab.view(0, 0.3, 0.65).counts
    assert view.picture() != before
    view.slide("NMS", 0.2)
    assert counts("IoU 0.20") == lab.view(0, 0.6, 0.2).counts
    view.page.get_by_label("boxes suppress only their own class").uncheck()
    assert counts("whatever their classes") == lab.view(0, 0.6, 0.2, True).counts
    view.page.get_by_label("Curve of").select_option("star")
    assert counts("In all pictures, star:") == lab.view(0, 0.6, 0.2, True, 3).counts
    # A slider by keyboard: one step of 0.01.
    view.page.get_by_label("Score at least").focus()
    view.page.keyboard.press("ArrowRight")
    view.alt("at least 0.61")


def test_a_unit_is_chosen_by_hand_and_by_keys_and_blocks_change_what_it_sees(notebook):
    view = Page(notebook, "fields.ipynb", FIELDS)
    view.alt(r"can see 1139 × 1139 px")
    area = view.page.get_by_role("application")
    box = area.bounding_box()
    view.page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.1)
    view.alt(r"row 0, column 7")  # 6 x 8 cells of 32 px
    view.page.keyboard.press("ArrowDown")
    view.page.keyboard.press("ArrowLeft")
    view.alt(r"row 1, column 6")
    first = view.page.get_by_role("group", name="block 4")
    first.get_by_label("in use").uncheck()
    view.alt(r"can see 883 × 883 px")  # 2 * 32 * 4 px less
    view.page.get_by_role("group", name="block 1").get_by_label("dilation").focus()
    view.page.keyboard.press("ArrowRight")
    view.alt(r"can see 947 × 947 px")
    view.page.get_by_label("Map").select_option("c3")
    view.alt(r"c3, row")
    view.page.get_by_label("Model").select_option("nano")
    view.alt(r"yolox-nano: pyramid level p4")
    assert view.page.get_by_role("group").count() == 0


def test_stages_of_training_are_stepped_through_and_a_new_theme_gets_a_new_picture(notebook):
    view = Page(notebook, "heads.ipynb", HEADS, zoom=1.25)
    view.alt(r"Level p3, after 17 epochs: class and box\. ")
    view.slide("Epochs of training", 0)
    view.alt(r"before training")
    view.page.get_by_label("Level").select_option("p5, large objects")
    view.page.get_by_label("Gradients of").select_option("box and objectness")
    view.alt(r"Level p5, before training: box and objectness")
    area = view.page.locator(".minidet-area").nth(3)  # any of the maps can be pointed at
    area.click(position={"x": 3, "y": 3})
    view.alt(r"Row 0, column 0")
    before = view.picture()
    view.book.theme("JupyterLab Dark")
    view.page.wait_for_function("(old) => document.querySelector('.minidet-image').src !== old", arg=before)


def test_a_faulty_value_is_told_in_the_view_and_the_picture_stays(notebook):
    view = Page(notebook, "faulty.ipynb", DETECTIONS)
    before = view.alt("at least 0.30").string
    view.page.get_by_label("Score at least").evaluate(
        "(input) => { input.max = 5; input.value = 3; input.dispatchEvent(new Event('input')); }"
    )
    alert = view.page.get_by_role("alert")
    alert.get_by_text("score is 3; it must be a number from 0.01 to 1").wait_for()
    assert view.page.locator(".minidet-image").get_attribute("alt") == before
    view.slide("Score at least", 0.5)
    view.alt("at least 0.50")
    assert alert.count() == 0  # it is hidden again
    view.book.restart_kernel()
    view.page.get_by_role("alert").get_by_text("is gone").wait_for(timeout=30000)
    assert "at least 0.50" in view.page.locator(".minidet-image").get_attribute("alt")
