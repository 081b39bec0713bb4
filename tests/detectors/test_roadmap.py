"""The road map from YOLOv3 to YOLOX and beyond: every rung is a whole detector, and costs what the paper says."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import minidet
from minidet.assign import OTA, POTO, BestAnchor, CentreSampling, SimOTA
from minidet.boxes import pairwise_iou, xyxy_to_cxcywh
from minidet.detectors.roadmap import COCO_ANCHORS, roadmap
from minidet.detectors.weights import transfer_weights
from minidet.detectors.yolox import decode, share_anchors
from minidet.errors import MinidetError, WeightsError
from minidet.evaluation.speed import count_cost, count_parameters
from minidet.evaluation.task_gradients import look_into_head
from minidet.grid import make_grid
from minidet.losses import raw_box_targets

INPUT_HW = (96, 128)
RUNGS = roadmap(INPUT_HW)
# Networks that the ladder is climbed with: the paper's at a quarter of its width, and the two small YOLOX.
BASES = {
    "darknet53": ("yolox-darknet53", {"width": 0.125, "depth": 0.2}),
    "nano": ("yolox-nano", {"width": 0.125}),
    "tiny": ("yolox-tiny", {"width": 0.125}),
}


def make(rung: str, base: str = "darknet53", **changes):
    torch.manual_seed(0)
    name, small = BASES[base]
    return minidet.create_model(name, 3, input_hw=INPUT_HW, **{**small, **RUNGS[rung].changes, **changes})


def scene() -> tuple[torch.Tensor, list[dict]]:
    """Two pictures with bright rectangles on grey."""
    boxes = [torch.tensor([[10.0, 12, 50, 60], [60, 20, 120, 88]]), torch.tensor([[30.0, 30, 62, 62]])]
    images = torch.full((2, 3, *INPUT_HW), 0.3)
    for image, objects in zip(images, boxes, strict=True):
        for channel, (x1, y1, x2, y2) in enumerate(objects.long().tolist()):
            image[channel, y1:y2, x1:x2] = 1.0
    labels = [torch.tensor([0, 1]), torch.tensor([0])]
    return images, [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]


# ---- sizes ----------------------------------------------------------------------------------------------------------

# YOLOX, Table 2, rows of darknet53: M parameters, GFLOPs.
TABLE_2 = {
    "baseline": (63.00, 157.3),
    "decoupled-head": (63.86, 186.0),
    "strong-augmentation": (63.86, 186.0),
    "anchor-free": (63.72, 185.3),
    "multi-positives": (63.72, 185.3),
    "simota": (63.72, 185.3),
    "nms-free": (67.27, 205.1),
}


@pytest.mark.parametrize("rung", TABLE_2)
def test_each_rung_of_darknet53_has_the_papers_parameters_and_operations(rung):
    parameters, gflops = TABLE_2[rung]
    with torch.device("meta"):
        model = minidet.create_model("yolox-darknet53", **roadmap((640, 640))[rung].changes)
    cost = count_cost(model).total
    assert round(cost.trainable / 1e6, 2) == parameters
    assert 2 * cost.gmacs == pytest.approx(gflops, rel=0.002)
    published = RUNGS[rung].published
    assert (published.parameters, published.gflops) == (parameters, gflops)


def test_the_selector_has_the_parameters_that_the_paper_adds():
    # Per level two 3 x 3 blocks of 256 channels (590,336 each) and a 1 x 1 convolution to one logit (257).
    with torch.device("meta"):
        plain, free = (minidet.create_model("yolox-darknet53", nms_free=chosen) for chosen in (False, True))
    assert count_parameters(free) - count_parameters(plain) == 3 * (2 * 590_336 + 257) == 3_542_787


def test_three_anchors_a_cell_cost_two_more_predictors_of_each_kind():
    with torch.device("meta"):
        one, three = (minidet.create_model("yolox-darknet53", anchors=chosen) for chosen in (None, COCO_ANCHORS))
    assert count_parameters(three) - count_parameters(one) == 3 * 2 * 85 * (256 + 1)


def test_width_and_depth_shrink_darknet53_as_they_shrink_the_others():
    with torch.device("meta"):
        whole = minidet.create_model("yolox-darknet53")
        narrow = minidet.create_model("yolox-darknet53", width=0.25)
        shallow = minidet.create_model("yolox-darknet53", depth=0.33)
    assert count_parameters(narrow) == pytest.approx(count_parameters(whole) / 16, rel=0.02)
    assert narrow.backbone.channels == (64, 128, 128)
    layers = [sum("conv2" in name for name, _ in m.backbone.named_modules()) / 4 for m in (whole, shallow)]
    assert layers == [1 + 2 + 8 + 8 + 4, 1 + 1 + 3 + 3 + 1]


# ---- every rung is a whole detector ---------------------------------------------------------------------------------


def test_each_rung_has_the_changes_of_those_before_it():
    assert list(RUNGS) == list(TABLE_2)
    heads = [rung.changes.get("head", "decoupled") for rung in RUNGS.values()]
    assert heads == ["coupled"] + 6 * ["decoupled"]
    assert [rung.strong_augmentation for rung in RUNGS.values()] == 2 * [False] + 5 * [True]
    assert ["anchors" in rung.changes for rung in RUNGS.values()] == 3 * [True] + 4 * [False]
    rules = [type(rung.changes["assigner"]) for rung in RUNGS.values()]
    assert rules == 3 * [BestAnchor] + 2 * [CentreSampling] + 2 * [SimOTA]
    assert [rung.changes["assigner"].radius for rung in list(RUNGS.values())[3:5]] == [None, 1.5]
    assert [rung.changes.get("nms_free", False) for rung in RUNGS.values()] == 6 * [False] + [True]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_learns_two_pictures(rung, base):
    model = make(rung, base).train()
    model.use_l1 = True
    images, targets = scene()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        losses = model(images, targets)
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        totals.append(sum(losses.values()).item())
    assert sum(totals[-5:]) < 0.75 * sum(totals[:5])
    assert ("loss_selector" in losses) == (rung == "nms-free")


@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_keeps_the_torchvision_contract(rung):
    model = make(rung).eval()
    model.score_threshold = 0.0
    pictures = [
        torch.randint(256, (3, 50, 200), dtype=torch.uint8),
        torch.randint(256, (3, 300, 90), dtype=torch.uint8),
    ]
    found = model(pictures)
    assert len(found) == 2
    for picture, each in zip(pictures, found, strict=True):
        assert set(each) == {"boxes", "scores", "labels"}
        count = len(each["scores"])
        assert count > 0 and each["boxes"].shape == (count, 4) and each["labels"].shape == (count,)
        assert (each["boxes"] >= 0).all() and (each["boxes"][:, 0::2] <= picture.shape[2]).all()
        assert (each["scores"].diff() <= 0).all()
        assert ((each["labels"] >= 0) & (each["labels"] < 3)).all()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model.train()(pictures, [empty, empty])
    assert all(loss.isfinite() for loss in losses.values())
    assert model.last_assignment.num_positives == 0


@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_comes_back_from_a_weights_file(rung, tmp_path):
    model = make(rung).eval()
    minidet.save_weights(model, tmp_path / "rung.safetensors")
    loaded = minidet.load_model(tmp_path / "rung.safetensors")
    assert loaded.config == model.config
    images = scene()[0]
    for ours, theirs in zip(model.dense(images).tensors, loaded.dense(images).tensors, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_says_the_same_after_its_norms_are_folded(rung):
    model = make(rung).eval()
    images = scene()[0]
    with torch.no_grad():
        expected, found = model.dense(images), minidet.optimize(model).dense(images)
    torch.testing.assert_close(found.class_scores(), expected.class_scores(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-3, atol=1e-2)


# ---- anchors --------------------------------------------------------------------------------------------------------


def test_with_anchors_a_sigmoid_holds_the_centre_and_sizes_are_factors_of_the_anchor():
    grid = make_grid([(2, 2)], (8,), anchor_sizes=(((10, 20), (40, 30)),), anchor_offset=0.5)
    raw = torch.zeros(1, 8, 4)
    raw[0, 3] = torch.tensor([1.0986123, -1.0986123, 0.6931472, -0.6931472])  # sigmoid 3/4 and 1/4; factors 2 and 1/2
    boxes = xyxy_to_cxcywh(decode(raw, grid))[0]
    torch.testing.assert_close(boxes[0], torch.tensor([4.0, 4, 10, 20]))  # cell (0, 0), first anchor
    torch.testing.assert_close(boxes[3], torch.tensor([8 + 6.0, 2, 80, 15]))  # cell (1, 0), second anchor


def test_decoding_with_anchors_undoes_the_targets_of_the_l1_loss():
    grid = make_grid([(4, 6)], (16,), anchor_sizes=(((10, 20), (40, 30)),), anchor_offset=0.5)
    center = (grid.cells + 0.1 + 0.8 * torch.rand(len(grid), 2)) * 16
    half = 2 + 20 * torch.rand(len(grid), 2)
    boxes = torch.cat([center - half, center + half], dim=1)
    wanted = raw_box_targets(boxes, grid.cells, grid.strides, grid.anchor_sizes)
    raw = torch.cat([wanted[:, :2].logit(), wanted[:, 2:]], dim=1)
    torch.testing.assert_close(decode(raw[None], grid)[0], boxes, rtol=1e-4, atol=1e-3)


def test_a_perfect_prediction_has_no_box_and_no_l1_loss():
    model = make("decoupled-head").train()
    model.use_l1 = True
    images, targets = scene()
    predictions = model.dense_of(model.network_input(images)[0])
    gt = model.ground_truth(images, targets)
    assignment = model.assign_of(predictions.detach(), gt, trace=False)
    raw = predictions.raw_boxes.detach().clone()
    for image, slot, object_ in zip(
        *(v.tolist() for v in (assignment.pairs.image, assignment.pairs.slot, assignment.pairs.gt)), strict=True
    ):
        grid = predictions.grid.at(torch.tensor([slot]))
        wanted = raw_box_targets(gt.boxes[image, object_][None], grid.cells, grid.strides, grid.anchor_sizes)[0]
        raw[image, slot] = torch.cat([wanted[:2].clamp(1e-6, 1 - 1e-6).logit(), wanted[2:]])
    perfect = type(predictions)(
        predictions.grid, raw, decode(raw, predictions.grid), predictions.class_logits, predictions.object_logits
    )
    losses = model.losses_of(perfect, assignment, gt)
    assert losses["loss_box"].item() == pytest.approx(0, abs=1e-3)
    assert losses["loss_l1"].item() == pytest.approx(0, abs=1e-3)


def test_channels_of_an_anchor_stand_together():
    model = make("baseline").eval()
    images = scene()[0]
    x = model.network_input(images)[0]
    with torch.no_grad():
        features = model.features_of(x)
        classes, boxes, objects = model.head([features[name] for name in ("p3", "p4", "p5")])[1]
        dense = model.dense(images)
    row, column, anchor = 3, 5, 2
    slot = 3 * 12 * 16 + (row * 8 + column) * 3 + anchor  # 12 x 16 cells of stride 8 come first; then 6 x 8
    torch.testing.assert_close(dense.class_logits[0, slot], classes[0, 3 * anchor : 3 * anchor + 3, row, column])
    torch.testing.assert_close(dense.raw_boxes[0, slot], boxes[0, 4 * anchor : 4 * anchor + 4, row, column])
    torch.testing.assert_close(dense.object_logits[0, slot], objects[0, anchor, row, column])
    assert dense.grid.anchor_sizes[slot].tolist() == pytest.approx(model.anchors[1][2])


@pytest.mark.parametrize("anchors", [((10, 10), (20, 20)), ((10, 0), (20, 20), (30, 30)), ()])
def test_anchors_that_cannot_be_shared_are_refused(anchors):
    with pytest.raises(MinidetError, match="multiple of 3"):
        share_anchors(anchors, 3)


def test_anchors_out_of_order_are_refused():
    with pytest.raises(MinidetError, match="order of their areas"):
        share_anchors(((20, 20), (10, 10), (30, 30)), 3)


def test_cocos_anchors_follow_the_input():
    changes = roadmap((208, 416))["baseline"].changes
    assert changes["anchors"][0] == (5, 6.5)
    assert roadmap((416, 416), ((1, 2),) * 3)["baseline"].changes["anchors"] == ((1, 2),) * 3


# ---- without NMS ----------------------------------------------------------------------------------------------------


def gradients(model) -> dict[str, torch.Tensor]:
    images, targets = scene()
    losses = model(images, targets)
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_with_stop_gradient_the_detector_learns_what_it_would_learn_without_a_selector():
    free = make("nms-free").train()
    plain = make("simota").train()
    plain.load_state_dict({key: value for key, value in free.state_dict().items() if "selector" not in key})
    with_selector, without = gradients(free), gradients(plain)
    for name, gradient in without.items():
        assert torch.equal(with_selector[name], gradient), name
    assert all(with_selector[name].any() for name in with_selector if "selector" in name and "weight" in name)


def test_without_stop_gradient_the_selector_changes_what_the_rest_learns():
    free = make("nms-free", stop_gradient=False).train()
    stopped = make("nms-free").train()
    stopped.load_state_dict(free.state_dict())
    leaking, held = gradients(free), gradients(stopped)
    for part in ("backbone.stem", "box_branch", "class_branch", "object_predictor"):
        assert any(not torch.equal(leaking[name], held[name]) for name in held if part in name), part


def test_the_selectors_loss_is_focal_loss_of_the_whole_score_by_hand():
    model = make("nms-free").train()
    images, targets = scene()
    predictions = model.dense_of(model.network_input(images)[0])
    gt = model.ground_truth(images, targets)
    chosen = model.config.selector_assigner(predictions.detach(), gt)
    score = (
        predictions.class_logits.double().sigmoid()
        * predictions.object_logits.double().sigmoid()[..., None]
        * predictions.selector_logits.double().sigmoid()[..., None]
    )
    wanted = torch.zeros_like(score)
    for image, slot in chosen.positive.nonzero().tolist():
        wanted[image, slot, targets[image]["labels"][chosen.matched_gt[image, slot]]] = 1
    assert wanted.sum() == 3  # one slot for each object
    positive = -0.25 * (1 - score) ** 2 * score.log() * wanted
    negative = -0.75 * score**2 * (1 - score).log() * (1 - wanted)
    expected = (positive + negative).sum() / 3
    torch.testing.assert_close(model.selector_loss(predictions, gt).double(), expected, rtol=1e-4, atol=1e-6)


def test_the_answer_is_the_hundred_best_slots_and_nothing_is_suppressed():
    model = make("nms-free").eval()
    model.score_threshold = 0.0
    dense = model.dense(scene()[0])
    best = dense.class_scores().amax(dim=2).sort(dim=1, descending=True).values[:, :100]
    found = model.select(dense).per_image(2)
    for each, scores in zip(found, best, strict=True):
        torch.testing.assert_close(each["scores"], scores)
    model.nms_threshold, model.max_detections = 0.3, None  # the same weights, with NMS
    for each in model.select(dense).per_image(2):
        overlap = pairwise_iou(each["boxes"], each["boxes"]).fill_diagonal_(0)
        assert overlap[each["labels"][:, None] == each["labels"]].max() <= 0.3
        assert len(each["boxes"]) < 252


def test_a_score_is_the_product_of_three_probabilities():
    dense = make("nms-free").eval().dense(scene()[0])
    product = (
        dense.class_logits.sigmoid() * (dense.object_logits.sigmoid() * dense.selector_logits.sigmoid())[..., None]
    )
    torch.testing.assert_close(dense.class_scores(), product)


def test_a_detector_with_nms_goes_on_without_it():
    trained, free = make("simota"), make("nms-free")
    left_out = transfer_weights(trained, free, "trained")
    assert left_out and all(".selector." in key for key in left_out)
    dense, own = trained.eval().dense(scene()[0]), free.eval().dense(scene()[0])
    assert torch.equal(dense.class_logits, own.class_logits) and torch.equal(dense.boxes, own.boxes)
    with pytest.raises(WeightsError, match="selector"):
        transfer_weights(free, make("simota"), "free")


def test_none_suppresses_nothing_in_any_detector_and_is_kept(tmp_path):
    model = make("simota", nms_threshold=None)
    assert model.max_detections == 100
    minidet.save_weights(model, tmp_path / "w.safetensors")
    assert minidet.load_model(tmp_path / "w.safetensors").nms_threshold is None


def test_what_is_seen_inside_a_head_with_anchors_is_the_best_of_each_cell():
    images, targets = scene()
    inside = look_into_head(make("decoupled-head").eval(), images, targets)
    assert inside.scores("p4").shape == (2, 6, 8)
    dense = make("decoupled-head").eval().dense(images)
    best = dense.class_scores().amax(dim=2)[:, 3 * 192 : 3 * 240].view(2, 6, 8, 3).amax(dim=3)
    torch.testing.assert_close(inside.scores("p4"), best)


def test_the_selectors_rule_is_a_setting_and_comes_back(tmp_path):
    model = make("nms-free", selector_assigner=SimOTA(radius=2.0))
    minidet.save_weights(model, tmp_path / "w.safetensors")
    assert minidet.load_model(tmp_path / "w.safetensors").config.selector_assigner == SimOTA(radius=2.0)
    images, targets = scene()
    dense = model.train().dense(images).detach()
    boxes = torch.stack([target["boxes"][:1].expand(len(dense.grid), 4) for target in targets])  # all fit the first
    assert model.config.selector_assigner(dataclasses.replace(dense, boxes=boxes), targets).num_positives >= 20


def test_what_asks_the_host_is_not_compiled():
    for model in (make("nms-free"), make("simota", assigner=POTO()), make("simota", assigner=OTA(solver="exact"))):
        with pytest.raises(MinidetError, match=r"(POTO|OTA) finds its matching on the host"):
            copy.deepcopy(model).compile()
