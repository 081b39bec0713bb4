"""Our weights files and the official ones: what fits is loaded, what does not is named, nothing in them runs."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

import minidet
from minidet.assign import SimOTA
from minidet.detectors.official import translate_names
from minidet.detectors.weights import load_state, transfer_weights
from minidet.errors import WeightsError
from minidet.files import read_json


@pytest.fixture(scope="module")
def nano():
    return minidet.create_model("yolox-nano", num_classes=2, class_names=["cat", "dog"], input_hw=(64, 96))


@pytest.fixture(scope="module")
def official_nano(nano):
    """The same network as an official `state_dict`: names as in the official code, first convolution blue-green-red."""
    state = official_state(nano)
    assert "backbone.backbone.stem.conv.conv.weight" in state
    return state


def official_state(model):
    ours = model.state_dict()
    # The importer's own table cannot prove itself; spelling every official name out needs no table, only these rules.
    csp = {"enter": "conv1", "bypass": "conv2", "fuse": "conv3", "blocks": "m"}
    neck = {
        "lateral5": "lateral_conv0", "top_down4": "C3_p4", "lateral4": "reduce_conv1", "top_down3": "C3_p3",
        "down3": "bu_conv2", "bottom_up4": "C3_n3", "down4": "bu_conv1", "bottom_up5": "C3_n4",
    }  # fmt: skip
    head = {
        "stem": "stems", "class_branch": "cls_convs", "box_branch": "reg_convs",
        "class_predictor": "cls_preds", "box_predictor": "reg_preds", "object_predictor": "obj_preds",
    }  # fmt: skip
    state = {}
    for key, value in ours.items():
        part, *rest = key.split(".")
        if part == "head":
            _, level, name, *rest = rest
            rest = [head[name], level, *rest]
        elif part == "neck":
            rest = [neck[rest[0]], *(csp.get(name, name) for name in rest[1:])]
        elif rest[0] == "dark5" and rest[1] == "1":
            rest = ["dark5", "1", {"reduce": "conv1", "fuse": "conv2"}[rest[2]], *rest[3:]]
        else:
            rest = [csp.get(name, name) for name in rest]
        rest = [{"depthwise": "dconv", "pointwise": "pconv"}.get(name, name) for name in rest]
        state[".".join([{"backbone": "backbone.backbone", "neck": "backbone", "head": "head"}[part], *rest])] = value
    stem = "backbone.backbone.stem.conv.conv.weight"
    state[stem] = state[stem][:, [2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9]]
    return state


def test_weights_come_back_with_everything_that_the_model_was(nano, tmp_path):
    model = minidet.create_model(
        "yolox-nano",
        2,
        class_names=["cat", "dog"],
        input_hw=(64, 96),
        assigner=SimOTA(radius=2.0),
        pixel_mean=(1.0, 2, 3),
    )
    minidet.save_weights(model, tmp_path / "w.safetensors")
    again = minidet.load_model(tmp_path / "w.safetensors")
    assert again.config == model.config
    assert again.class_names == ["cat", "dog"]
    assert not again.training
    images = torch.rand(1, 3, 64, 96)
    assert torch.equal(again.dense(images).boxes, model.eval().dense(images).boxes)


def test_an_official_checkpoint_gives_the_same_network(nano, official_nano, tmp_path):
    torch.save({"model": official_nano, "start_epoch": 300}, tmp_path / "yolox_nano.pth")
    model = minidet.load_official("yolox-nano", tmp_path / "yolox_nano.pth", class_names=["cat", "dog"])
    assert model.num_classes == 2
    for key, value in nano.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_the_published_order_of_colours_is_turned_round_except_in_legacy_weights(official_nano):
    current = minidet.load_official("yolox-nano", official_nano)
    legacy = minidet.load_official("yolox-nano", {"model": official_nano}, legacy=True)
    key = "backbone.stem.conv.conv.weight"
    official = official_nano["backbone.backbone.stem.conv.conv.weight"]
    assert torch.equal(legacy.state_dict()[key], official)
    assert torch.equal(current.state_dict()[key][:, 3], official[:, 5])  # second phase: red is last there, first here
    assert current.pixel_mean is None
    assert legacy.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_a_wrong_variant_names_every_key(official_nano):
    broken = dict(official_nano)
    removed = broken.pop("head.stems.1.bn.weight")
    broken["head.stems.1.bn.gain"] = removed
    with pytest.raises(WeightsError) as caught:
        minidet.load_official("yolox-nano", broken)
    assert "head.levels.1.stem.bn.weight: missing" in str(caught.value)
    assert "head.levels.1.stem.bn.gain: not part of yolox-nano" in str(caught.value)


def test_classes_that_do_not_match_are_recognised(nano, tmp_path):
    other = minidet.create_model("yolox-nano", num_classes=5)
    state = {**nano.state_dict()}
    with pytest.raises(WeightsError, match="num_classes that does not match"):
        load_state(other, state, "these weights")


def test_fine_tuning_takes_all_but_the_class_predictors(nano):
    other = minidet.create_model("yolox-nano", num_classes=5)
    fresh = {key: value.clone() for key, value in other.state_dict().items()}
    left_out = transfer_weights(nano, other, "nano")
    assert len(left_out) == 6  # weight and bias on three levels
    for key, value in other.state_dict().items():
        assert torch.equal(value, fresh[key] if key in left_out else nano.state_dict()[key]), key


def test_weights_of_another_variant_are_not_transferred(nano):
    with pytest.raises(WeightsError, match="nano: holds a yolox-nano, but a yolox-tiny is to be trained"):
        transfer_weights(nano, minidet.create_model("yolox-tiny", num_classes=2), "nano")


def test_a_pickle_bomb_is_refused_and_never_run(tmp_path):
    marker = tmp_path / "it ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    for path in (tmp_path / "bomb.pth", tmp_path / "plain.pth"):
        if path.name == "bomb.pth":
            torch.save({"model": Bomb()}, path)
        else:
            path.write_bytes(pickle.dumps({"model": Bomb()}))
        with pytest.raises(WeightsError, match="not opened"):
            minidet.load_official("yolox-nano", path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn off", b"hello"])
def test_a_damaged_official_file_is_named(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="x.pth"):
        minidet.load_official("yolox-nano", tmp_path / "x.pth")


def test_files_that_are_not_ours_are_named(nano, tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        minidet.load_model(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_bytes(b"hello")
    with pytest.raises(WeightsError, match="import-official"):
        minidet.load_model(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="names no model"):
        minidet.load_model(tmp_path / "other.safetensors")
    minidet.save_weights(nano, tmp_path / "torn.safetensors")
    whole = (tmp_path / "torn.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        minidet.load_model(tmp_path / "torn.safetensors")


@pytest.mark.parametrize("name", ["nano", "tiny", "s", "m", "l", "x", "darknet53"])
def test_every_official_name_has_a_place_here(yolox_reference, name):
    layout = read_json(yolox_reference / "layouts.json")[name]
    own = minidet.create_model(f"yolox-{name}").state_dict()
    names = translate_names(key for key, _, _ in layout)
    assert set(names.values()) == set(own)
    assert all(list(own[names[key]].shape) == shape for key, shape, _ in layout)
