"""The largest batch that fits into memory: tried with real steps on a GPU, measured and reckoned on a CPU.

Source: chapter 11.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from minidet.data.augment import random_size
from minidet.data.picture_store import free_memory
from minidet.detectors import Detector
from minidet.training.ema import Ema
from minidet.training.out_of_memory import give_back_memory, is_out_of_memory
from minidet.training.recipe import Recipe, make_optimizer
from minidet.training.report import LossLog
from minidet.training.state import TrainingState
from minidet.training.step import training_step

OBJECTS = 100  # in each picture of a trial: assignment and losses grow with them
SHARE = 0.9  # of the memory is used; the rest is for what differs from step to step
OVERHEAD = 1.5  # on a CPU, a step's peak over what it keeps for the backward pass


def largest(fits: Callable[[int], bool], highest: int) -> int:
    """The largest number from 1 to `highest` that fits, 0 if not even 1 does; what is less than a fit fits too.

    Doubles until something does not fit, then halves the gap: some 2 log2(n) trials.
    """
    good, bad = 0, None
    size = 1
    while bad is None and good < highest:
        if fits(size):
            good, size = size, min(2 * size, highest)
        else:
            bad = size
    while bad is not None and bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def largest_batch(
    model: Detector,
    recipe: Recipe,
    highest: int,
    device: torch.device,
    precision: str,
    memory: int | None = None,
) -> int:
    """How many images a step of training can take at once, on this device; at most `highest`.

    Each trial is a whole step with optimiser and average, at the largest size of multi-scale training and with many
    objects, of a copy of the model. On a GPU sizes are tried until one does not fit. A CPU slows down to a crawl, or
    ends the process, before it says that memory is out; so there, one image and two are tried, and from what they keep
    for the backward pass follows what more of them would need.

    Args:
        model: on its device.
        recipe: as it will be run; its batch size is not looked at.
        highest: the largest number that is wanted.
        device, precision: of the network.
        memory: bytes that may be used; None: nine tenths of what is free.

    Returns:
        The number of images; 0 if not even one fits.
    """
    size_hw = tuple(-(-side // model.size_divisor) * model.size_divisor for side in model.input_hw)
    if recipe.multi_scale is not None:
        highest_row = recipe.multi_scale[1]
        size_hw = random_size(np.random.default_rng(0), (highest_row, highest_row), model.input_hw)  # there is one
    trial = Trial(model, recipe, size_hw, device, precision)
    if device.type == "cpu":
        if highest == 1 or not trial.fits(1):
            return int(trial.fits(1))
        first, second = trial.kept_bytes(1), trial.kept_bytes(2)
        each = max(second - first, 1) * OVERHEAD
        memory = SHARE * free_memory() if memory is None else memory
        return max(min(int((memory - trial.weight_bytes) / each), highest), 0)
    return largest(lambda size: trial.fits(size, memory), highest)


class Trial:
    """A copy of everything that learns, to take steps with that count for nothing."""

    def __init__(
        self, model: Detector, recipe: Recipe, size_hw: tuple[int, int], device: torch.device, precision: str
    ) -> None:
        model = copy.deepcopy(model).train()
        model.use_l1 = True
        ema = None if recipe.ema_decay is None else Ema(model, recipe.ema_decay, recipe.ema_ramp)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.state = TrainingState(model, make_optimizer(model, recipe), ema, scaler, losses=LossLog(read_every=2**31))
        self.recipe, self.size_hw, self.device, self.precision = recipe, size_hw, device, precision
        # Weights, gradients, momentum, average.
        self.weight_bytes = 4 * sum(value.nbytes for value in model.state_dict().values())

    def fits(self, count: int, memory: float | None = None) -> bool:
        """Whether a step with so many images finds enough memory."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            memory = SHARE * free if memory is None else memory
        try:
            self.step(count)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        else:
            fits = self.device.type != "cuda" or torch.cuda.max_memory_allocated(self.device) - before <= memory
        self.state.optimizer.zero_grad(set_to_none=True)
        give_back_memory(self.device)
        return fits

    def step(self, count: int) -> None:
        """A step with random pictures, full of objects."""
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, *self.size_hw), dtype=torch.uint8, generator=random)
        targets = [self._target(random) for _ in range(count)]
        clip = self.recipe.clip_grad_norm
        training_step(self.state, images.to(self.device), targets, self.precision, clip, "a trial step")

    def kept_bytes(self, count: int) -> int:
        """Bytes that a forward pass keeps for the backward pass."""
        kept: dict[int, int] = {}

        def note(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()  # many tensors can share one piece of memory
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            self.step(count)
        self.state.optimizer.zero_grad(set_to_none=True)
        return sum(kept.values())

    def _target(self, random: torch.Generator) -> dict[str, Tensor]:
        height, width = self.size_hw
        sides = torch.tensor([width, height], dtype=torch.float32)
        centers = torch.rand(OBJECTS, 2, generator=random) * sides
        half = torch.rand(OBJECTS, 2, generator=random) * sides / 8 + 4
        labels = torch.randint(0, self.state.model.num_classes, (OBJECTS,), generator=random)
        return {"boxes": torch.cat([centers - half, centers + half], dim=1), "labels": labels}
