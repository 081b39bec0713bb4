"""Detectors for prediction alone: equal to those they are made from, and unable to do anything else."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import minidet
from minidet.errors import MinidetError
from minidet.evaluation.predict import evaluation_mode


def trained(name: str, **changes) -> minidet.detectors.Detector:
    """A model in evaluation mode whose norms are not the identity, as if it had learned something."""
    model = minidet.create_model(name, **changes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return model


def small(**changes) -> minidet.detectors.Detector:
    """A YOLOX with so few layers that it is translated within seconds."""
    return trained("yolox-tiny", num_classes=3, width=0.0625, depth=0.1, **changes)


def check_equal(found, expected, tolerance: float) -> None:
    """Logits and raw boxes within `tolerance` of the largest number among them."""
    for name in ("raw_boxes", "class_logits", "object_logits"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), name


@pytest.mark.parametrize("name", minidet.list_models())
def test_every_variant_says_the_same_with_its_norms_folded(name):
    model = trained(name)
    fast = minidet.optimize(model)
    assert not any(isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d) for module in fast.modules())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        check_equal(fast.dense(images), model.dense(images), 1e-5)


@pytest.mark.parametrize("encoder", ["mimo", "simo", "miso", "siso"])
def test_the_papers_other_encoders_can_be_folded_too(encoder):
    model = trained("yolof-r18-c5", num_classes=3, encoder=encoder, width=32, anchor_sizes=(32, 64, 128, 256, 512))
    fast = minidet.optimize(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        check_equal(fast.dense(images), model.dense(images), 1e-5)


def test_the_original_is_left_as_it_was():
    model = trained("yolox-nano", num_classes=3)
    before = copy.deepcopy(model.state_dict())
    minidet.optimize(model, "bf16")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert not model.optimized
    model.train()


def test_half_precision_casts_the_network_and_leaves_everything_after_it_in_float32():
    model = trained("yolox-nano", num_classes=3)
    fast = minidet.optimize(model, "bf16")
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    images = torch.rand(1, 3, 64, 96)
    dense = fast.dense(images)
    assert {dense.boxes.dtype, dense.class_logits.dtype, dense.object_logits.dtype} == {torch.float32}
    with torch.no_grad():
        check_equal(dense, model.dense(images), 0.05)  # 8 bits of mantissa, some sixty layers deep
    (found,) = fast([torch.rand(3, 50, 70)])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_pixels_are_normalised_in_float32():
    fast = minidet.optimize(minidet.create_model("yolof-r18-c5", num_classes=3), "bf16")
    assert fast.pixel_mean.dtype == torch.float32
    assert fast.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize("name", ["yolox-nano", "yolof-r18-c5"])
def test_pictures_give_the_detections_of_the_original(name):
    model = trained(name, num_classes=3, input_hw=(64, 96))
    model.score_threshold = 0.02
    images = [torch.randint(0, 256, (3, 60, 40), dtype=torch.uint8), torch.rand(3, 100, 80)]
    fast = minidet.optimize(model)
    with torch.no_grad():
        for found, expected in zip(fast(images), model(images), strict=True):
            assert found["labels"].tolist() == expected["labels"].tolist()
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)


def test_a_compiled_model_is_one_graph_for_every_size_and_equals_the_original():
    model = small()
    fast = minidet.optimize(model, compile="eager")  # the tracing of torch.compile, without the translation
    with torch.no_grad():
        for shape in [(2, 3, 64, 96), (3, 3, 96, 160), (4, 3, 160, 64)]:
            images = torch.rand(shape)
            check_equal(fast.dense(images), model.dense(images), 1e-5)


def test_a_compiled_yolof_is_one_graph_too():
    model = trained("yolof-r18-c5", num_classes=3)
    fast = minidet.optimize(model, compile="aot_eager")
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 70)
        check_equal(fast.dense(images), model.dense(images), 1e-5)


def test_more_models_can_be_compiled_than_torch_translates_one_function():
    images = torch.rand(1, 3, 32, 32)
    model = small()
    with torch._dynamo.config.patch(recompile_limit=1):  # usually 8
        for _ in range(2):
            minidet.optimize(model, compile="eager").dense(images)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_translation_to_machine_code_predicts_the_same():
    model = small()
    fast = minidet.optimize(model, compile=True)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        check_equal(fast.dense(images), model.dense(images), 1e-5)


def test_a_compiler_that_fails_is_a_clear_error():
    def broken(graph, inputs):
        raise RuntimeError("no such compiler")

    fast = minidet.optimize(small(), compile=broken)
    with pytest.raises(MinidetError, match=r"yolox-tiny: torch.compile cannot translate.*no such compiler.*g\+\+"):
        fast.dense(torch.rand(1, 3, 32, 32))


def test_it_can_be_copied_and_judged_but_not_trained_saved_or_optimized_again(tmp_path):
    fast = minidet.optimize(trained("yolox-nano", num_classes=3))
    images = torch.rand(1, 3, 64, 64)
    check_equal(copy.deepcopy(fast).dense(images), fast.dense(images), 0.0)
    with evaluation_mode(fast):
        assert not fast.training
    assert not any(parameter.requires_grad for parameter in fast.parameters())

    with pytest.raises(MinidetError, match="only predicts; train the one that it was made from"):
        fast.train()
    with pytest.raises(MinidetError, match=r"w\.safetensors: an optimized yolox-nano is not saved"):
        minidet.save_weights(fast, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MinidetError, match="optimized already"):
        minidet.optimize(fast)


@pytest.mark.parametrize(
    ("precision", "message"),
    [("int8", "precision 'int8' is not known; choose one of fp32, bf16, fp16"), ("fp16", "fp16 needs a CUDA GPU")],
)
def test_a_precision_that_is_not_possible_is_refused(precision, message):
    with pytest.raises(MinidetError, match=message):
        minidet.optimize(minidet.create_model("yolox-nano"), precision)
