"""Where a training runs: one device, or many processes that each see a part of every batch.

Accelerate finds the device and joins the processes (`accelerate launch`, `torchrun` or nothing at all: the same
program). Each process either holds every weight, or, sharded, its part of each (FSDP2, see `sharding`).

Where each holds all, gradients are summed here once a step, after the last micro-batch, and not by a wrapper around
the module: the vocabulary head runs outside the module's forward, a step may train any one of several networks, and
the normaliser of the loss (the weights of all micro-batches of all ranks) is known only then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask import __version__
from unmask.training.loss_guard import TrainingError
from unmask.training.sharding import local, shard

BUCKET_ELEMENTS = 2**25  # numbers in one message between processes: 128 MiB in float32


@dataclass(frozen=True)
class Engine:
    """One process of a training: its device, its rank, how many there are, and whether they share out the weights."""

    device: torch.device
    rank: int = 0
    world: int = 1
    sharded: bool = False

    @property
    def main(self) -> bool:
        """True on the one process that writes files."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the processes, in place, in buckets of one dtype."""
        if self.world == 1:
            return
        from accelerate.utils import reduce

        for bucket in _buckets(tensors):
            flat = reduce(torch.cat([tensor.flatten() for tensor in bucket]), reduction="sum")
            for tensor, part in zip(
                bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True
            ):
                tensor.copy_(part.view_as(tensor))

    def agree(self, modules: Iterable[nn.Module]) -> None:
        """Move modules to the device and give every process the weights and buffers of rank 0, or its part of each."""
        for module in modules:
            if self.world > 1:
                for tensor in (*module.parameters(), *module.buffers()):
                    sent = tensor.detach().to(self.device)
                    torch.distributed.broadcast(sent, src=0)
                    tensor.detach().copy_(sent)
            if self.sharded:
                shard(module, self.device)
            module.to(self.device)

    def gather(self, gradients: Sequence[Tensor], sums: Tensor) -> list[Tensor]:
        """Sum the gradients, and the float64 numbers `sums`, over the processes; the former as this process holds them.

        Sharded, the gradients have been averaged over the processes on the way back.
        """
        if not self.sharded:
            self.sum_([*gradients, sums])
            return [*gradients]
        self.sum_([sums])
        here = [local(gradient) for gradient in gradients]
        torch._foreach_mul_(here, self.world)
        return here

    def wait(self) -> None:
        """Go on when every process is here."""
        self.same(0)

    def all_well(self, problem: Exception | None, what: str) -> None:
        """OSError on every process where one of them had a problem; waits for all."""
        failed = torch.tensor([problem is not None], dtype=torch.int64, device=self.device)
        self.sum_([failed])
        if failed.item():
            own = "see the message of that process" if problem is None else str(problem)
            raise OSError(f"a process {what} ({failed.item()} of {self.world}): {own}") from problem

    def machine(self) -> dict[str, str | int]:
        """The causes of rounding besides the recipe: equal ones give the same weights to the bit (on a CPU)."""
        facts: dict[str, str | int] = {
            "unmask": __version__,
            "torch": torch.__version__,
            "processes": self.world,
        }
        if self.device.type == "cuda":
            return facts | {"device": torch.cuda.get_device_name(self.device)}
        threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
        return facts | {
            "device": self.device.type,
            "threads": threads,
            "instructions": instructions,
        }

    def share(self, micro_batches: int) -> int:
        """How many of an update's micro-batches this process computes: their number over that of processes, or one.

        ValueError where that is no whole number.
        """
        if micro_batches % self.world and self.world % micro_batches:
            raise ValueError(
                f"the processes share the micro-batches of an update, accumulation: want a multiple of their number, "
                f"{self.world}, or a divisor of it, got {micro_batches}"
            )
        return max(1, micro_batches // self.world)

    @contextmanager
    def together(self, step: int) -> Iterator[None]:
        """What goes wrong in a step where others wait for this process, or it for them, ends as a TrainingError."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1:
                raise
            first = str(error).partition("\n")[0]
            raise TrainingError(
                f"step {step} did not end on process {self.rank} of {self.world}: {first}. Where "
                "no memory was short here, another process was lost: look at its last message, then start all of them "
                "again by the same line; the training goes on from the last good state, on any number of processes."
            ) from error

    def same(self, value: int) -> int:
        """The value of rank 0, on every process; waits for all."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.int64, device=self.device)
        torch.distributed.broadcast(box, src=0)
        return int(box.item())


def launch(device: str | None = None, sharded: bool = False) -> Engine:
    """Join the processes of this training and take a device: the one named, else the best that there is.

    Under `accelerate launch` or `torchrun` each process takes its own GPU, or the CPU where there is none or the
    launcher was told `--cpu`; `device` then only says "cpu" or not. Weights are sharded where that is asked for here
    or by `accelerate launch --use_fsdp`, and there is more than one process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    told = (
        os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    )  # by `accelerate launch --cpu`
    cpu = device == "cpu" or told or not torch.cuda.is_available()
    if world == 1:
        return Engine(torch.device(device or ("cpu" if cpu else "cuda")))
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    if state.num_processes != world or state.device is None:
        raise RuntimeError(
            f"the launcher started WORLD_SIZE = {world} processes, Accelerate joined {state.num_processes} on "
            f"{state.device}: start all of them by one `accelerate launch` or `torchrun`"
        )
    sharded = sharded or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return Engine(state.device, state.process_index, state.num_processes, sharded)


def faster_in_bfloat16(device: torch.device, repeats: int = 7) -> bool:
    """Whether a matrix product takes less time in bfloat16 than in float32 (CPUs without such units are far slower)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def seconds(dtype: torch.dtype) -> float:
        a, b = (
            torch.ones(1024, 256, dtype=dtype, device=device),
            torch.ones(256, 1024, dtype=dtype, device=device),
        )
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            _ = a @ b
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < seconds(torch.float32)


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """Runs of tensors of one dtype, each run below BUCKET_ELEMENTS (or one tensor)."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.numel() > BUCKET_ELEMENTS):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
