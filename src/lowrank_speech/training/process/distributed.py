"""Data-parallel training with several processes.

``python -m lowrank_speech.training.process.torchrun 2 lowrank_speech.stages.train ...``, and ``training.processes: 2``.
The processes take the batches of an epoch in turn. Each adds up the gradients of its own batches, and once per update
they are summed over the processes (gloo on CPUs, nccl on GPUs). Only process 0 writes.

Why not accelerate: its DistributedDataParallel averages gradients over processes with equal weights, but losses here
are means per label, so a batch must be weighted by its labels. It also synchronises around the forward pass of one
module, but a task here calls several methods of it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.process import end_with_parent

# Number of gradient elements sent at once: 100 MB.
CHUNK = 25_000_000
# The others wait while the first process reads a long corpus. If a process dies, torchrun ends all of them.
LONGEST_WAIT = timedelta(hours=2)


def rank() -> int:
    """The rank of this process, set by torchrun; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


class Ranks:
    """Process number ``rank`` of ``world``; by default the only one, which does not communicate."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None):
        self.rank, self.world, self.device = rank, world, device or torch.device("cpu")

    @classmethod
    def start(cls, processes: int, device: torch.device) -> "Ranks":
        """Join the other processes. Raises UserError if their number is not ``processes``."""
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world != processes:
            raise UserError(
                f"training.processes is {processes}, but {world} {'is' if world == 1 else 'are'} running: set it to "
                f"{world}, or start `python -m lowrank_speech.training.process.torchrun {processes} ...`"
            )
        if world == 1:
            return cls()
        end_with_parent(os.getppid())  # the parent is torchrun; its processes must not outlive it
        if device.type == "cuda":
            number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if number >= there:
                raise UserError(
                    f"training.processes: process {number + 1} on this machine has no GPU of its own, because there "
                    f"{'is' if there == 1 else 'are'} only {there}; set processes: {there}, or device: cpu"
                )
            torch.cuda.set_device(number)
        else:  # the processes share the cores
            torch.set_num_threads(max(1, torch.get_num_threads() // world))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        return cls(rank(), world, device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over the processes; every process gets the sums."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values (CPU tensors, numbers) of all processes, by rank; every process gets them."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], Any]) -> Any:
        """The result of ``make()``, which only process 0 calls; it sends the result to the others, pickled.

        A UserError in ``make()`` ends all processes; only the first one reports it.
        """
        if self.world == 1:
            return make()
        made: list[Any] = [None, None]
        if self.first:
            try:
                made[0] = make()
            except UserError as error:
                made[1] = error
        dist.broadcast_object_list(made, 0, device=self.device)
        found, error = made
        if error is not None:
            raise error if self.first else SystemExit(2)
        return found

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.sum([0.0])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over the processes in place. A parameter with a gradient in one process gets one in all."""
        if self.world == 1:
            return
        having = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=self.device)
        dist.all_reduce(having, dist.ReduceOp.MAX)
        chosen = [p for p, any_has in zip(parameters, having.tolist(), strict=True) if any_has]
        for p in chosen:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for chunk in _chunks(chosen):
            flat = torch.cat([p.grad.flatten() for p in chunk])
            dist.all_reduce(flat)
            for p, part in zip(chunk, flat.split([p.numel() for p in chunk]), strict=True):
                p.grad.copy_(part.view_as(p))

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the values of process 0 to every process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def stop(self) -> None:
        """Leave the other processes."""
        if self.world > 1:
            dist.destroy_process_group()


def _chunks(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    chunk, size = [], 0
    for p in parameters:
        if chunk and size + p.numel() > CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk, size = [*chunk, p], size + p.numel()
    if chunk:
        yield chunk


def grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of ``size`` batches, one per update; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
