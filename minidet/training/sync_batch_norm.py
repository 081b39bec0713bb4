"""Batch normalisation over the parts of a batch that several processes hold, as if one process held it whole.

PyTorch's own `SyncBatchNorm` computes on GPUs alone; this one is the same in plain operations, for every device.

Source: chapter 11.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance are those of all ranks' images; outside training it is the same."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.to(self.weight.dtype)  # [B, C, H, W]; float32 also where the network runs in half precision
        here = values.new_full((1,), x.numel() / x.shape[1])
        sums = sum_over_ranks(torch.cat([values.sum(dim=(0, 2, 3)), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count  # [C]
        centred = values - mean[:, None, None]
        # Not the mean of squares minus the square of the mean: that would lose half of the digits.
        variance = sum_over_ranks(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        factor = self.weight * (variance + self.eps).rsqrt()
        return (centred * factor[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let every batch normalisation of a model look at the images of all ranks; weights and their names stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, as no batch normalisation is a whole model
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                other = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                other.__dict__.update(child.__dict__)  # the very same parameters, buffers and mode
                setattr(parent, name, other)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; gradients find their way back to every rank that took part."""
    return _SumOverRanks.apply(values)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        return _total(values)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        # Each rank's loss depends on what this rank put in, and what counts is the sum of all losses.
        return _total(gradient)


def _total(values: Tensor) -> Tensor:
    total = values.clone()
    if dist.is_initialized():  # else there is one process, whose sum is the total
        dist.all_reduce(total)
    return total
