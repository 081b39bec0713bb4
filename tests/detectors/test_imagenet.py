"""ImageNet weights reach the backbone, from torchvision's loader or a file, and only the flavour that fits."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

import minidet
from minidet.detectors.detector import IMAGENET_STD
from minidet.detectors.imagenet import TORCHVISION_WEIGHTS, load_backbone_weights
from minidet.errors import WeightsError
from minidet.layers.resnet import BUILDERS, ResNet


@pytest.fixture(scope="module")
def theirs():
    """torchvision's ResNet-18, with running statistics that are not the fresh ones."""
    torch.manual_seed(3)
    network = models.resnet18(weights=None)
    network(torch.randn(4, 3, 64, 64))
    return network.eval()


def their_features(network, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


@pytest.fixture
def hub(theirs, tmp_path, monkeypatch):
    """torchvision's loader, pointed at a file in place of the internet; gives the file's address."""
    path = tmp_path / "resnet18.pth"
    torch.save(theirs.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path = path.rename(tmp_path / f"resnet18-{digest}.pth")
    monkeypatch.setattr(models.ResNet18_Weights.IMAGENET1K_V1.value, "url", path.as_uri())
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield path
    torch.hub.set_dir(before)


def test_torchvisions_own_loader_fills_the_backbone_of_a_detector(hub, theirs):
    model = minidet.create_model("yolof-r18-c5", 3, frozen_norm=True).eval()
    head_before = model.head.class_predictor.weight.clone()
    load_backbone_weights(model)
    pixels = torch.rand(1, 3, 64, 96) * 255
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    with torch.no_grad():
        expected = their_features(theirs, (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        torch.testing.assert_close(model.features(pixels / 255)["c5"], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.head.class_predictor.weight, head_before)
    assert (hub.parent / "hub" / "checkpoints" / hub.name).exists()


def test_a_download_that_fails_says_where_to_get_the_file(monkeypatch, tmp_path, hub):
    url = (tmp_path / "nowhere-12345678.pth").as_uri()
    monkeypatch.setattr(models.ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    with pytest.raises(WeightsError, match=f"could not download {re.escape(url)} .*give its path"):
        load_backbone_weights(ResNet("resnet18"))


def test_a_download_that_is_not_what_its_name_says_is_refused(monkeypatch, hub):
    wrong = hub.rename(hub.with_name("resnet18-00000000.pth"))
    monkeypatch.setattr(models.ResNet18_Weights.IMAGENET1K_V1.value, "url", wrong.as_uri())
    with pytest.raises(WeightsError, match="could not download"):
        load_backbone_weights(ResNet("resnet18"))


@pytest.mark.parametrize("name", BUILDERS)
def test_torchvision_has_weights_for_every_backbone_under_the_first_recipes_name(name):
    weights = models.get_weight(TORCHVISION_WEIGHTS[name])
    assert weights.meta["categories"][0] == "tench"
    assert str(weights).endswith("IMAGENET1K_V1")
    preset = weights.transforms()
    assert [255 * x for x in preset.mean] == pytest.approx([123.675, 116.28, 103.53])
    assert [255 * x for x in preset.std] == pytest.approx(IMAGENET_STD)
    with torch.device("meta"):
        their_keys = models.get_model(name.replace("-", "_"), weights=None).state_dict()
        parts = {"conv1": "stem.conv", "bn1": "stem.bn", **{f"layer{i}": f"c{i + 1}" for i in range(1, 5)}}
        wanted = set(ResNet(name, frozen_norm=False).state_dict())
    ours = {f"{parts[k.split('.')[0]]}.{k.split('.', 1)[1]}" for k in their_keys if not k.startswith("fc.")}
    assert ours == wanted


@pytest.mark.parametrize("kind", ["plain.pth", "training.pth", "plain.safetensors"])
@pytest.mark.parametrize("frozen_norm", [True, False])
def test_local_files_are_read(kind, frozen_norm, theirs, tmp_path):
    path, state = tmp_path / kind, theirs.state_dict()
    if kind == "plain.safetensors":
        save_file(state, path)
    else:
        torch.save(state if kind == "plain.pth" else {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    network = ResNet("resnet18", frozen_norm=frozen_norm, frozen_stages=5).eval()
    load_backbone_weights(network, path)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network(x)["c5"], their_features(theirs, x), rtol=1e-4, atol=1e-4)


def test_old_files_without_counters_of_batches_are_read(theirs):
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    network = ResNet("resnet18", frozen_norm=False)
    load_backbone_weights(network, state)
    assert torch.equal(network.c5[1].bn2.running_var, theirs.layer4[1].bn2.running_var)


def test_torchvisions_weights_are_refused_by_caffes_network_with_what_to_set_instead():
    with torch.device("meta"):
        model = ResNet("resnet50", stride_in_1x1=True)
    with pytest.raises(WeightsError) as caught:
        load_backbone_weights(model, {})
    text = str(caught.value)
    assert "would load and compute something else" in text
    assert "stride_in_1x1=False" in text
    assert "pixel_mean=(123.675, 116.28, 103.53) and pixel_std=(58.395, 57.12, 57.375)" in text


def test_weights_of_caffes_flavour_go_into_caffes_network_with_red_first():
    state = models.resnet50(weights=None).state_dict()
    network = ResNet("resnet50", stride_in_1x1=True)
    load_backbone_weights(network, state, caffe=True)
    assert torch.equal(network.stem.conv.weight, state["conv1.weight"][:, [2, 1, 0]])
    assert torch.equal(network.c4[3].conv2.weight, state["layer3.3.conv2.weight"])
    with pytest.raises(WeightsError, match="Build the model with stride_in_1x1=True"):
        load_backbone_weights(ResNet("resnet18"), {}, caffe=True)
    with pytest.raises(WeightsError, match="give a file"):
        load_backbone_weights(network, "imagenet", caffe=True)


def test_pictures_that_are_normalised_in_another_way_are_noticed(theirs):
    model = minidet.create_model("yolof-r18-c5", 3, pixel_std=(1.0, 1.0, 1.0))
    with pytest.raises(WeightsError, match=r"expect pictures normalised with .* pixel_std=\(58.395, 57.12, 57.375\)"):
        load_backbone_weights(model, theirs.state_dict())


def test_what_does_not_fit_is_named_and_changes_nothing(theirs):
    network = ResNet("resnet18")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    broken = dict(theirs.state_dict())
    broken["layer2.0.conv1.gain"] = broken.pop("layer2.0.conv1.weight")
    broken["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(WeightsError) as caught:
        load_backbone_weights(network, broken)
    assert "c3.0.conv1.weight: missing" in str(caught.value)
    assert "c3.0.conv1.gain: not part of resnet18" in str(caught.value)
    assert "stem.conv.weight: shape [64, 1, 7, 7] in the file, [64, 3, 7, 7] in the model" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_networks_without_a_resnet_are_told_so():
    with pytest.raises(WeightsError, match="this one is a CSPDarknet. Darknets start"):
        load_backbone_weights(minidet.create_model("yolox-nano"))
