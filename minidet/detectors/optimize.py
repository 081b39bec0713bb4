"""A detector for prediction alone: the same detections in a fraction of the time.

What it does, and what each is worth: the README has the figures, `minidet bench` measures them on your machine.

- every norm goes into the convolution before it, the Focus stem becomes one convolution (`layers/fold.py`);
- feature maps have their channels innermost, which most processors compute faster;
- weights are cast to half precision once. Autocast, made for training, casts them again at every call;
- `torch.compile` fuses what is left: activations, additions, concatenations go into the convolutions' own loops.

Decoding, scores and non-maximum suppression stay float32: in half precision corners of boxes become whole pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

from minidet.assign import DensePredictions
from minidet.detectors.detector import Detector
from minidet.errors import MinidetError
from minidet.layers.fold import activate_in_place, focus_to_convolution, fold_norms

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def optimize(model: Detector, precision: str = "fp32", compile: bool | str | Callable = False) -> Detector:
    """A copy of a detector that predicts as fast as it can, and can do nothing else.

    It is used like the original: `model(images)`, `model.dense(images)`, thresholds, input size. It cannot be trained
    or saved; keep the original for that.

    Args:
        model: any detector, on the device where it will predict; it is not changed.
        precision: of the network: "fp32" (differs from the original in the last bits only), "bf16", or on a CUDA GPU
            "fp16".
        compile: let `torch.compile` translate the network, from pixels to decoded boxes, as one graph; or a backend
            of it. The first call, and that with a second size of input, then take a minute or so; a CPU needs a C++
            compiler.

    Raises:
        MinidetError: the precision is not known or not possible there, or the model is such a copy already.
    """
    if model.optimized:
        raise MinidetError(f"{model.name}: this model is optimized already; give the original to minidet.optimize")
    if precision not in PRECISIONS:
        raise MinidetError(f"precision {precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and model.device.type != "cuda":
        raise MinidetError(f"precision fp16 needs a CUDA GPU, but the model is on {model.device}; choose bf16 or fp32")
    fast = copy.deepcopy(model).eval()
    fast.last_assignment = None
    fold_norms(fast)
    focus_to_convolution(fast)
    activate_in_place(fast)
    fast.requires_grad_(False)
    for parameter in fast.parameters():  # not buffers: what pixels are normalised with stays exact
        parameter.data = parameter.data.to(PRECISIONS[precision])
    fast.backbone.register_forward_pre_hook(_in_precision_of_weights)
    if fast.device.type != "mps":
        fast.to(memory_format=torch.channels_last)
    dense = type(fast).dense_of
    if compile:
        dense = _translated(dense, "inductor" if compile is True else compile)
    fast._dense = torch.no_grad()(dense)
    fast.optimized = True
    return fast


def _in_precision_of_weights(network: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].to(next(network.parameters()).dtype),)


def _translated(
    dense_of: Callable[[Detector, Tensor], DensePredictions], backend: str | Callable
) -> Callable[[Detector, Tensor], DensePredictions]:
    # torch.compile translates a function at most 8 times, whoever calls it; so each model has a function of its own.
    own = FunctionType(dense_of.__code__.replace(), dense_of.__globals__, dense_of.__name__)
    translated = torch.compile(own, fullgraph=True, backend=backend)

    def dense(model: Detector, x: Tensor) -> DensePredictions:
        try:
            return translated(model, x)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            raise MinidetError(
                f"{model.name}: torch.compile cannot translate the network here ({reason}). On a CPU it needs a C++ "
                "compiler such as g++ (Debian, Ubuntu: apt install g++); or leave compile out."
            ) from error

    return dense
