"""The exercise of chapter 00: every verdict, and what it tells whoever went wrong."""

from __future__ import annotations

import math
import re

import pytest
import torch

from minidet.assign import DensePredictions
from minidet.errors import MinidetError
from minidet.exercises import EXERCISES, check, review
from minidet.grid import make_grid
from tests.exercises.told import assert_wrong, stub

EXERCISE = EXERCISES["score_slots"]


def solution(object_logits, class_logits):
    scores, labels = (object_logits.sigmoid().unsqueeze(1) * torch.sigmoid(class_logits)).max(dim=-1)
    return scores, labels


def by_loops(object_logits, class_logits):
    """The same by the definition, number by number."""
    scores, labels = torch.zeros(len(object_logits)), torch.zeros(len(object_logits), dtype=torch.int64)
    for a, (object_logit, row) in enumerate(zip(object_logits.tolist(), class_logits.tolist(), strict=True)):
        probabilities = [1 / (1 + math.exp(-object_logit)) / (1 + math.exp(-class_logit)) for class_logit in row]
        scores[a], labels[a] = max(probabilities), probabilities.index(max(probabilities))
    return scores, labels


def test_the_stub_is_not_attempted():
    verdict = review(EXERCISE, stub)
    assert verdict.status == "not attempted"
    assert verdict.text == (
        "score_slots: not attempted yet. Replace the line `raise NotImplementedError` by your own code, then run this "
        "cell again."
    )


@pytest.mark.parametrize("answer", [solution, by_loops])
def test_a_solution_is_done(answer):
    verdict = review(EXERCISE, answer)
    assert (verdict.status, verdict.text) == ("done", "score_slots: done. Right on all 6 inputs.")


def test_the_right_answer_is_what_the_detector_does():
    grid = make_grid([(4, 5), (2, 3), (1, 2)], (8, 16, 32))
    object_logits, class_logits = torch.randn(1, 28), torch.randn(1, 28, 8)
    boxes = torch.zeros(1, 28, 4)
    best = DensePredictions(grid, boxes, boxes, class_logits, object_logits).class_scores()[0].max(dim=1)

    scores, labels = EXERCISE.answer(object_logits[0], class_logits[0])
    torch.testing.assert_close(scores, best.values)
    assert torch.equal(labels, best.indices)


def sigmoids(object_logits, class_logits):
    return object_logits.sigmoid()[:, None], class_logits.sigmoid()


def softmax(object_logits, class_logits):
    return (object_logits.sigmoid()[:, None] * class_logits.softmax(-1)).max(dim=1)


def without_objectness(object_logits, class_logits):
    return class_logits.sigmoid().max(dim=1)


def without_class(object_logits, class_logits):
    return object_logits.sigmoid(), class_logits.argmax(1)


def added(object_logits, class_logits):
    return torch.sigmoid(object_logits.unsqueeze(1) + class_logits).max(1)


def multiplied_first(object_logits, class_logits):
    return torch.sigmoid(object_logits.unsqueeze(1) * class_logits).max(1)


def logits(object_logits, class_logits):
    return (object_logits[:, None] * class_logits).max(1)


def class_logits_left(object_logits, class_logits):
    return (object_logits.sigmoid()[:, None] * class_logits).max(1)


def object_logits_left(object_logits, class_logits):
    return (object_logits[:, None] * class_logits.sigmoid()).max(1)


def wrong_broadcasting(object_logits, class_logits):
    scores = object_logits.sigmoid() * class_logits.sigmoid()
    return scores.max(dim=1)


def swapped_axes(object_logits, class_logits):
    objects, classes = sigmoids(object_logits, class_logits)
    return (objects * classes).max(dim=0)


def wrong_order(object_logits, class_logits):
    scores, labels = solution(object_logits, class_logits)
    return labels, scores


def every_class(object_logits, class_logits):
    objects, classes = sigmoids(object_logits, class_logits)
    return objects * classes, classes.argmax(dim=1)


def overflowing(object_logits, class_logits):
    objects, classes = object_logits.exp(), class_logits.exp()
    return ((objects / (1 + objects))[:, None] * (classes / (1 + classes))).max(dim=1)


def in_place(object_logits, class_logits):
    return (object_logits.sigmoid_()[:, None] * class_logits.sigmoid_()).max(dim=1)


def float_labels(object_logits, class_logits):
    scores, labels = solution(object_logits, class_logits)
    return scores, labels.float()


def only_scores(object_logits, class_logits):
    return solution(object_logits, class_logits)[0]


def no_return(object_logits, class_logits):
    solution(object_logits, class_logits)


def lists(object_logits, class_logits):
    scores, labels = solution(object_logits, class_logits)
    return scores.tolist(), labels.tolist()


def root(object_logits, class_logits):
    scores, labels = solution(object_logits, class_logits)
    return scores.sqrt(), labels


def one_argument(logits):
    return logits


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (softmax, "scores[0] is 0.3925, not 0.4. 2 of 2 numbers differ.", "This is what softmax gives."),
        (without_objectness, "scores[0] is 0.8, not 0.4.", "The objectness is missing."),
        (without_class, "scores[0] is 0.5, not 0.4.", "this is the objectness alone"),
        (added, "scores[0] is 0.8, not 0.4.", "Turn each of the two into a probability, then multiply"),
        (multiplied_first, "scores[0] is 0.5, not 0.4.", "so two negative logits make a high score"),
        (logits, "scores[0] is 0, not 0.4.", "the sigmoid is missing on both sides"),
        (class_logits_left, "scores[0] is 0.6931, not 0.4.", "The class logits never went through the sigmoid"),
        (object_logits_left, "scores[0] is 0, not 0.4.", "The object logits never went through the sigmoid"),
        (
            wrong_broadcasting,
            "raised RuntimeError, in the line `scores = object_logits.sigmoid() * class_logits.sigmoid()`",
            "Give the objectness a second axis, so that it is [A, 1]",
        ),
        (swapped_axes, "scores has the shape [3], not [2].", "This is the best slot of each class."),
        (wrong_order, "scores is int64, but float32 was expected.", "scores first, then labels"),
        (every_class, "scores has the shape [2, 3], not [2].", "Keep the best one of each slot"),
        (overflowing, "scores[0] is NaN (not a number), not 1.", "exp(100) is too large for float32"),
        (in_place, "other numbers stand in object_logits and class_logits afterwards", "Make a new tensor instead"),
        (float_labels, "labels is float32, but int64 was expected.", "Which line made this type?"),
        (only_scores, "1 value came back, but 2 were expected.", "Return scores, labels, in this order."),
        (no_return, "your function returned None instead of scores, labels.", "Does it end with `return`?"),
        (lists, "scores is of type list, but a tensor was expected.", "Work with torch functions throughout."),
        (root, "scores[0] is 0.6325, not 0.4.", "None of the usual mistakes gives this."),
        (one_argument, "Your function must take 2 arguments, (object_logits, class_logits).", ""),
        (torch.tensor([0.4, 0.63]), "This is of type Tensor; pass the function itself", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_answer_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong(EXERCISE, answer, difference, hint)


def test_the_whole_text_shows_input_result_expectation_difference_and_hint():
    assert review(EXERCISE, without_objectness).text == "\n".join(
        [
            "score_slots: wrong on 5 of 6 inputs. The first of them: two slots and three classes.",
            "",
            "  input      object_logits  float32 [2]  [0  2.197]",
            "             class_logits   float32 [2, 3]",
            "                            [-0.8473  -0.4055  1.386]",
            "                            [0.8473  0.4055  -2.197]",
            "  came back  scores  float32 [2]  [0.8  0.7]",
            "             labels  int64 [2]  [2  0]",
            "  expected   scores  float32 [2]  [0.4  0.63]",
            "             labels  int64 [2]  [2  0]",
            "  wrong      scores[0] is 0.8, not 0.4. 2 of 2 numbers differ.",
            "  hint       The objectness is missing. A slot that sees no object must get a low score, whatever",
            "             its class says.",
        ]
    )


def test_the_text_is_the_same_every_time():
    assert review(EXERCISE, root) == review(EXERCISE, root)
    assert not re.search(r"0x[0-9a-f]{4}", review(EXERCISE, lambda a, b: (object(), object())).text)


def test_an_answer_cannot_spoil_the_input_of_the_next_attempt():
    review(EXERCISE, in_place)
    assert review(EXERCISE, solution).status == "done"


def test_check_prints_the_verdict(capsys):
    check("score_slots", solution)
    check("score_slots", stub)
    assert [line.split(".")[0] for line in capsys.readouterr().out.splitlines()] == [
        "score_slots: done",
        "score_slots: not attempted yet",
    ]


def test_an_unknown_name_gets_the_list_of_names():
    with pytest.raises(MinidetError, match="there is no exercise 'score_slot'. The names are score_slots"):
        check("score_slot", solution)
