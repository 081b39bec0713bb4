"""What all explorers that are a figure share: values, controls, the picture in the mime bundle, errors."""

from __future__ import annotations

import base64

import pytest

import minidet
from minidet.draw import figure_png
from minidet.errors import MinidetError
from minidet.explore import explore_detections
from minidet.explore.figure_explorer import Control
from tests.explore.pictures import NANO, pixels_of, scenes


@pytest.fixture(scope="module")
def model():
    return minidet.load_model(NANO)


def ask(explorer, values, **look):
    """What a view does: it sends its state, and reads the status that comes back."""
    state = {"values": {**explorer.values, **values}, "dark": False, "scale": 1, **look}
    explorer._on_message(explorer, {"client": "view", "seq": 7, "state": state}, [])
    assert (explorer.status["client"], explorer.status["seq"]) == ("view", 7)
    return explorer.status["error"]


def test_a_stored_notebook_gets_the_picture_and_its_text(model):
    explorer = explore_detections(model, scenes(1))
    data, metadata = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    png = data["image/png"] if isinstance(data["image/png"], bytes) else base64.b64decode(data["image/png"])
    assert png == figure_png(explorer.figure())
    assert "7 found" in data["text/plain"] and metadata["image/png"]["alt"] == data["text/plain"]


def test_a_view_gets_a_picture_for_its_theme_and_screen(model):
    explorer = explore_detections(model, scenes(1))
    small = pixels_of(explorer.picture)
    assert ask(explorer, {}, scale=1.25) is None
    large = pixels_of(explorer.picture)
    assert large.shape[1] == pytest.approx(1.25 * small.shape[1], abs=1)
    assert explorer.answer["size"] == pytest.approx([small.shape[1], small.shape[0]], abs=1)
    assert large[2, 2, 3] == 0  # the page's own ground shows through

    def brightness_of_text(picture):
        head = picture[4:30]
        return head[..., :3][head[..., 3] > 200].mean()

    assert brightness_of_text(large) < 80
    ask(explorer, {}, dark=True)
    assert brightness_of_text(pixels_of(explorer.picture)) > 180
    ask(explorer, {}, scale=1000)  # no screen is so sharp, and no memory so large
    assert pixels_of(explorer.picture).shape[1] == pytest.approx(3 * small.shape[1], abs=2)


@pytest.mark.parametrize(
    "values", [{"score": 3}, {"score": "0.5"}, {"score": True}, {"picture": 9}, {"class_aware": 1}, {"label": None}]
)
def test_a_value_that_makes_no_sense_is_told_and_everything_stays(model, values):
    explorer = explore_detections(model, scenes(1))
    before = explorer.values, bytes(explorer.picture), explorer.answer
    error = ask(explorer, values)
    assert next(iter(values)) in error["text"] and error["details"] == ""
    assert (explorer.values, bytes(explorer.picture), explorer.answer) == before
    assert ask(explorer, {"score": 0.5}) is None and explorer.values["score"] == 0.5


def test_a_fault_of_the_program_is_shown_with_its_place(model, monkeypatch):
    explorer = explore_detections(model, scenes(1))
    monkeypatch.setattr(explorer.lab, "view", lambda *_: 1 / 0)
    error = ask(explorer, {"score": 0.5})
    assert error["text"].startswith("ZeroDivisionError") and "1 / 0" in error["details"]
    assert explorer.values["score"] == 0.3


def test_two_explorers_of_one_model_do_not_disturb_each_other(model):
    one, other = explore_detections(model, scenes(1)), explore_detections(model, scenes(1))
    one.change(score=0.9)
    assert other.values["score"] == 0.3
    assert ask(other, {"score": 0.3}) is None
    assert other.answer["alt"] != one.answer["alt"]


def test_what_a_control_can_have():
    steps = Control("epoch", "Epochs", "steps", choices=((0, "0"), (4, "4")))
    slider = Control("k", "k", "slider", low=1, high=8, step=1)
    assert steps.check(4) == 4 and slider.check(3.0) == 3 and isinstance(slider.check(3.0), int)
    for control, value in ((steps, 2), (slider, 9), (slider, None), (slider, float("nan")), (steps, None)):
        with pytest.raises(MinidetError, match=control.name):
            control.check(value)
