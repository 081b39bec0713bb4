"""The moving average of the weights."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from minidet.training.ema import Ema


def toy() -> nn.Linear:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3))
        model.bias.fill_(1.0)
    return model


def history(updates: int) -> list[dict[str, torch.Tensor]]:
    """Averages of the toy of the official code: before each update the weight grows by 1 and the bias doubles."""
    model = toy()
    ema = Ema(model)
    averages = []
    for _ in range(updates):
        with torch.no_grad():
            model.weight += 1
            model.bias *= 2
        ema.update(model)
        averages.append({key: value.clone() for key, value in ema.model.state_dict().items()})
    return averages


def test_the_first_two_averages_are_those_of_the_official_code():
    first, second = history(2)
    torch.testing.assert_close(first["weight"][0], torch.tensor([0.9995002, 1.9995002, 2.9995000]), rtol=1e-6, atol=0)
    torch.testing.assert_close(first["bias"], torch.tensor([1.9995002, 1.9995002]), rtol=1e-6, atol=0)
    torch.testing.assert_close(second["bias"], torch.tensor([3.9980010, 3.9980010]), rtol=1e-6, atol=0)


def test_the_whole_toy_history_of_the_official_code_is_reproduced(yolox_reference):
    expected = json.loads((yolox_reference / "schedule_ema.json").read_text())["ema"]["toy"]["ema_after_each_update"]
    for ours, theirs in zip(history(len(expected)), expected, strict=True):
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], torch.tensor(value), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("updates", "decay"), [(1, 0.000499775), (100, 0.0487608), (2000, 0.6319941), (20000, 0.9997546), (50000, 0.9998)]
)
def test_the_memory_grows_to_its_end(updates, decay):
    assert Ema(nn.Linear(1, 1)).decay_at(updates) == pytest.approx(decay, rel=1e-5)


def test_every_official_decay_is_reproduced(yolox_reference):
    expected = json.loads((yolox_reference / "schedule_ema.json").read_text())["ema"]["decay_after_n_updates"]
    ema = Ema(nn.Linear(1, 1))
    for updates, decay in expected.items():
        assert ema.decay_at(int(updates)) == pytest.approx(decay, rel=1e-12)


def test_statistics_of_batch_norm_are_averaged_and_counters_copied():
    model = nn.BatchNorm2d(1, momentum=1.0)
    ema = Ema(model, decay=0.5, ramp=1)
    model(torch.tensor([10.0, 20.0]).view(2, 1, 1, 1))  # mean 15, variance 50
    ema.update(model)
    d = ema.decay_at(1)
    assert ema.model.running_mean.item() == pytest.approx((1 - d) * 15)
    assert ema.model.running_var.item() == pytest.approx(d * 1 + (1 - d) * 50)
    assert ema.model.num_batches_tracked.item() == 1


def test_the_average_neither_learns_nor_touches_the_model():
    model = toy().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ema = Ema(model)
    ema.update(model)
    assert model.training
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert ema.model.weight.data_ptr() != model.weight.data_ptr()


def test_an_average_that_was_saved_goes_on_as_if_nothing_had_happened():
    model = toy()
    ema = Ema(model)
    ema.update(model)
    state = {"model": {key: value.clone() for key, value in ema.model.state_dict().items()}, "updates": ema.updates}
    assert ema.state_dict().keys() == state.keys()
    other = Ema(nn.Linear(3, 2))
    other.load_state_dict(state)
    with torch.no_grad():
        model.weight += 1
    for each in (ema, other):
        each.update(model)
    assert other.updates == 2
    assert torch.equal(ema.model.weight, other.model.weight)
