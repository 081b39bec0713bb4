"""How much work a model is: operations, parameters and memory, of the whole and of its parts.

Two conventions meet here, and papers rarely say which they mean. YOLOX's tables give GFLOPs, in which a multiply and an
add count two; for YOLOF multiply-adds (GMACs) are usual, in which they count one. So the first is twice the second.

Source: YOLOX, tables 2 and 3 ("GFLOPs"); YOLOF, table 1 and figure 3; chapters 02 and 08.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from minidet.detectors.detector import Detector

OUTSIDE = "decode"  # what happens in no part: raw boxes become boxes


@dataclass(frozen=True)
class PartCost:
    """What one part of a detector costs for one image."""

    name: str
    gmacs: float  # multiply-adds of its convolutions and norms, in units of 10^9
    trainable: int  # parameters that learn
    frozen: int  # parameters that do not; the buffers of norms, frozen or not, are no parameters
    activation_bytes: int  # kept from the forward pass until the backward pass, float32


@dataclass(frozen=True)
class Cost:
    """What a detector costs for one image of a certain size, part by part."""

    input_hw: tuple[int, int]
    parts: tuple[PartCost, ...]

    @property
    def total(self) -> PartCost:
        """All parts together."""
        figures = ("gmacs", "trainable", "frozen", "activation_bytes")
        return PartCost("total", *(sum(getattr(part, figure) for part in self.parts) for figure in figures))

    def part(self, name: str) -> PartCost:
        """The part called `name`, such as "backbone"."""
        return next(part for part in self.parts if part.name == name)

    def table(self) -> str:
        """The whole result as aligned plain text."""
        lines = [f"{'part':<10}{'GMACs':>9}{'trainable':>13}{'frozen':>12}{'activations, MiB':>18}"]
        for part in (*self.parts, self.total):
            memory = part.activation_bytes / 2**20
            lines.append(f"{part.name:<10}{part.gmacs:>9.1f}{part.trainable:>13,}{part.frozen:>12,}{memory:>18.1f}")
        height, width = self.input_hw
        return "\n".join([*lines, "", f"For one image, network input {height} x {width} (height x width), float32."])

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {"input_hw": list(self.input_hw), "parts": [asdict(part) for part in self.parts]}


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_gflops(model: Detector, input_hw: tuple[int, int] | None = None) -> float:
    """Operations of one forward pass over one image, in units of 10^9, as YOLOX's published tables count them.

    Twice the multiply-adds of `count_cost`, whose text says what is counted.

    Args:
        model: any detector; it is not changed.
        input_hw: (height, width) of the network input; the model's own by default.
    """
    return 2 * count_cost(model, input_hw).total.gmacs


def count_cost(model: Detector, input_hw: tuple[int, int] | None = None) -> Cost:
    """Multiply-adds, parameters and activation memory of each part of a detector: backbone, encoder or neck, head.

    Nothing is computed: a copy without weights runs on PyTorch's "meta" device, where tensors have shapes only. So the
    figures are exact for every size, also where a layer of stride 2 rounds up.

    - Multiply-adds: a convolution's multiply and add count one; a batch norm counts two an element, as fvcore counts it
      (together they are 0.1 to 0.4 % of the whole). A frozen norm in a stage that learns counts nothing, as in the
      published code, where it is a plain scale and shift. Activations, pooling and decoding count nothing either.
    - Activation memory: the bytes that autograd keeps in a training step between forward and backward pass: every
      storage that an operation of the part saves for its gradient, counted once, and in the part that saved it first.
      Parameters and buffers do not count. Where nothing learns, nothing is kept: frozen stages cost none. Decoding is
      counted, as a part of its own; losses and assignment are not. It is measured for a batch of two and halved, as a
      batch norm cannot train on a single value.

    Args:
        model: any detector; it is not changed.
        input_hw: (height, width) of the network input; the model's own by default.

    Source: YOLOF, figure 3 and table 1; chapter 02.
    """
    height, width = input_hw or model.input_hw
    shadow = without_weights(model).train()
    owned = {tensor.untyped_storage()._cdata for tensor in (*shadow.parameters(), *shadow.buffers())}
    names = [*(name for name, _ in shadow.named_children()), OUTSIDE]
    macs, saved = dict.fromkeys(names, 0), {}
    current = OUTSIDE

    def enter(name: str) -> None:
        nonlocal current
        current = name

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            macs[current] += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.BatchNorm2d) or not output.requires_grad:
            macs[current] += 2 * output.numel()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            saved.setdefault(storage._cdata, (current, storage))  # holding the storage, so that no other gets its name
        return tensor

    for name in names[:-1]:
        part = shadow.get_submodule(name)
        part.register_forward_pre_hook(lambda *_, name=name: enter(name))
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | FrozenBatchNorm2d):
                module.register_forward_hook(count)
        part.register_forward_hook(lambda *_: enter(OUTSIDE))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow.dense_of(torch.zeros(2, 3, height, width, device="meta"))

    memory = dict.fromkeys(names, 0)
    for name, storage in saved.values():
        memory[name] += storage.nbytes()
    parts = []
    for name in names:
        numbers = {True: 0, False: 0}  # learns -> how many
        for parameter in model.get_submodule(name).parameters() if name != OUTSIDE else ():
            numbers[parameter.requires_grad] += parameter.numel()
        parts.append(PartCost(name, macs[name] / 2 / 1e9, numbers[True], numbers[False], memory[name] // 2))
    return Cost((height, width), tuple(parts))


def without_weights(model: Detector) -> Detector:
    """A copy of a model whose parameters and buffers have shapes but no values (PyTorch's "meta" device)."""
    stand_ins: dict[int, Any] = {}
    for parameter in model.parameters():
        stand_ins[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        stand_ins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, stand_ins)
