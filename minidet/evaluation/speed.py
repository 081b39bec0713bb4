"""How much work a model is: floating-point operations by the convention of the published tables, and parameters.

Source: YOLOX, Table 2 and 3 ("GFLOPs"); chapter 08.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minidet.detectors.detector import Detector


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_gflops(model: Detector, input_hw: tuple[int, int] | None = None) -> float:
    """Operations of one forward pass over one image, in units of 10^9, as the published tables count them.

    A convolution's multiply and add count two; a batch norm counts four an element. Activations, pooling and
    post-processing count nothing. The network runs on the smallest input and the figure is scaled by the area, which is
    exact because the sides are multiples of the coarsest stride.

    Args:
        model: any detector; it is not changed.
        input_hw: (height, width) of the network input; the model's own by default.
    """
    height, width = input_hw or model.input_hw
    operations = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations
        if isinstance(module, nn.Conv2d):
            operations += 2 * output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.BatchNorm2d):
            operations += 4 * output.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    training, side = model.training, model.size_divisor
    try:
        model.eval()
        with torch.inference_mode():
            model.dense(torch.zeros(1, 3, side, side, device=model.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return operations * (height * width) / side**2 / 1e9
