"""What thresholds do to detections: which boxes stay, which of them are right, and where that is on the curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Rectangle

from minidet.draw.figure import Drawing, plain_style, shorten, text_width, write
from minidet.draw.labels import place_labels
from minidet.draw.look import LIGHT, MARGIN, Look, plain_axes, titled_figure
from minidet.draw.palette import PALETTE, text_colour
from minidet.draw.picture_axes import DASHED, DOTTED, SOLID, outline, picture_axes, show_picture

HIT, FALSE, MISSED = PALETTE[2], PALETTE[5], "#FFFFFF"
RAW, ENVELOPE, POINT = PALETTE[4], PALETTE[5], PALETTE[1]
RAW_ON_DARK = PALETTE[1]
PICTURE, CHART, GAP, HEAD = 530, 336, 54, 58  # sides in pixels of the figure


@dataclass(frozen=True)
class ThresholdView:
    """Detections of one picture above a score, and the curve of a set of pictures.

    Attributes:
        image: uint8 [H, W, 3].
        boxes: [N, 4] xyxy, detections that stay, the surest first.
        labels, scores: [N].
        found: [N] bool, whether each found an object (IoU at least 0.5); the others are false alarms.
        missed: [M, 4] xyxy, objects that no detection found.
        missed_labels: [M].
        class_names: of the labels.
        recall, precision: [K] the curve, one step a detection of the whole set, the surest first.
        curve_scores: [K] their scores.
        recalls, envelope: [101] COCO's reading of it; its mean is AP50.
        counts: found, false alarms, missed objects in the whole set.
        ap50: of the whole curve; cut_ap50: of the part above the score threshold.
        score_threshold: what scores less is left out.
        of_what: whose curve it is, in words.
        mean_of: empty, or of what COCO's curve is the mean, as " (mean of 8 classes)".
        words: a line above all.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    missed_labels: np.ndarray
    class_names: Sequence[str]
    recall: np.ndarray
    precision: np.ndarray
    curve_scores: np.ndarray
    recalls: np.ndarray
    envelope: np.ndarray
    counts: tuple[int, int, int]
    ap50: float
    cut_ap50: float
    score_threshold: float
    of_what: str
    words: str
    mean_of: str = ""

    @property
    def point(self) -> tuple[float, float] | None:
        """Recall and precision of what stays; None where nothing does, or nothing could be found."""
        found, false, missed = self.counts
        return (found / (found + missed), found / (found + false)) if found + false and found + missed else None


@plain_style
def draw_thresholds(view: ThresholdView, look: Look = LIGHT) -> Drawing:
    """The picture with the boxes that stay, and where the set of pictures is on the curve of precision and recall.

    Chapter 00.
    """
    height_px, width_px = view.image.shape[:2]
    scale = min(PICTURE / width_px, 440 / height_px)
    wide, high = round(width_px * scale), round(height_px * scale)
    chart_high = 300
    width = 2 * MARGIN + wide + GAP + CHART
    height = HEAD + max(high + 34, chart_high + 138)
    figure, canvas = titled_figure(width, height, look, view.words, _facts(view))

    axes = picture_axes(figure, (MARGIN, HEAD, wide, high), (height_px, width_px))
    show_picture(axes, view.image)
    rows = list(zip(view.boxes, view.labels, view.scores, view.found, strict=True))
    # √ and × are in matplotlib's own font, on every machine.
    words = [_wordings("√ " if found else "× ", _name(view, label), f" {score:.2f}") for _, label, score, found in rows]
    words += [_wordings("missed: ", _name(view, label), "") for label in view.missed_labels]
    boxes = np.concatenate([view.boxes.reshape(-1, 4), view.missed.reshape(-1, 4)])
    labels = place_labels(boxes * scale, words, wide, high)
    for box in view.missed:
        outline(axes, box, MISSED, 2, DOTTED)
    for box, _, _, found in reversed(rows):  # the surest on top
        outline(axes, box, HIT if found else FALSE, 2, SOLID if found else DASHED)
    fills = [HIT if found else FALSE for found in view.found] + [MISSED] * len(view.missed)
    for label, fill in zip(labels, fills, strict=True):
        if label is not None:
            corner, sides = (label.x / scale, label.y / scale), (label.width / scale, label.height / scale)
            axes.add_artist(Rectangle(corner, *sides, facecolor=fill, linewidth=0, zorder=4))
            place = ((label.x + 3) / scale, (label.y + label.size) / scale)
            write(axes, *place, label.text, label.size, text_colour(fill))
    x, y = MARGIN, HEAD + high + 21
    for colour, line, words in (
        (HIT, SOLID, "√ found an object"),
        (FALSE, DASHED, "× false alarm"),
        (look.ink, DOTTED, "missed object"),
    ):
        canvas.plot([x, x + 24], [y - 4] * 2, color=colour, linestyle=line, linewidth=2)
        write(canvas, x + 31, y, words, 11, look.ink)
        x += 31 + text_width(words, 11) + 18
    _chart(figure, view, (MARGIN + wide + GAP, HEAD, CHART, chart_high), look)
    figure.alt = f"{view.words} {_facts(view)}"
    return figure


def _wordings(before: str, name: str, after: str) -> tuple[str, ...]:
    """What a box may say, from long to short."""
    return tuple(dict.fromkeys((before + name + after, before + name, before.strip())))


def _name(view: ThresholdView, label: int) -> str:
    return view.class_names[label] if 0 <= label < len(view.class_names) else f"class {label}"


def _facts(view: ThresholdView) -> str:
    found = int(view.found.sum())
    here = _counts(found, len(view.found) - found, len(view.missed))
    return f"In this picture {here}. In all pictures, {view.of_what}: {_counts(*view.counts)}."


def _counts(found: int, false: int, missed: int) -> str:
    return f"{found} found, {false} false alarm{'' if false == 1 else 's'}, {missed} missed"


def _chart(figure: Drawing, view: ThresholdView, place: tuple[float, float, float, float], look: Look) -> None:
    left, top, wide, high = place
    canvas, raw = figure.axes[0], RAW if look == LIGHT else RAW_ON_DARK
    width, height = canvas.get_xlim()[1], canvas.get_ylim()[0]
    write(
        canvas,
        left - 30,
        top + 10,
        shorten(f"Precision and recall: {view.of_what}", wide, 13, True),
        13,
        look.ink,
        True,
    )
    top += 24
    axes = figure.add_axes([left / width, 1 - (top + high) / height, wide / width, high / height])
    plain_axes(axes, look)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    axes.set_xlabel("recall: share of objects that are found", fontsize=11, color=look.pale)
    axes.set_ylabel("precision: share of answers that are right", fontsize=11, color=look.pale)
    if view.ap50 >= 0:
        axes.plot(view.recalls, view.envelope, color=ENVELOPE, linewidth=1.6, linestyle=DASHED)
    kept = int((view.curve_scores >= view.score_threshold).sum())
    axes.plot(view.recall[max(kept - 1, 0) :], view.precision[max(kept - 1, 0) :], color=raw, linewidth=1.2, alpha=0.45)
    axes.plot(view.recall[:kept], view.precision[:kept], color=raw, linewidth=2.2)
    y, x = top + high + 54, left - 30
    if view.point is not None:
        axes.plot([view.point[0]] * 2, [0, view.point[1]], color=look.pale, linewidth=1, linestyle=DOTTED)
        axes.plot([0, view.point[0]], [view.point[1]] * 2, color=look.pale, linewidth=1, linestyle=DOTTED)
        axes.plot(*([each] for each in view.point), "o", color=POINT, markersize=12, markeredgecolor=look.ink, zorder=5)
        now = f"now: recall {view.point[0]:.2f}, precision {view.point[1]:.2f}"
    else:
        now = "now: nothing is left" if sum(view.counts) else "there is no object"
    canvas.plot([x + 12], [y - 4], "o", color=POINT, markersize=10, markeredgecolor=look.ink)
    write(canvas, x + 31, y, now, 12, look.ink)
    canvas.plot([x, x + 24], [y + 18] * 2, color=raw, linewidth=2.2)
    write(canvas, x + 31, y + 22, "as the score threshold falls (thin: below it)", 11, look.ink)
    canvas.plot([x, x + 24], [y + 40] * 2, color=ENVELOPE, linewidth=1.6, linestyle=DASHED)
    ap50 = "not defined" if view.ap50 < 0 else f"{view.ap50:.3f}; cut {max(view.cut_ap50, 0):.3f}"
    write(canvas, x + 31, y + 44, f"COCO's curve{view.mean_of}, AP50 {ap50}", 11, look.ink)
