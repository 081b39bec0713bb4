"""The assignment explorer in a real JupyterLab: what hands and keys do shows what the assigner says."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

SETUP = f"""
import json, os
import numpy as np, torch, minidet
from minidet.assign import SimOTA, UniformMatching
from minidet.data.shapes import draw_scene
from minidet.explore import explore_assignment

model = minidet.load_model({str(ROOT / "chapters" / "weights" / "yolox-nano-shapes.safetensors")!r})
scenes = [draw_scene(np.random.default_rng([2024, n])) for n in (3, 5)]


def tell(explorer, name):
    \"\"\"Write down what the assigner says about the explorer's objects, asked anew through the model.\"\"\"
    compute = explorer.compute

    def and_write(state, buffers):
        compute(state, buffers)
        image = torch.from_numpy(scenes[state["image"]].image).permute(2, 0, 1)
        gt = model.ground_truth([image], [explorer.target])
        told = {{"boxes": explorer.target["boxes"].tolist(), "rules": list(map(str, explorer.rules)), "panels": []}}
        for rule in explorer.rules:
            matched = rule(model.dense([image]), gt).matched_gt[0]
            own = [int((matched == row).sum()) for row in range(len(explorer.target["labels"]))]
            told["panels"].append({{"positives": sum(own), "ignored": int((matched == -2).sum()), "objects": own}})
        with open(name + ".new", "w") as file:
            json.dump({{**told, "kernel": os.getpid()}}, file)
        os.replace(name + ".new", name)

    explorer.compute = and_write
"""
FIRST = """
first = explore_assignment(model, scenes, rules=[SimOTA(), UniformMatching()])
tell(first, "first.json")
first
"""
SECOND = """
second = explore_assignment(model, scenes)
tell(second, "second.json")
second
"""


class Hand:
    """One explorer on the page."""

    def __init__(self, book, number: int = 0):
        self.book, self.page = book, book.page
        self.name = ("first.json", "second.json", "first.json")[number]  # the first is shown twice
        self.root = self.page.locator(".minidet").nth(number)
        self.stage = self.root.locator(".minidet-stage").first
        self.stage.locator("canvas").wait_for()
        self.page.wait_for_timeout(300)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the picture (256 x 192) as one of the page."""
        self.stage.scroll_into_view_if_needed()
        box = self.stage.bounding_box()
        return box["x"] + x * box["width"] / 256, box["y"] + y * box["height"] / 192

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=8)
        self.page.mouse.up()

    def control(self, name: str, panel: int | None = None):
        within = self.root if panel is None else self.root.locator(f"[data-panel='{panel}']")
        return within.locator(f"[data-control='{name}']")

    def shown(self, panel: int = 0) -> dict:
        """The figures that the page shows."""
        words = self.root.locator(f"[data-panel='{panel}'] .minidet-status").inner_text()
        rows = self.root.locator(f"[data-panel='{panel}'] .minidet-objects tbody tr td:last-child").all_inner_texts()
        return {
            "positives": int(re.search(r"(\d+) positive", words)[1]),
            "ignored": int(re.search(r"(\d+) ✕ ignored", words)[1]),
            "objects": [0 if row == "none!" else int(row) for row in rows],
        }

    def settled(self) -> dict:
        """Wait until the page shows the kernel's last word, which is the assigner's; return that."""
        told: dict = {}
        for _ in range(100):
            self.page.wait_for_timeout(30)
            if self.root.get_attribute("aria-busy") == "true":
                continue
            if (self.book.lab.folder / self.name).exists():
                told = json.loads((self.book.lab.folder / self.name).read_text())
                if [self.shown(i) for i in range(len(told["panels"]))] == told["panels"]:
                    return told
        raise AssertionError(f"the page shows {self.shown()}, but the assigner says {told}")

    def picture(self) -> bytes:
        """The canvas as the page has it."""
        self.page.wait_for_timeout(60)
        return self.stage.locator("canvas").evaluate("canvas => canvas.toDataURL()")


@pytest.fixture(scope="module")
def opened(lasting_notebook):
    return lasting_notebook("assignment.ipynb", [SETUP, FIRST, SECOND, "first"])


@pytest.fixture
def book(opened):
    """The notebook, run again from its first cell: so every test has explorers of its own."""
    opened.run_all()
    for name in ("first.json", "second.json"):
        (opened.lab.folder / name).unlink(missing_ok=True)
    return opened


def test_objects_are_dragged_dials_turned_and_steps_gone_through_as_the_assigner_says(book):
    hand = Hand(book)
    target = np.array(hand_boxes(book))
    seen = {hand.picture()}

    def changed() -> None:
        """The picture is one that was not seen before."""
        picture = hand.picture()
        assert picture not in seen
        seen.add(picture)

    # Drag an object. The circle in the lower left corner lies alone.
    x1, y1, x2, y2 = target[4]
    hand.drag(((x1 + x2) / 2, (y1 + y2) / 2), ((x1 + x2) / 2 + 40, (y1 + y2) / 2 - 10))
    told = hand.settled()
    assert np.allclose(np.array(told["boxes"][4]) - target[4], [40, -10, 40, -10], atol=1)
    assert np.allclose(np.delete(told["boxes"], 4, axis=0), np.delete(target, 4, axis=0))
    changed()

    # By its corner, beyond the border of the picture: it ends there.
    x1, y1, x2, y2 = told["boxes"][4]
    hand.drag((x2, y2), (200, 400))
    told = hand.settled()
    assert told["boxes"][4][3] == 192
    assert told["boxes"][4][2] == pytest.approx(200, abs=1)
    changed()
    hand.control("undo").click()
    assert np.allclose(hand.settled()["boxes"][4], [x1, y1, x2, y2])

    # To no size at all: a pixel is left.
    hand.drag((x2, y2), (x1, y1))
    told = hand.settled()
    assert np.ptp(np.array(told["boxes"][4]).reshape(2, 2), axis=0).min() >= 1
    hand.control("undo").click()
    hand.settled()

    # A new one on empty ground, and one from the button.
    count = len(target)
    x, y = empty_ground(told["boxes"])
    hand.drag((x, y), (x - 30, y - 20))
    told = hand.settled()
    assert np.allclose(told["boxes"][count], [x - 30, y - 20, x, y], atol=1)
    hand.control("add").click()
    told = hand.settled()
    assert len(told["boxes"]) == count + 2
    changed()

    # Turn a dial.
    radius = hand.control("radius")
    radius.focus()
    for _ in range(6):
        radius.press("ArrowRight")
    told = hand.settled()
    assert "radius=3.0" in told["rules"][0]
    changed()
    hand.control("reset").click()
    assert hand.settled()["rules"] == [
        "SimOTA(radius=1.5, box_candidates=False, outside_penalty=1000000.0, iou_weight=3.0, max_k=10)"
    ]

    # Through the steps of SimOTA, forth one by one and back.
    for step, words in enumerate(["are candidates of some object", "Cost = class cost", "k = ", "k cheapest slots"]):
        hand.control(f"step {step}").click()
        hand.root.locator("[data-part='explanation'] p").get_by_text(words).wait_for()
        if step < 3:  # without conflicts the last step but one looks as the result
            changed()
    hand.control("forth").click()
    hand.root.locator("[data-part='explanation'] p").get_by_text("Filled slots learn").wait_for()
    assert hand.control("step 4").get_attribute("aria-pressed") == "true"
    assert hand.control("forth").is_disabled()

    # Another strategy beside it, each with its own counters.
    hand.control("compare").click()
    hand.control("rule", 1).select_option(label="UniformMatching")
    hand.control("k", 1).focus()
    hand.control("k", 1).press("ArrowRight")
    told = hand.settled()
    assert told["rules"][1].startswith("UniformMatching(k=5")
    assert told["panels"][0] != told["panels"][1]
    hand.control("close", 1).click()
    assert len(hand.settled()["panels"]) == 1

    # A slot under the mouse tells its numbers.
    hand.page.mouse.move(*hand.at(100, 60))
    hand.root.locator("[data-part='slot'] th").get_by_text("class cost").or_(
        hand.root.locator("[data-part='slot'] p").get_by_text("It is no candidate")
    ).first.wait_for()

    # Another picture and back: its objects are still as they were left.
    here = hand.settled()["boxes"]
    hand.control("image").select_option("1")
    there = hand.settled()["boxes"]
    assert there != here
    hand.control("image").select_option("0")
    assert hand.settled()["boxes"] == here

    # Delete one, delete all, and take it back.
    hand.stage.click(position={"x": 3, "y": 3})
    hand.control("delete all").click()
    told = hand.settled()
    assert told["panels"] == [{"positives": 0, "ignored": 0, "objects": []}]
    changed()
    hand.control("undo").click()
    assert hand.settled()["boxes"] == here


def hand_boxes(book) -> list[list[float]]:
    """The objects of the first picture, from the data and not from the explorer."""
    from minidet.data.shapes import draw_scene

    return draw_scene(np.random.default_rng([2024, 3])).boxes.tolist()


def empty_ground(boxes: list[list[float]], margin: float = 10) -> tuple[int, int]:
    """A point of the picture with no object near it and room to its upper left."""
    for y in range(185, 30, -5):
        for x in range(250, 40, -5):
            if not any(a - margin <= x <= c + margin and b - margin <= y <= d + margin for a, b, c, d in boxes):
                return x, y
    raise AssertionError("the picture is full")


def test_everything_can_be_done_with_keys_and_the_notebook_does_not_take_them(book):
    hand, other = Hand(book), Hand(book, 1)
    start = np.array(hand_boxes(book))
    cells = book.page.locator(".jp-Cell").count()
    hand.stage.focus()
    keys = hand.page.keyboard
    keys.press("n")
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    told = hand.settled()
    assert np.allclose(told["boxes"][0] - start[0], [4, 4, 4, 4])
    keys.press("Shift+ArrowLeft")
    keys.press("Alt+ArrowUp")
    assert np.allclose(hand.settled()["boxes"][0] - start[0], [4, 3, 0, 3])
    keys.press("a")
    assert len(hand.settled()["boxes"]) == len(start) + 1
    keys.press("Delete")
    assert len(hand.settled()["boxes"]) == len(start)
    for _ in range(6):
        keys.press("Control+z")
    assert np.allclose(hand.settled()["boxes"], start)
    keys.press("n")
    keys.press("s")
    hand.root.locator("[data-part='slot'] p").get_by_text("learns").wait_for()
    assert book.page.locator(".jp-Cell").count() == cells

    # The second explorer of the same model has seen nothing of all this.
    assert not (book.lab.folder / other.name).exists()
    other.control("delete all").click()
    assert other.settled()["boxes"] == []
    assert hand.shown()["objects"] != []

    # The first one's second view shows what is done in either of them.
    again = Hand(book, 2)
    assert again.shown() == hand.shown()
    again.control("delete all").click()
    assert hand.settled()["boxes"] == []
    assert hand.shown() == again.shown()


def test_a_finger_drags_too(book):
    hand = Hand(book)
    start = np.array(hand_boxes(book))
    x, y = (start[4, :2] + start[4, 2:]) / 2
    send = book.page.context.new_cdp_session(book.page).send
    for kind, dx in [("touchStart", 0), *(("touchMove", 5 * i) for i in range(1, 9))]:
        px, py = hand.at(x + dx, y)
        send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": px, "y": py}]})
    send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert np.allclose(np.array(hand.settled()["boxes"][4]) - start[4], [40, 0, 40, 0], atol=1)


def test_many_drags_leave_the_kernel_as_large_as_it_was(book):
    """A shorter run of what benchmarks/explorer_latency.py measures with 1,000."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the memory of another process in /proc")
    hand = Hand(book)
    (x1, y1, x2, y2) = hand_boxes(book)[4]
    x, y = (x1 + x2) / 2, (y1 + y2) / 2

    def drag(times: int) -> float:
        for i in range(times):
            hand.drag((x, y), (x + 30 - i % 5, y))
            hand.control("undo").click()
        status = Path(f"/proc/{hand.settled()['kernel']}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    before = drag(5)
    assert drag(25) - before < 20  # MiB


def test_a_kernel_that_dies_is_told_and_the_picture_stays(book):
    hand = Hand(book)
    hand.stage.focus()
    book.page.keyboard.press("n")
    told = hand.settled()
    before = hand.picture()
    os.kill(told["kernel"], signal.SIGKILL)
    hand.root.locator(".minidet-notice").get_by_text("gone").wait_for(timeout=30000)
    assert hand.picture() == before
    assert hand.shown() == told["panels"][0]
    book.errors.clear()  # the front end itself reports the lost kernel as errors of its own
