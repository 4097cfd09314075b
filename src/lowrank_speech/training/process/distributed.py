"""Data-parallel training by several processes (torchrun): who they are, and sums over them.

``python -m torch.distributed.run --standalone --nproc-per-node 2 -m lowrank_speech.stages.train ...``, with
``training.processes: 2``. The batches of an epoch are dealt in turn; each process adds up the gradients of its own,
and once per update they are summed over the processes (gloo on CPUs, nccl on GPUs). Process 0 alone writes.

torch.distributed is used as it is. accelerate, that is DistributedDataParallel, averages gradients over processes, each
with equal weight; losses here are means per label, so a batch has the weight of its labels. It also synchronises around
the forward pass of one module, of which a task here calls several methods.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lowrank_speech.errors import UserError

# Elements of gradients that are sent at once: 100 MB.
CHUNK = 25_000_000
# While the first process goes through a long corpus the others wait. Nobody waits for one that died: torchrun ends all.
LONGEST_WAIT = timedelta(hours=2)


def rank() -> int:
    """This process's number, as torchrun set it; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one, torchrun, is gone (Linux).

    Else processes whose torchrun was killed would go on, and save into the folder of the run that takes their place.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Ranks:
    """One of ``world`` processes, number ``rank``; by default the only one, for which nothing is sent."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None):
        self.rank, self.world, self.device = rank, world, device or torch.device("cpu")

    @classmethod
    def start(cls, processes: int, device: torch.device) -> "Ranks":
        """Join the other processes. UserError where there are not ``processes`` of them."""
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world != processes:
            raise UserError(
                f"training.processes is {processes}, but {world} {'is' if world == 1 else 'are'} running: set it to "
                f"{world}, or start `python -m torch.distributed.run --standalone --nproc-per-node {processes} -m ...`"
            )
        if world == 1:
            return cls()
        end_with_parent()
        if device.type == "cuda":
            number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if number >= there:
                raise UserError(
                    f"training.processes: process {number + 1} on this machine finds {there} GPU(s), one for each "
                    f"process: set processes: {there}, or device: cpu"
                )
            torch.cuda.set_device(number)
        else:  # the cores are shared
            torch.set_num_threads(max(1, torch.get_num_threads() // world))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        return cls(rank(), world, device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums of each number over the processes, the same on each."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value (CPU tensors, numbers) of every process, in their order; on each."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What ``make()`` gives in process 0, which alone calls it; pickled for the others, who wait for it.

        Its UserError ends all of them; the first one says it.
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
        """Wait until every process has come here."""
        self.sum([0.0])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over the processes, in place; what has one on any process has one on each after."""
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
        """Give every process the values of process 0."""
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
    """Lists of ``size`` batches, those of one update each; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
