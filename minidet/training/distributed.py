"""Several processes that train one model: who they are, and the few things that they say to each other.

`torchrun --nproc-per-node 4 -m minidet train ...` starts the same command four times. Each process ("rank") works on
its part of every batch; the gradients are added up. Rank 0 alone writes files and speaks.

What is said passes as JSON or as a checkpoint without code: nothing that arrives can be run.

Source: chapter 11.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minidet.errors import MinidetError, RunError
from minidet.training.hardware import choose_device

Value = TypeVar("Value")
MISTAKE = 2  # exit code of all ranks when one error concerns all; the first one says which


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them. Without torchrun there is one, and nothing is ever sent.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank, local_size: the same among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; on a GPU nothing waits for it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, number: int, smallest: bool = False) -> int:
        """The largest (or smallest) of the ranks' numbers, the same for all."""
        if self.size == 1:
            return number
        agreed = torch.tensor(number)
        dist.all_reduce(agreed, dist.ReduceOp.MIN if smallest else dist.ReduceOp.MAX)
        return int(agreed)

    def share(self, value: Any) -> Any:
        """What the first rank has, for all: plain JSON values; those of the other ranks are not looked at."""
        if self.size == 1:
            return value
        return json.loads(self._send(json.dumps(value).encode() if self.first else b""))

    def share_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """The first rank's checkpoint, or None, for all."""
        if self.size == 1:
            return state
        buffer = io.BytesIO()
        if self.first:
            torch.save(state, buffer)
        return torch.load(io.BytesIO(self._send(buffer.getvalue())), map_location="cpu", weights_only=True)

    def share_weights(self, model: nn.Module) -> None:
        """Give the model of every rank the weights and statistics of the first one's."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def gather(self, value: Any) -> list[Any]:
        """What all ranks have, rank 0 first, for all: plain JSON values."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        longest = self.agree(len(data))
        ours = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)  # JSON may end in spaces
        all_of_them = [torch.empty_like(ours) for _ in range(self.size)]
        dist.all_gather(all_of_them, ours)
        return [json.loads(each.numpy().tobytes()) for each in all_of_them]

    def at_first(self, function: Callable[[], Value]) -> Value:
        """Let the first rank do something; all get its result (plain JSON values), or end when it fails.

        Raises:
            MinidetError: what `function` raised, at the first rank, which tells it; the others leave without a word.
        """
        if self.size == 1:
            return function()
        value = None
        if self.first:
            try:
                value = function()
            except MinidetError:
                self.share([True, None])
                raise
        failed, value = self.share([False, value])
        if failed:
            raise SystemExit(MISTAKE)
        return value

    def at_first_only(self, function: Callable[[], Value]) -> Value | None:
        """The same for a result that is not sent: the other ranks get None."""
        results: list[Value] = []
        self.at_first(lambda: results.append(function()))
        return results[0] if results else None

    def fail(self, text: str) -> None:
        """End all ranks for a reason that each of them knows; the first one tells it, the others leave silently."""
        if self.first:
            raise RunError(text)
        raise SystemExit(MISTAKE)

    def check_same(self, settings: dict[str, Any], differences: Callable[[Any, Any], list[str]]) -> None:
        """See that all ranks were started with the same settings.

        Raises:
            RunError: they were not; names the rank and what is different.
        """
        first, *others = self.gather(settings)
        for rank, other in enumerate(others, 1):
            found = differences(first, other)
            if found:
                lines = "\n".join(f"  {line}" for line in found)
                self.fail(
                    f"rank {rank} was started with other settings than rank 0 (here: the run):\n{lines}\n"
                    "Give the same command, the same data and the same version of minidet on every machine."
                )

    def _send(self, data: bytes) -> bytes:
        """Bytes of the first rank, for all."""
        length = torch.tensor(len(data))
        dist.broadcast(length, 0)
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.first else None
        content = torch.empty(int(length), dtype=torch.uint8) if content is None else content
        dist.broadcast(content, 0)
        return content.numpy().tobytes()


def launched_ranks() -> Ranks:
    """The ranks that torchrun started, as its environment variables say; a single one without it.

    Raises:
        RunError: the variables are not whole.
    """
    if "WORLD_SIZE" not in os.environ:
        return Ranks()
    try:
        return Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    except (KeyError, ValueError) as error:
        raise RunError(
            f"WORLD_SIZE is set, but {error} is not as it should be: several processes are started by "
            "`torchrun --nproc-per-node N -m minidet train ...`. For a single one, unset WORLD_SIZE."
        ) from error


def restarts() -> int:
    """How often torchrun has started these processes anew, after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def choose_rank_device(wish: str | torch.device, ranks: Ranks) -> torch.device:
    """The device of this rank: with CUDA each on a machine has a GPU of its own.

    Raises:
        RunError: there are fewer GPUs than processes, or the device is not one for several processes.
    """
    device = choose_device(wish)
    if ranks.size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise RunError(
            f"device {wish} cannot be shared by {ranks.size} processes. Choose --device cuda (each process takes a GPU "
            "of its own) or --device cpu."
        )
    if ranks.local_size > torch.cuda.device_count():
        raise RunError(
            f"{ranks.local_size} processes were started on this machine, but it has {torch.cuda.device_count()} GPUs. "
            "Start one for each (torchrun --nproc-per-node), or choose --device cpu."
        )
    return torch.device("cuda", ranks.local_rank)


@contextlib.contextmanager
def process_group(device: torch.device, ranks: Ranks) -> Iterator[None]:
    """Connect the ranks while the block runs: NCCL between GPUs where there is NCCL, gloo for everything else.

    Raises:
        RunError: the connection cannot be made, or broke because another rank ended.
    """
    if ranks.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        nccl = device.type == "cuda" and dist.is_nccl_available()
        # The place where ranks leave their addresses outlives them: a new life must not read those of the last one.
        store, rank, size = next(iter(dist.rendezvous("env://")))
        store = dist.PrefixStore(f"life {restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        yield
    except (dist.DistError, RuntimeError) as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise RunError(
            f"rank {ranks.rank} of {ranks.size} lost the others: one of them ended, or the network broke "
            f"({str(error).splitlines()[0]}). What ended it stands above, or on its own machine."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def connected(model: nn.Module) -> DistributedDataParallel:
    """A model that averages its gradients with those of the other ranks during the backward pass.

    All begin with the first rank's weights. Running statistics stay each rank's own; the first one's are kept.
    """
    new_name = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # of newer torch
    own_buffers = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **own_buffers)


def span_of(count: int, ranks: Ranks) -> range:
    """Which of `count` things are this rank's: a stretch of them, of equal length as far as that goes."""
    return range(count * ranks.rank // ranks.size, count * (ranks.rank + 1) // ranks.size)


class Stretch:
    """Some consecutive pictures of a data set, with all that an evaluation asks a data set for."""

    def __init__(self, dataset: Any, span: range) -> None:
        self.dataset, self.span = dataset, span
        self.records = dataset.records[span.start : span.stop]
        self.annotations_path = dataset.annotations_path
        self.class_names, self.category_ids = dataset.class_names, dataset.category_ids

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        return self.dataset[self.span[index]]
