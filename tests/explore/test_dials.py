"""Dials: every parameter has one, and no position of any of them makes a strategy that refuses itself."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from minidet.assign import ATSS, OTA, POTO, BestAnchor, CentreSampling, MaxIoU, OneToOne, SimOTA, UniformMatching
from minidet.errors import MinidetError
from minidet.explore.dials import DIALS, dials_of, positions_of, turn

RULES = [
    ATSS(),
    CentreSampling(),
    MaxIoU(),
    OneToOne(),
    OTA(),
    SimOTA(),
    SimOTA.published(),
    UniformMatching(),
    BestAnchor(),
    POTO(),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_parameter_of_every_strategy_has_one_dial(rule):
    assert [dial.name for dial in DIALS[type(rule)]] == [field.name for field in dataclasses.fields(rule)]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_dials_begin_where_the_strategy_stands(rule):
    dials = dials_of(rule)
    assert turn(rule, dials, positions_of(rule, dials)) == rule


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_position_gives_the_strategy_with_that_value(rule):
    dials = dials_of(rule)
    start = positions_of(rule, dials)
    for i, dial in enumerate(dials):
        assert len(dial.texts) == len(dial.values) == len(set(dial.texts))
        for position in range(len(dial.values)):
            turned = turn(rule, dials, [*start[:i], position, *start[i + 1 :]], dial.name)
            assert getattr(turned, dial.name) == dial.values[position]


def test_a_value_of_ones_own_becomes_a_position_in_its_place():
    (candidates,) = dials_of(ATSS(candidates=50))
    assert candidates.values == (*range(1, 31), 50)
    radius = dials_of(CentreSampling(radius=1.3))[0]
    assert radius.values[:4] == (None, 0.5, 1.0, 1.3)


def test_the_threshold_that_is_turned_takes_the_other_one_along():
    dials = dials_of(MaxIoU())
    at = {value: position for position, value in enumerate(dials[0].values)}
    raised = turn(MaxIoU(), dials, [at[0.5], at[0.8], 1], "negative_iou")
    assert (raised.positive_iou, raised.negative_iou) == (0.8, 0.8)
    lowered = turn(MaxIoU(), dials, [at[0.2], at[0.4], 1], "positive_iou")
    assert (lowered.positive_iou, lowered.negative_iou) == (0.2, 0.2)


@pytest.mark.parametrize("moved", ["class_weight", "l1_weight", "giou_weight"])
def test_the_last_weight_cannot_be_turned_to_nothing(moved):
    turned = turn(OneToOne(), dials_of(OneToOne()), [0, 0, 0], moved)
    weights = dataclasses.asdict(turned)
    assert weights.pop(moved) == 0.5
    assert set(weights.values()) == {0.0}


def test_all_positions_of_contradicting_dials_together_are_accepted():
    dials = dials_of(MaxIoU())
    for a, b, moved in itertools.product(range(20), range(20), ("positive_iou", "negative_iou")):
        turn(MaxIoU(), dials, [a, b, 0], moved)


def test_positions_that_are_not_there_are_refused():
    for positions in ([30], [-1], [], [1, 2]):
        with pytest.raises(MinidetError, match="no positions"):
            turn(ATSS(), dials_of(ATSS()), positions)


def test_a_strategy_from_elsewhere_is_named():
    with pytest.raises(MinidetError, match="no dials for object"):
        dials_of(object())
