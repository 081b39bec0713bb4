"""The exercises of chapter 12: right answers, and what typical wrong ones are told."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from minidet.boxes import iou
from minidet.detectors.zoo import create_model
from minidet.exercises import EXERCISES, review
from minidet.layers.blocks import CSPLayer
from minidet.layers.darknet import CSPDarknet
from minidet.losses import binary_cross_entropy
from minidet.training.ema import Ema
from minidet.training.recipe import Recipe, learning_rate
from tests.exercises.told import assert_wrong, stub

NAMES = ("scheduled_rate", "ema_step", "three_losses", "member_plan")


# ---- stubs and solutions --------------------------------------------------------------------------------------------


def rate_solution(step, steps_per_epoch, top, epochs, warmup_epochs, final_epochs, lowest_share):
    lowest = top * lowest_share
    warmup = warmup_epochs * steps_per_epoch
    flat_from = (epochs - final_epochs) * steps_per_epoch
    if step <= warmup and warmup > 0:
        return top * (step / warmup) ** 2
    if step >= flat_from:
        return lowest
    way = (step - warmup) / (flat_from - warmup)
    return lowest + (top - lowest) * (1 + math.cos(math.pi * way)) / 2


def rate_in_epochs(step, steps_per_epoch, top, epochs, warmup_epochs, final_epochs, lowest_share):
    now = step / steps_per_epoch
    if warmup_epochs > 0 and now <= warmup_epochs:
        return top * now * now / warmup_epochs**2
    way = 1.0 if now >= epochs - final_epochs else (now - warmup_epochs) / (epochs - final_epochs - warmup_epochs)
    return top * (lowest_share + (1 - lowest_share) * math.cos(math.pi * way / 2) ** 2)


def ema_solution(average, value, n, decay, ramp):
    if not average.is_floating_point():
        return value.clone()
    d = decay * (1 - math.exp(-n / ramp))
    return d * average + (1 - d) * value


def ema_by_lerp(average, value, n, decay, ramp):
    d = -decay * math.expm1(-n / ramp)
    return torch.lerp(value, average, d) if torch.is_floating_point(value) else value


def losses_solution(object_logits, class_logits, kinds, overlaps):
    positive = kinds >= 0
    n = positive.sum().clamp(min=1)
    wanted = F.one_hot(kinds[positive], class_logits.shape[1]) * overlaps[positive, None]
    box = 5 * (1 - overlaps[positive] ** 2).sum()
    objectness = F.binary_cross_entropy_with_logits(object_logits, positive.float(), reduction="sum")
    classes = F.binary_cross_entropy_with_logits(class_logits[positive], wanted, reduction="sum")
    return box / n, objectness / n, classes / n


def losses_by_loop(object_logits, class_logits, kinds, overlaps):
    box = objectness = classes = torch.tensor(0.0)
    for slot, kind in enumerate(kinds.tolist()):
        objectness = objectness + binary_cross_entropy(object_logits[slot], torch.tensor(float(kind >= 0)))
        if kind >= 0:
            box = box + 5 * (1 - overlaps[slot] ** 2)
            classes = classes + F.softplus(class_logits[slot]).sum() - overlaps[slot] * class_logits[slot, kind]
    n = max(1, int((kinds >= 0).sum()))
    return box / n, objectness / n, classes / n


def plan_solution(depth, width):
    first, n = int(64 * width), round(3 * depth)
    each = max(n, 1)
    channels = first * torch.tensor([1, 2, 4, 8, 16])
    return channels, each * torch.tensor([1, 3, 3, 1]), n


def plan_as_list(depth, width):
    channels = [int(64 * width)]
    for _ in range(4):
        channels.append(2 * channels[-1])
    n = max(round(depth * 3), 1)
    return torch.tensor(channels), torch.tensor([n, 3 * n, 3 * n, n]), round(depth * 3)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_is_not_attempted(name):
    assert review(EXERCISES[name], stub).status == "not attempted"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("scheduled_rate", rate_solution),
        ("scheduled_rate", rate_in_epochs),
        ("ema_step", ema_solution),
        ("ema_step", ema_by_lerp),
        ("three_losses", losses_solution),
        ("three_losses", losses_by_loop),
        ("member_plan", plan_solution),
        ("member_plan", plan_as_list),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_solution_is_done(name, answer):
    verdict = review(EXERCISES[name], answer)
    assert verdict.status == "done", verdict.text


# ---- the right answers are the library's ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_rates_are_those_of_the_librarys_schedule(seed):
    rng = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=rng))

    epochs, warmup, final, per_epoch = draw(1, 40), draw(0, 6), draw(0, 8), draw(1, 50)
    top, share = float(torch.rand((), generator=rng)) + 0.001, float(torch.rand((), generator=rng))
    recipe = Recipe(
        epochs=epochs, base_lr=8 * top, schedule_batch=64, warmup_epochs=warmup, final_epochs=final, min_lr_ratio=share
    )
    for step in {0, 1, *range(0, epochs * per_epoch, max(epochs, 1)), epochs * per_epoch - 1}:
        ours = EXERCISES["scheduled_rate"].answer(step, per_epoch, top, epochs, warmup, final, share)
        assert ours == pytest.approx(learning_rate(step, per_epoch, recipe, 8), rel=1e-9)


def test_averages_are_those_of_the_librarys_ema():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    ema = Ema(model, decay=0.9, ramp=3)
    for n in range(1, 8):
        before = {key: value.clone() for key, value in ema.model.state_dict().items()}
        with torch.no_grad():
            model[0].weight += 0.1 * torch.randn_like(model[0].weight)
        model(torch.randn(2, 3, 8, 8))  # moves the norm's statistics and its counter
        ema.update(model)
        for key, value in model.state_dict().items():
            ours = EXERCISES["ema_step"].answer(before[key], value, n, 0.9, 3)
            torch.testing.assert_close(ours, ema.model.state_dict()[key])
    assert model[1].num_batches_tracked == 7


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_those_of_the_detector(seed):
    torch.manual_seed(seed)
    model = create_model("yolox-nano", 4, input_hw=(64, 96))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    boxes = torch.tensor([[[8.0, 8, 30, 40], [40, 10, 90, 60]], [[20, 5, 60, 50], [1, 30, 25, 62]]])
    targets = [{"boxes": each, "labels": torch.randint(4, (2,))} for each in boxes]
    if seed == 4:
        targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    with torch.inference_mode():
        said = model.dense_of(model.network_input(images)[0])
        gt = model.ground_truth(images, targets)
        assignment = model.assign_of(said, gt, trace=False)
        library = model.losses_of(said, assignment, gt)
    owners, kinds, overlaps = assignment.matched_gt, torch.full(said.object_logits.shape, -1), []
    for picture, target in enumerate(targets):
        overlap = torch.zeros(owners.shape[1])
        for slot in (owners[picture] >= 0).nonzero()[:, 0].tolist():
            kinds[picture, slot] = target["labels"][owners[picture, slot]]
            overlap[slot] = iou(said.boxes[picture, slot], target["boxes"][owners[picture, slot]])
        overlaps.append(overlap)
    ours = EXERCISES["three_losses"].answer(
        said.object_logits.flatten(), said.class_logits.flatten(0, 1), kinds.flatten(), torch.cat(overlaps)
    )
    wanted = [float(library[name]) for name in ("loss_box", "loss_objectness", "loss_class")]
    assert [float(each) for each in ours] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def bottlenecks_of(part: torch.nn.Module) -> list[int]:
    return [len(layer.blocks) for layer in part.modules() if isinstance(layer, CSPLayer)]


@pytest.mark.parametrize("name", [f"yolox-{size}" for size in ("nano", "tiny", "s", "m", "l", "x")])
def test_plans_are_those_of_the_family(name):
    with torch.device("meta"):
        model = create_model(name)
    channels, bottlenecks, neck = EXERCISES["member_plan"].answer(model.config.depth, model.config.width)
    assert tuple(channels[2:].tolist()) == model.backbone.channels == model.neck.channels
    assert channels[0] == model.backbone.stem.conv.conv.out_channels
    assert bottlenecks.tolist() == bottlenecks_of(model.backbone)
    assert [neck] * 4 == bottlenecks_of(model.neck)


@pytest.mark.parametrize(("depth", "width"), [(0.1, 0.3), (0.45, 0.437), (0.9, 0.11)])
def test_odd_plans_are_those_of_the_backbone(depth, width):
    with torch.device("meta"):
        backbone = CSPDarknet(depth, width)
    channels, bottlenecks, _ = EXERCISES["member_plan"].answer(depth, width)
    assert tuple(channels[2:].tolist()) == backbone.channels
    assert bottlenecks.tolist() == bottlenecks_of(backbone)


# ---- wrong answers --------------------------------------------------------------------------------------------------


def rate_with(warm=lambda way: way**2, guard=True, to_zero=False, begin=True, end=True, flat=True, absolute=False):
    """A student's version, with one thing done differently."""

    def answer(step, steps_per_epoch, top, epochs, warmup_epochs, final_epochs, lowest_share):
        lowest = lowest_share if absolute else lowest_share * top
        warmup, total = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
        last = total - final_epochs * steps_per_epoch
        if step <= warmup if not guard else 0 < warmup >= step:
            return top * warm(step / warmup)
        if flat and step >= last:
            return lowest
        way = (step - warmup * begin) / ((last if end else total) - warmup * begin)
        cosine = 0.5 * (1 + math.cos(math.pi * way))
        return top * cosine if to_zero else lowest + (top - lowest) * cosine

    return answer


def rate_of_the_epoch(step, steps_per_epoch, *rest):
    return rate_solution(step // steps_per_epoch * steps_per_epoch, steps_per_epoch, *rest)


def rate_one_ahead(step, steps_per_epoch, top, epochs, warmup_epochs, *rest):
    warmup = warmup_epochs * steps_per_epoch
    if 0 < warmup >= step:
        return top * ((step + 1) / warmup) ** 2
    return rate_solution(step, steps_per_epoch, top, epochs, warmup_epochs, *rest)


def rate_flat_first(step, steps_per_epoch, top, epochs, warmup_epochs, final_epochs, lowest_share):
    if step >= (epochs - final_epochs) * steps_per_epoch:
        return top * lowest_share
    return rate_solution(step, steps_per_epoch, top, epochs, warmup_epochs, final_epochs, lowest_share)


def rate_as_tensor(*arguments):
    return torch.tensor(rate_solution(*arguments))


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (rate_with(warm=lambda way: way), "rate is 0.005, not 0.0025.", "Your warm-up is a straight line."),
        (rate_with(to_zero=True), "half-way down the cosine", "Your cosine falls to 0 and then jumps up"),
        (rate_with(begin=False), "half-way down the cosine", "Your cosine starts at step 0"),
        (rate_with(end=False), "half-way down the cosine", "Your cosine is stretched to the end of the run"),
        (rate_with(flat=False), "the last step", "There is no flat end"),
        (rate_with(guard=False), "no warm-up, first step", "Without a warm-up there is nothing to divide by"),
        (rate_with(absolute=True), "half-way down the cosine", "a share of the top, not a learning rate"),
        (rate_of_the_epoch, "in the middle of the warm-up", "Your rate changes once an epoch."),
        (rate_one_ahead, "in the middle of the warm-up", "Your warm-up is one step ahead."),
        (rate_flat_first, "a run that ends within its warm-up", "the warm-up is asked first"),
        (rate_as_tensor, "rate is", ""),
    ],
    ids="straight zero begin end endless divided absolute epoch ahead first tensor".split(),
)
def test_a_wrong_rate_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("scheduled_rate", answer, difference, hint)


def ema_with(memory=lambda n, decay, ramp: decay * (1 - math.exp(-n / ramp)), swapped=False, whole="copied"):
    """A student's version, with one thing done differently."""

    def answer(average, value, n, decay, ramp):
        d = memory(n, decay, ramp)
        if swapped:
            average, value = value, average
        mixed = average * d + value * (1 - d)
        if average.is_floating_point() or whole == "averaged":
            return mixed
        return {"copied": average if swapped else value, "kept": average, "cut off": mixed.long()}[whole].clone()

    return answer


def into_the_average(average, value, n, decay, ramp):
    if not average.is_floating_point():
        return value
    d = decay * (1 - math.exp(-n / ramp))
    average *= d
    average += (1 - d) * value
    return average


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (ema_with(lambda n, decay, ramp: decay), "average[0] is 10, not 13.68.", "The memory is full from the start."),
        (ema_with(swapped=True), "average[0] is 16.32, not 13.68.", "The two shares are exchanged"),
        (ema_with(lambda n, d, r: d * (1 - math.exp(-(n - 1) / r))), "average[0] is", "Your n starts at 0."),
        (ema_with(lambda n, d, r: d * math.exp(-n / r)), "average[0] is", "Your memory fades with time"),
        (ema_with(lambda n, d, r: d * (1 - 2 ** (-n / r))), "average[0] is", "counted with e, not with 2"),
        (ema_with(whole="averaged"), "average is float32, but int64 was expected.", "A counter is a whole number"),
        (ema_with(whole="cut off"), "is 41, not 42.", "You average whole numbers and cut off"),
        (ema_with(whole="kept"), "is 41, not 42.", "Your counters stand still."),
        (into_the_average, "other numbers stand in average afterwards", "Make a new tensor instead"),
    ],
    ids="full swapped zero fading two averaged cut kept in-place".split(),
)
def test_a_wrong_average_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("ema_step", answer, difference, hint)


def losses_with(
    weight=5,
    box=lambda iou: 1 - iou**2,
    divide=None,
    object_target=None,
    own=None,
    where=None,
    entropy=None,
    mean=False,
):
    """A student's version, with one thing done differently; `where`: the term that is summed over other slots."""
    entropy = entropy or (lambda logits, wanted: F.softplus(logits) - logits * wanted)

    def answer(object_logits, class_logits, kinds, overlaps):
        positive = kinds >= 0
        everywhere = torch.ones_like(positive)
        n = divide(positive) if divide else positive.sum().clamp(min=1)
        boxes = weight * box(overlaps)[everywhere if where == "box" else positive].sum()
        objects = entropy(object_logits, (object_target or (lambda iou: 1))(overlaps) * positive.float())
        wanted = torch.zeros_like(class_logits)
        for slot in range(len(kinds)):
            if positive[slot]:
                wanted[slot, kinds[slot]] = own or overlaps[slot]
        classes = entropy(class_logits, wanted)[everywhere if where == "class" else positive].sum()
        if mean:
            classes = classes / class_logits.shape[1]
        return boxes / n, objects[positive if where == "objectness" else everywhere].sum() / n, classes / n

    return answer


def by_logarithms(logits, wanted):
    return -wanted * logits.sigmoid().log() - (1 - wanted) * (1 - logits.sigmoid()).log()


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (losses_with(weight=1), "box[] is 0.555, not 2.775.", "The box loss has the weight 5."),
        (losses_with(box=lambda iou: 1 - iou), "box[] is 1.75, not 2.775.", "The IoU is squared first."),
        (losses_with(where="box"), "box[] is", "Negative slots have no object"),
        (losses_with(object_target=lambda iou: iou), "objectness[] is", "Your objectness learns the IoU."),
        (losses_with(where="objectness"), "objectness[] is", "the one term that all slots have"),
        (losses_with(own=1.0), "class_loss[] is", "It is the IoU of the box."),
        (losses_with(where="class"), "class_loss[] is", "They learn nothing about classes."),
        (losses_with(mean=True), "class_loss[] is", "They are summed"),
        (losses_with(divide=len), "box[] is 1.85, not 2.775.", "You divide by the number of all slots."),
        (losses_with(divide=lambda positive: positive.sum()), "a batch without objects", "N is at least 1."),
        (losses_with(entropy=by_logarithms), "very sure logits", "computes it from the logit"),
        (lambda *given: losses_solution(*given)[:2], "2 values came back, but 3 were expected.", "in this order"),
    ],
    ids="weight plain boxes soft positives hard background mean slots zero logarithm two".split(),
)
def test_a_wrong_loss_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("three_losses", answer, difference, hint)


def plan_with(
    whole=int, count=round, least=1, neck_least=0, pattern=(1, 3, 3, 1), nine=False, alone=False, swap=False, late=False
):
    """A student's version, with one thing done differently."""

    def answer(depth, width):
        if swap:
            width, depth = depth, width
        stages = torch.tensor([1, 2, 4, 8, 16])
        channels = stages * whole(width * 64)
        if alone:
            channels = torch.tensor([whole(width * 64 * times) for times in stages.tolist()])
        n = max(count(depth * 3), least)
        bottlenecks = n * torch.tensor(pattern)
        if nine:
            bottlenecks[1:3] = max(count(depth * 9), 1)
        if late:  # the floor comes last
            bottlenecks = (round(depth * 3) * torch.tensor(pattern)).clamp(min=1)
        return channels, bottlenecks, max(count(depth * 3), neck_least)

    return answer


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (plan_with(whole=round), "just below a whole number", "64 * width is rounded to the nearest number."),
        (plan_with(alone=True), "does not come out even", "Each stage's channels are cut off by themselves."),
        (plan_with(count=int), "yolox-s", "3 * 0.33 is 0.99 and becomes 0"),
        (plan_with(count=math.ceil), "yolox-m", "3 * depth is rounded up"),
        (plan_with(least=0), "a very shallow one", "keeps at least one bottleneck"),
        (plan_with(late=True), "bottlenecks[1] is 1, not 3.", "three times a floor of one is three"),
        (plan_with(neck_least=1), "neck is 1, not 0.", "The pyramid has no lower limit"),
        (plan_with(pattern=(1, 3, 3, 3)), "bottlenecks[3] is 9, not 3.", "Only dark3 and dark4"),
        (plan_with(nine=True), "bottlenecks[1] is", "three times the *rounded* number"),
        (plan_with(swap=True), "yolox-s", "The multipliers are exchanged"),
        (lambda d, w: plan_solution(d, w)[:2], "2 values came back, but 3 were expected.", "in this order"),
    ],
    ids="rounded alone cut ceiling none late neck last nine swapped two".split(),
)
def test_a_wrong_plan_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("member_plan", answer, difference, hint)
