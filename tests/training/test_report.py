"""Losses that are read late, and what is told about them."""

from __future__ import annotations

import math

import pytest
import torch

from minidet.errors import RunError
from minidet.training.report import LossLog, NotFinite, TensorBoard, epoch_line


def step(log: LossLog, box: float, positives: int = 3, where: str = "epoch 1, iteration 1") -> None:
    terms = torch.tensor([box, 1.0, positives, 2])  # two objects
    log.add(terms, terms, ["loss_box", "loss_class"], where)


def test_means_and_counts_cover_every_step():
    log = LossLog()
    for box, positives in ((1.0, 4), (2.0, 6)):
        step(log, box, positives)
    assert log.means() == {"loss_box": 1.5, "loss_class": 1.0}
    assert (log.steps, log.positives, log.objects) == (2, 10, 4)
    assert log.latest == {"loss_box": 2.0, "loss_class": 1.0}


def test_values_are_fetched_many_steps_at_a_time():
    log = LossLog(read_every=3)
    step(log, 1.0)
    step(log, 2.0)
    assert log.steps == 0
    step(log, 3.0)
    assert log.steps == 3
    step(log, 4.0)
    log.read()
    assert log.means()["loss_box"] == 2.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_named_with_its_own_step_however_late_it_is_found(value):
    log = LossLog(read_every=3)
    step(log, 1.0, where="epoch 1, iteration 1 (image ids [7])")
    step(log, value, where="epoch 1, iteration 2 (image ids [8])")
    with pytest.raises(RunError, match=r"loss_box became -?(nan|inf) in epoch 1, iteration 2 \(image ids \[8\]\)"):
        step(log, 1.0, where="epoch 1, iteration 3 (image ids [9])")


def test_a_log_goes_on_from_what_was_saved():
    log, other = LossLog(), LossLog()
    step(log, 1.25)
    other.load_state_dict(log.state_dict())
    for each in (log, other):
        step(each, 2.5)
    assert other.means() == log.means() == {"loss_box": 1.875, "loss_class": 1.0}
    assert log.state_dict() == other.state_dict()


def test_of_several_ranks_each_knows_whether_the_bad_value_is_its_own():
    bad, good = torch.tensor([math.nan, 3.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])
    for own, ours in ((bad, True), (good, False)):
        with pytest.raises(NotFinite) as caught:
            LossLog().add(bad, own, ["loss"], "epoch 1")
        assert caught.value.ours is ours


def test_tensorboard_writes_what_it_is_given_and_nothing_when_it_is_off(tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path / "on", True, 0, print)
    board.add("epoch", {"ap": 0.5, "missing": None}, 7)
    board.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "on")).Reload()
    assert events.Tags()["scalars"] == ["epoch/ap"]
    assert [(event.step, event.value) for event in events.Scalars("epoch/ap")] == [(7, 0.5)]
    off = TensorBoard(tmp_path / "off", False, 0, print)
    off.add("epoch", {"ap": 0.5}, 7)
    off.close()
    assert not (tmp_path / "off").exists()


def test_an_epoch_is_told_in_one_line():
    row = {
        "epoch": 3,
        "losses": {"loss_box": 1.23456},
        "ap": 0.5,
        "ap50": 0.75,
        "lr": 0.01,
        "seconds": 12.3,
        "skipped_pictures": 0,
    }
    assert epoch_line(row, 10) == "epoch   3/10  box 1.235  AP 0.500  AP50 0.750  lr 0.01  12 s"
    assert epoch_line(row | {"skipped_pictures": 2}, 10).endswith("12 s  2 pictures skipped so far")
    assert "AP" not in epoch_line(row | {"ap": None, "ap50": None}, 10)
