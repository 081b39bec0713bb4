"""What an explorer sends to its view and leaves in a notebook. What the view does with it: tests/browser."""

from __future__ import annotations

import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from minidet.assign import SimOTA, UniformMatching
from minidet.errors import MinidetError
from minidet.explore import AssignmentExplorer, explore_assignment
from minidet.explore.base import pack

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "explore_assignment.ipynb"


def ask(explorer: AssignmentExplorer, boxes, labels, seq: int = 1, **changes) -> dict:
    """Hand over a state as the view does; the answer's status."""
    panel = {
        "model": 0,
        "rule": 0,
        "dials": explorer.scene["rules"][0]["start"],
        "step": 0,
        "hidden": [],
        "moved": None,
    }
    state = {"image": 0, "selected": -1, "hover": None, "panels": [panel | changes.pop("panel", {})]} | changes
    buffers = []
    if boxes is not None:
        buffers = [memoryview(np.array(boxes, np.float32).tobytes()), memoryview(np.array(labels, np.int32).tobytes())]
    explorer._on_message(explorer, {"client": "test", "seq": seq, "state": state}, buffers)
    return explorer.status


def test_arrays_are_packed_at_addresses_where_the_browser_can_read_them():
    arrays = {"a": np.arange(3, dtype=np.uint8), "b": np.arange(2, dtype=np.float32), "c": np.zeros(0, np.uint16)}
    layout, packed = pack(arrays)
    assert layout == {"a": ["uint8", 0, 3], "b": ["float32", 4, 2], "c": ["uint16", 12, 0]}
    for name, (kind, offset, count) in layout.items():
        assert np.array_equal(np.frombuffer(packed, kind, count, offset), arrays[name])


def test_the_notebook_keeps_a_picture_and_a_fixed_text_beside_the_view(nano, scene_of):
    explorer = explore_assignment(nano, scene_of(4))
    data, metadata = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    picture = Image.open(io.BytesIO(data["image/png"]))
    assert picture.size == (metadata["image/png"]["width"], metadata["image/png"]["height"])
    assert metadata["image/png"]["alt"] == data["text/plain"]
    assert data["text/plain"].startswith("Assignment explorer: a picture with 4 objects. yolox-nano, SimOTA: ")

    again, _ = explore_assignment(nano, scene_of(4))._repr_mimebundle_()
    assert (again["text/plain"], again["image/png"]) == (data["text/plain"], data["image/png"])
    ask(explorer, [[0, 0, 20, 20]], [1], panel={"step": 1})
    later, _ = explorer._repr_mimebundle_()
    assert later["image/png"] != data["image/png"]
    assert "a picture with 1 object. yolox-nano, SimOTA, step 2, Costs: " in later["text/plain"]


def test_the_answer_holds_what_the_assigner_says(nano, scene_of):
    image, target = scene_of(5)
    explorer = explore_assignment(nano, (image, target), rules=[SimOTA()])
    moved = target["boxes"].numpy() + 1.0
    status = ask(explorer, moved, target["labels"].numpy(), seq=7, panel={"step": 4})
    assert status == {"client": "test", "seq": 7, "error": None}
    boxes = explorer.target["boxes"]
    expected = SimOTA()(nano.dense([image]), nano.ground_truth([image], [{**target, "boxes": boxes}])).matched_gt[0]

    layout = explorer.answer["layout"]
    read = {name: np.frombuffer(explorer.numbers, kind, n, at) for name, (kind, at, n) in layout.items()}
    owners = dict(zip(read["0.slot"], read["0.owner"], strict=True))
    assert owners == {slot: gt for slot, gt in enumerate(expected.tolist()) if gt >= 0}
    assert read["0.counts"].reshape(5, 3).sum(axis=1).tolist() == [int((expected == row).sum()) for row in range(5)]
    assert np.array_equal(read["boxes"].reshape(-1, 4), boxes)
    assert explorer.answer["panels"][0]["positives"] == int((expected >= 0).sum())


def test_a_state_that_makes_no_sense_is_answered_in_words_and_changes_nothing(nano, scene_of):
    explorer = explore_assignment(nano, scene_of(2))
    answer, numbers = explorer.answer, explorer.numbers
    assert "at most 300 objects" in ask(explorer, [[0, 0, 9, 9]] * 301, [0] * 301)["error"]["text"]
    assert "no picture 5" in ask(explorer, None, None, image=5)["error"]["text"]
    error = ask(explorer, [[0, 0, 9, 9]], [0], panels=[{}])["error"]
    assert error["text"].startswith("KeyError") and "Traceback" in error["details"]
    assert (explorer.answer, explorer.numbers) == (answer, numbers)
    assert ask(explorer, [[0, 0, 9, 9]], [0])["error"] is None


def test_a_strategy_that_raises_is_shown_and_not_swallowed(nano, scene_of, monkeypatch):
    explorer = explore_assignment(nano, scene_of(2), rules=[SimOTA()])

    def broken(self, *args, **kwargs):
        raise ZeroDivisionError("a fault in the strategy")

    monkeypatch.setattr(SimOTA, "__call__", broken)
    error = ask(explorer, [[0, 0, 9, 9]], [0])["error"]
    assert error["text"] == "ZeroDivisionError: a fault in the strategy"
    assert "broken" in error["details"]


def test_two_explorers_of_one_model_know_nothing_of_each_other(nano, scene_of):
    first, second = (explore_assignment(nano, scene_of(3)) for _ in range(2))
    before = (second.answer, second.numbers, second.target["boxes"].tolist())
    ask(first, [], [])
    assert len(first.target["labels"]) == 0
    assert (second.answer, second.numbers, second.target["boxes"].tolist()) == before


def test_pictures_keep_the_objects_that_a_person_left_on_them(nano, scene_of):
    explorer = explore_assignment(nano, [scene_of(3), scene_of(2, seed=1)])
    ask(explorer, [[5, 5, 25, 25]], [2])
    ask(explorer, None, None, image=1)
    assert np.array_equal(explorer.target["boxes"], scene_of(2, seed=1)[1]["boxes"])
    ask(explorer, None, None, image=0)
    assert explorer.target["boxes"].tolist() == [[5, 5, 25, 25]]


def test_places_and_picture_are_sent_once_and_not_with_every_move(nano, yolof, scene_of):
    explorer = explore_assignment([("a", nano), ("b", yolof)], [scene_of(3), scene_of(2)])
    sent = []
    explorer.observe(lambda change: sent.append(change.name), ["ground", "places", "picture", "scene"])
    for x in range(5):
        ask(explorer, [[x, 0, 20 + x, 20]], [0], panel={"model": 1})
    assert sent == []
    ask(explorer, [[0, 0, 20, 20]], [0], panel={"model": 0})
    assert set(sent) == {"ground", "places"}
    assert set(explorer.ground["strides"]) == {"0", "1"}
    assert len(explorer.numbers) < 3000  # and a move is small


def test_side_by_side_begins_with_a_panel_for_each_model_or_strategy(nano, yolof, scene_of):
    models = [("nano", nano), ("yolof", yolof)]
    assert [p["model"] for p in explore_assignment(models, scene_of(2), side_by_side=True).answer["panels"]] == [0, 1]
    rules = [SimOTA(), UniformMatching()]
    explorer = explore_assignment(nano, scene_of(2), rules, side_by_side=True)
    assert explorer.rules == rules
    assert len(explorer.assignments) == 2
    with pytest.raises(MinidetError):
        explore_assignment(nano, [])


def test_a_page_without_a_kernel_shows_the_pictures():
    """Made by nbconvert, as for a web site or for printing."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [out for cell in book.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    page, _ = HTMLExporter().from_notebook_node(book)
    pictures, views = len(re.findall(r"<img[^>]*data:image/png", page)), page.count("jupyter.widget-view")
    assert (pictures, views) == (len(outputs), 0)
    for output in outputs:
        assert output["metadata"]["image/png"]["alt"] == output["data"]["text/plain"]
        assert output["data"]["text/plain"].startswith("Assignment explorer: ")
    assert outputs
