"""Pictures: everything stays inside, is legible, is told in words, and comes out the same every time."""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from minidet.draw import (
    MARKS,
    PALETTE,
    Drawing,
    ScalingPanel,
    Scene,
    colour,
    describe_detections,
    draw_curves,
    draw_detections,
    draw_gallery,
    draw_scaling,
    figure_png,
    mark,
    save_figure,
    text_colour,
)
from minidet.draw.labels import place_labels
from minidet.errors import DataError

NAMES = ["circle", "square", "triangle", "star", "ring", "cross", "moon", "heart"]


def picture(height: int = 256, width: int = 320) -> torch.Tensor:
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return torch.stack([rows + 0 * columns, rows + columns, 0 * rows + columns]).to(torch.uint8)


def some_boxes(count: int, height: int = 256, width: int = 320) -> dict[str, torch.Tensor]:
    centers = torch.rand(count, 2) * torch.tensor([width, height])
    sizes = torch.exp(torch.rand(count, 2) * 4 + 0.5)
    return {
        "boxes": torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1),
        "labels": torch.arange(count) % 10,  # two of the ten have no name
        "scores": torch.linspace(0.99, 0.01, count),
    }


def pixels_of(figure: Drawing) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure_png(figure))).convert("RGB"))


def fingerprint(png: bytes) -> str:
    """Stands for the bytes where they are compared: pytest would take minutes to explain how two pictures differ."""
    return hashlib.sha256(png).hexdigest()


def chunks_of(png: bytes) -> list[str]:
    """The names of the parts of a PNG file (PNG specification, section 5.3)."""
    names, position = [], 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        names.append(png[position + 4 : position + 8].decode())
        position += 12 + length
    return names


def words_in(figure: Drawing) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def assert_all_text_is_inside(figure: Drawing) -> None:
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        limits = axes.get_window_extent(renderer)
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= limits.x0 - 1 and box.x1 <= limits.x1 + 1, text.get_text()
            assert box.y0 >= limits.y0 - 1 and box.y1 <= limits.y1 + 1, text.get_text()


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_boxes_is_drawn_with_all_words_inside_the_picture(count: int):
    figure = draw_detections(picture(), **some_boxes(count), class_names=NAMES, gt_boxes=some_boxes(count)["boxes"])
    assert pixels_of(figure).shape[1] == 640  # 320 pixels, enlarged twice
    assert_all_text_is_inside(figure)


def test_words_lie_beside_each_other_and_not_on_top():
    boxes = some_boxes(100)["boxes"].numpy() * 2
    labels = [label for label in place_labels(boxes, [("triangle 0.99", "triangle")] * 100, 640, 512) if label]
    assert len(labels) > 20
    for one, other in itertools.combinations(labels, 2):
        apart = one.x >= other.x + other.width or other.x >= one.x + one.width
        assert apart or one.y >= other.y + other.height or other.y >= one.y + one.height
    assert sum(label.width * label.height for label in labels) <= 0.2 * 640 * 512


@pytest.mark.parametrize("side", [4, 20, 90])
def test_words_find_a_place_inside_for_boxes_at_every_edge_and_beyond(side: int):
    for x, y in itertools.product((-50, -5, 0, 140, 300, 330), (-50, -5, 0, 100, 240, 260)):
        (label,) = place_labels(np.array([[x, y, x + side, y + side]]), [("triangle 0.50",)], 320, 256)
        assert 0 <= label.x <= label.x + label.width <= 320
        assert 0 <= label.y <= label.y + label.height <= 256


def test_a_box_without_room_for_words_gets_its_mark_and_the_legend_says_what_it_means():
    stacked = torch.tensor([[10.0, 10.0, 30.0, 30.0]]).repeat(60, 1)
    figure = draw_detections(picture(40, 40), stacked, [3] * 60, torch.linspace(1, 0, 60), NAMES)
    assert "star" in words_in(figure)[-1:]
    marks = [line.get_marker() for line in figure.axes[0].lines]
    assert marks
    assert set(marks) == {mark(3)}


def test_the_pixels_of_a_box_have_its_colour_and_the_rest_is_the_picture():
    grey = np.full((100, 100, 3), 128, dtype=np.uint8)
    drawn = pixels_of(draw_detections(grey, [[20, 30, 60, 70]], [4], None, None, side=100))
    red, green, blue = (int(PALETTE[4][start : start + 2], 16) for start in (1, 3, 5))
    is_line = (drawn == [red, green, blue]).all(axis=-1)
    rows, columns = np.flatnonzero(is_line[:, 40]), np.flatnonzero(is_line[60])
    assert {30, 69, 70} <= {*rows.tolist(), 30}
    assert columns.tolist() == [19, 20, 59, 60]  # two pixels wide, centred on the edges at 20 and 60
    assert (drawn[40:60, 30:50] == 128).all()
    assert (drawn[80:, :] == 128).all()


def test_ground_truth_is_drawn_white_and_dashed_below_and_the_legend_says_so():
    figure = draw_detections(picture(), [[50, 50, 90, 90]], [0], [0.9], NAMES, gt_boxes=[[52, 50, 90, 92]])
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    (truth,) = [patch for patch in boxes if patch.get_edgecolor()[:3] == (1, 1, 1)]
    (found,) = [patch for patch in boxes if patch is not truth]
    assert truth.get_linestyle() != "-" and found.get_linestyle() in ("-", "solid")
    assert truth.get_zorder() < found.get_zorder()
    assert words_in(figure)[-2:] == ["dashed: ground truth", "solid: detection"]


def test_the_image_may_come_channels_first_or_last_and_is_not_changed():
    image = picture()
    before = image.clone()
    torch.manual_seed(0)
    first = fingerprint(figure_png(draw_detections(image, **some_boxes(3))))
    torch.manual_seed(0)
    last = draw_detections(image.permute(1, 2, 0).numpy(), **some_boxes(3))
    assert fingerprint(figure_png(last)) == first
    assert torch.equal(image, before)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (1, 500), (2000, 10), (700, 500)])
def test_pictures_of_every_shape_are_drawn(height: int, width: int):
    box = [[0, 0, width, height]]
    figure = draw_detections(picture(height, width), box, [0], [0.5], NAMES, "a title that is longer than the picture")
    assert max(pixels_of(figure).shape[:2]) <= 640 + 60
    assert_all_text_is_inside(figure)


def test_pixels_of_a_tiny_picture_are_shown_as_squares():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    drawn = pixels_of(draw_detections(image, side=80))
    assert np.array_equal(drawn, image.permute(1, 2, 0).numpy().repeat(10, axis=0).repeat(10, axis=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [[0, 0, float("nan"), 5]]}, r"boxes\[0\] is \[0.0, 0.0, nan, 5.0\]"),
        ({"boxes": [[0, 0, 5, 5], [0, 0, float("inf"), 5]]}, r"boxes\[1\]"),
        ({"boxes": [[5, 0, 0, 5]]}, "x1 <= x2"),
        ({"boxes": [[0, 0, 5]]}, r"boxes must be \[N, 4\]"),
        ({"boxes": [0, 0, 5, 5]}, r"boxes must be \[N, 4\]"),
        ({"boxes": ["a box"]}, "boxes are not numbers"),
        ({"boxes": [[0, 0, 5, 5]], "labels": [1, 2]}, "1 boxes, but 2 labels"),
        ({"boxes": [[0, 0, 5, 5]], "scores": []}, "1 boxes, but 0 scores"),
        ({"boxes": [[0, 0, 5, 5]], "scores": [float("nan")]}, r"scores\[0\] is not a finite number"),
        ({"gt_boxes": [[0, 0, 5, float("nan")]]}, r"ground-truth boxes\[0\]"),
        ({"image": torch.rand(3, 8, 8)}, r"float32 \[3, 8, 8\].*uint8"),
        ({"image": torch.zeros(1, 8, 8, dtype=torch.uint8)}, r"uint8 \[1, 8, 8\]"),
        ({"image": torch.zeros(3, 0, 8, dtype=torch.uint8)}, r"\[3, 0, 8\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_place(arguments: dict, message: str):
    with pytest.raises(DataError, match=message):
        draw_detections(**{"image": picture(8, 8)} | arguments)


def test_labels_without_a_name_are_called_by_their_number():
    figure = draw_detections(picture(), [[20, 20, 80, 80], [150, 150, 200, 200]], [0, 12], [0.9, 0.8], ["circle"])
    assert sorted(words_in(figure)) == ["circle 0.90", "class 12 0.80"]
    assert words_in(draw_detections(picture(), [[20, 20, 80, 80]], [3])) == ["class 3"]
    assert words_in(draw_detections(picture(), [[20, 20, 80, 80]], scores=[0.25])) == ["0.25"]
    assert words_in(draw_detections(picture(), [[20, 20, 80, 80]])) == []


@pytest.mark.parametrize(
    "name", ["Blutkörperchen", "clé à molette", "细胞", r"$\oops{$", "a_b \\ %", "two\nlines", "🐙", ""]
)
def test_names_in_any_script_and_with_any_sign_are_drawn_as_they_are(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_detections(picture(), [[20, 40, 200, 200]], [0], [0.9], [name], title=name, side=320)
        figure_png(figure)
    assert words_in(figure)[0] == " ".join([*name.split(), "0.90"])


def test_the_surest_is_drawn_last_and_labelled_first():
    same = [[50, 50, 150, 150]] * 2
    figure = draw_detections(picture(), same, [0, 1], [0.2, 0.9], NAMES)
    lines = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    assert matplotlib.colors.to_hex(lines[-1].get_edgecolor()).upper() == colour(1)
    assert figure.alt == "2 objects: square 0.90, circle 0.20"


def test_detections_in_words():
    assert describe_detections([0, 3, 1], [0.93, 0.854, 0.2], NAMES) == "3 objects: circle 0.93, star 0.85, square 0.20"
    assert describe_detections([7]) == "1 object: class 7"
    assert describe_detections([]) == describe_detections(None) == "no objects"
    assert describe_detections(torch.zeros(5), None, NAMES, limit=2) == "5 objects: circle, circle and 3 more"


def test_a_gallery_aligns_its_pictures_and_says_which_one_is_faulty():
    scenes = [Scene(picture(), some_boxes(5), {"boxes": some_boxes(3)["boxes"]}, f"{i:06}.jpg") for i in range(5)]
    figure = draw_gallery(scenes, columns=3, class_names=NAMES, title="val")
    tiles = [axes.get_position() for axes in figure.axes[:5]]
    assert len({round(tile.y0, 6) for tile in tiles[:3]}) == len({round(tile.y0, 6) for tile in tiles[3:]}) == 1
    assert [round(tile.x0, 6) for tile in tiles[:2]] == [round(tile.x0, 6) for tile in tiles[3:]]
    assert_all_text_is_inside(figure)
    assert "val" in words_in(figure) and "000004.jpg" in words_in(figure)
    assert figure.alt.startswith("val, 5 pictures. 000000.jpg: 5 objects: circle 0.99")
    with pytest.raises(DataError, match="picture 2: 1 boxes, but 2 labels"):
        draw_gallery([scenes[0], Scene(picture(), {"boxes": [[0, 0, 1, 1]], "labels": [1, 2]})])
    with pytest.raises(DataError, match="no picture"):
        draw_gallery([])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_gallery_of_any_count_and_mixed_shapes_has_no_overlapping_pictures(count: int):
    shapes = itertools.cycle([(256, 320), (400, 100), (100, 400), (30, 30)])
    figure = draw_gallery([Scene(picture(*next(shapes)), some_boxes(2), title="t") for _ in range(count)])
    places = [axes.get_position() for axes in figure.axes[:count]]
    assert all(min(place.x0, place.y0) >= 0 and max(place.x1, place.y1) <= 1.000001 for place in places)
    for one, other in itertools.combinations(places, 2):
        assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
    assert_all_text_is_inside(figure)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (8, 4), (9, 3)])
def test_a_gallery_chooses_columns_that_leave_few_gaps(count: int, columns: int):
    figure = draw_gallery([Scene(picture(8, 8))] * count)
    assert len({round(axes.get_position().x0, 6) for axes in figure.axes[:count]}) == columns


def rows(count: int) -> list[dict]:
    return [
        {
            "epoch": epoch,
            "iteration": epoch * 50,
            "lr": 0.01 / epoch,
            "losses": {"loss_box": 3 / epoch, "loss_class": 1 / epoch} | ({"loss_l1": 0.5} if epoch > 8 else {}),
            "ap": 0.04 * epoch if epoch % 5 == 0 else None,
            "ap50": -1.0,
        }
        for epoch in range(1, count + 1)
    ]


def test_curves_show_every_value_and_leave_out_what_is_not_there():
    losses, precision, rate = draw_curves(rows(10), "a run").axes[:3]
    assert [line.get_label() for line in losses.lines] == ["box", "class", "l1"]
    assert losses.lines[0].get_ydata() == pytest.approx([3 / epoch for epoch in range(1, 11)])
    assert losses.lines[2].get_xdata().tolist() == [9, 10]
    (ap,) = precision.lines  # AP50 is undefined throughout
    assert (ap.get_label(), ap.get_xdata().tolist()) == ("AP (best 0.400)", [5, 10])
    assert ap.get_ydata() == pytest.approx([0.2, 0.4])
    assert rate.lines[0].get_ydata() == pytest.approx([0.01 / epoch for epoch in range(1, 11)])
    assert losses.get_xlim() == precision.get_xlim() == rate.get_xlim()
    assert len({line.get_linestyle() + str(line._dash_pattern) for line in losses.lines}) == 3  # not by colour alone


@pytest.mark.parametrize("metrics", [[], [{}], rows(1), rows(40), [{"epoch": 1, "losses": {"loss_box": float("nan")}}]])
def test_curves_of_any_length_are_drawn(metrics: list[dict]):
    assert pixels_of(draw_curves(metrics)).shape == (290, 990, 3)


def test_rows_of_one_epoch_are_drawn_over_the_iterations():
    metrics = [row | {"epoch": 1} for row in rows(3)]
    axes = draw_curves(metrics).axes[0]
    assert axes.get_xlabel() == "iteration"
    assert axes.lines[0].get_xdata().tolist() == [50, 100, 150]


def test_scaling_is_drawn_on_logarithmic_axes_with_every_point_and_every_name():
    curves = {"small, step": [(1, 20.0), (2, 38.0), (8, 160.0)], "large, step": [(1, 900.0), (8, 7300.0)]}
    panel = ScalingPanel("time, ms", "images a batch", curves)
    figure = draw_scaling([[panel, ScalingPanel("time, ms", "side, px", {}, power=2)]], "some processor")
    axes = figure.axes[1]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "images a batch"
    drawn = [list(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_marker() != "None"]
    assert drawn == list(curves.values())
    low, high = axes.get_ylim()
    assert (low, high) == (20, 10000)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "8"]
    for line in (line for line in axes.lines if line.get_marker() == "None"):  # the pale ones are proportional
        (x0, x1), (y0, y1) = line.get_data()
        assert y1 / y0 == pytest.approx(x1 / x0)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"time, ms", "small, step", "large, step", "some processor"} <= set(texts)
    assert "small, step: 20 at 1, 160 at 8" in figure.alt


def test_names_of_curves_that_end_together_are_moved_apart():
    curves = {name: [(1, 10.0), (2, 20.0)] for name in ("a", "b", "c")}
    texts = draw_scaling([[ScalingPanel("time, ms", "images", curves)]]).axes[0].texts
    heights = sorted(text.get_position()[1] for text in texts if text.get_text() in curves)
    assert all(below - above >= 16 for above, below in itertools.pairwise(heights))


@pytest.mark.parametrize("panels", [[], [[]], [[ScalingPanel("time, ms", "images", {"a": [], "b": [(3, 0.001)]})]]])
def test_scaling_of_any_amount_is_drawn(panels: list):
    assert pixels_of(draw_scaling(panels)).shape[2] == 3


def test_the_same_input_gives_the_same_bytes_whatever_the_users_style(tmp_path: Path):
    def draw() -> list[str]:
        torch.manual_seed(0)
        scene = Scene(picture(), some_boxes(9), {"boxes": [[1, 2, 30, 40]]}, "one")
        figures = [draw_detections(scene.image, **scene.prediction), draw_gallery([scene]), draw_curves(rows(9))]
        return [fingerprint(figure_png(figure)) for figure in figures]

    before = draw()
    loud = {"font.size": 30, "axes.facecolor": "black", "lines.linewidth": 9, "savefig.dpi": 300, "path.snap": False}
    with matplotlib.rc_context(loud | {"path.sketch": (3, 50, 4), "text.antialiased": False}):
        assert draw() == before


def test_the_png_holds_the_picture_and_neither_time_nor_version():
    for figure in (draw_detections(picture(), **some_boxes(2)), draw_curves(rows(2))):
        assert set(chunks_of(figure_png(figure))) == {"IHDR", "pHYs", "IDAT", "IEND"}


def test_a_figure_is_saved_as_its_png(tmp_path: Path):
    figure = draw_detections(picture(), **some_boxes(3))
    save_figure(figure, tmp_path / "new" / "a.png")
    assert fingerprint((tmp_path / "new" / "a.png").read_bytes()) == fingerprint(figure_png(figure))


def test_a_figure_shows_itself_in_a_notebook_with_its_description():
    figure = draw_detections(picture(), [[20, 20, 80, 80]], [0], [0.5], NAMES)
    data, metadata = figure._repr_mimebundle_()
    assert fingerprint(data.pop("image/png")) == fingerprint(figure_png(figure))
    assert data == {"text/plain": "1 object: circle 0.50"}
    assert metadata["image/png"] == {"width": 640, "height": 512, "alt": "1 object: circle 0.50"}


def test_drawing_needs_no_pyplot(monkeypatch: pytest.MonkeyPatch):
    """pyplot chooses a backend and keeps every figure alive; here neither loading nor drawing asks for it."""
    for name in [name for name in sys.modules if name.startswith("minidet.draw")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # from now on its import is an ImportError
    fresh = importlib.import_module("minidet.draw")
    fresh.figure_png(fresh.draw_detections(picture(), **some_boxes(3)))
    fresh.figure_png(fresh.draw_curves(rows(3)))


# Colours. Formulas from outside: WCAG 2.2 for contrast; Machado, Oliveira and Fernandes (2009) for dichromats;
# CIE 1976 for the difference between two colours, of which about 2 is just noticeable.

VISION = {
    "everybody": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def linear_rgb(hexadecimal: str) -> np.ndarray:
    channels = np.array([int(hexadecimal[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt((to_xyz @ rgb.clip(0, 1)) / [0.9505, 1.0, 1.089])  # none of the colours is near black
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", list(VISION))
def test_the_colours_of_two_classes_are_told_apart(vision: str):
    seen = [lab(VISION[vision] @ linear_rgb(each)) for each in PALETTE]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 15


def test_words_have_the_contrast_that_wcag_asks_for():
    for background in PALETTE:
        luminances = [
            np.dot([0.2126, 0.7152, 0.0722], linear_rgb(each)) for each in (background, text_colour(background))
        ]
        assert (max(luminances) + 0.05) / (min(luminances) + 0.05) >= 4.5


def test_56_classes_have_a_look_of_their_own():
    assert len({(colour(label), mark(label)) for label in range(56)}) == 56 == len(PALETTE) * len(MARKS)
    assert (colour(56), mark(56)) == (colour(0), mark(0))
