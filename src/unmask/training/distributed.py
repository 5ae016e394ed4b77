"""The devices and processes of a training: one process, or several that share every batch.

The same program runs under `torchrun`, under `accelerate launch`, or alone. Each process holds
whole weights or, with sharding, a part of every weight.

Whole weights: gradients are summed here once a step, after the last micro-batch. A wrapper around
the module, such as DDP, cannot do this, for three reasons. The vocabulary head runs outside of the
module's forward pass. A step may train any one of several networks. The normalizer of the loss, the
weights of all micro-batches of all ranks, is known only after the last micro-batch.

Sharded weights: `torch.distributed.fsdp.fully_shard` (FSDP2; Zhao et al. 2023, arXiv 2304.11277).
Moments and EMA are sharded as the weights are. The blocks are gathered one at a time. Embedding and
head stay gathered from the forward pass to the end of the backward pass, because the head runs
after the forward pass. A teacher has no backward pass, so its embedding and head stay gathered
until the next round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask import __version__
from unmask.training.loss_guard import TrainingError

BUCKET_ELEMENTS = 2**25  # numbers in one message between processes: 128 MiB in float32

# torch.distributed.tensor takes seconds to import. An optimizer has imported it already, so the
# functions below import it when they run.


@dataclass(frozen=True)
class Engine:
    """One process of a training.

    Attributes:
        device: device of its weights
        rank: number of this process; process 0 writes the files
        world: number of processes
        sharded: True if each process holds a part of every weight
    """

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
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            torch.distributed.all_reduce(flat)
            sizes = [tensor.numel() for tensor in bucket]
            for tensor, part in zip(bucket, flat.split(sizes), strict=True):
                tensor.copy_(part.view_as(tensor))

    def broadcast_weights(self, modules: Iterable[nn.Module]) -> None:
        """Move modules to the device with the weights and buffers of rank 0, whole or sharded."""
        for module in modules:
            if self.world > 1:
                for tensor in (*module.parameters(), *module.buffers()):
                    sent = tensor.detach().to(self.device)
                    torch.distributed.broadcast(sent, src=0)
                    tensor.detach().copy_(sent)
            if self.sharded:
                shard(module, self.device)
            module.to(self.device)

    def sum_gradients(self, gradients: Sequence[Tensor], sums: Tensor) -> list[Tensor]:
        """Sum gradients and the float64 numbers `sums` over the processes, in place.

        Returns the gradients that this process holds. Sharded ones are only multiplied by the
        number of processes, because the backward pass has averaged them.
        """
        if not self.sharded:
            self.sum_([*gradients, sums])
            return [*gradients]
        self.sum_([sums])
        parts = [local(gradient) for gradient in gradients]
        torch._foreach_mul_(parts, self.world)
        return parts

    def wait(self) -> None:
        """Wait for all processes."""
        self.broadcast_int(0)

    def broadcast_int(self, value: int) -> int:
        """Wait for all processes, and return the value of rank 0 on each."""
        if self.world == 1:
            return value
        number = torch.tensor([value], dtype=torch.int64, device=self.device)
        torch.distributed.broadcast(number, src=0)
        return int(number.item())

    def raise_together(self, problem: Exception | None, what: str) -> None:
        """Wait for all processes. OSError on each if any of them has a problem.

        Args:
            problem: the error on this process; None: it has none.
            what: the failure, a verb phrase for the message: "could not write its parts".
        """
        failed = torch.tensor([problem is not None], dtype=torch.int64, device=self.device)
        self.sum_([failed])
        if failed.item():
            reason = "see the message of that process" if problem is None else str(problem)
            count = f"{failed.item()} of {self.world}"
            raise OSError(f"a process {what} ({count}): {reason}") from problem

    def machine(self) -> dict[str, str | int]:
        """The facts that rounding depends on. On a CPU, equal facts give equal weights."""
        facts: dict[str, str | int] = {
            "unmask": __version__,
            "torch": torch.__version__,
            "processes": self.world,
        }
        if self.device.type == "cuda":
            return facts | {"device": torch.cuda.get_device_name(self.device)}
        return facts | {
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }

    def local_micro_batches(self, micro_batches: int) -> int:
        """The number of micro-batches of an update that this process computes, at least one.

        ValueError if the processes cannot share the micro-batches equally.
        """
        if micro_batches % self.world and self.world % micro_batches:
            raise ValueError(
                f"accumulation does not fit the number of processes: got {micro_batches}, want a "
                f"multiple of {self.world}, or a divisor of it"
            )
        return max(1, micro_batches // self.world)

    @contextmanager
    def report_lost_process(self, step: int) -> Iterator[None]:
        """Raise an error in a step with several processes as a TrainingError with advice."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1:
                raise
            first = str(error).partition("\n")[0]
            raise TrainingError(
                f"step {step} did not end on process {self.rank} of {self.world}: {first}. Unless "
                "memory was short here, another process was lost: see its last message. Then start "
                "all processes again by the same command. The training resumes from the last good "
                "state, on any number of processes."
            ) from error


def launch(device: str | None = None, sharded: bool = False) -> Engine:
    """Connect the processes of this training and choose a device.

    Under `accelerate launch` or `torchrun` each process uses its own GPU. A process uses the CPU if
    there is no GPU, if `device` is "cpu", or with `accelerate launch --cpu`.

    Args:
        device: "cpu", "cuda" or "cuda:N"; by default the best available. With several processes
            only "cpu" has an effect.
        sharded: shard the weights, if there are several processes. `accelerate launch --use_fsdp`
            has the same effect.

    Returns:
        This process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # `accelerate launch --cpu` sets this variable.
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    cpu = device == "cpu" or use_cpu or not torch.cuda.is_available()
    if world == 1:
        return Engine(torch.device(device or ("cpu" if cpu else "cuda")))
    own = torch.device("cpu" if cpu else f"cuda:{os.environ['LOCAL_RANK']}")
    if not cpu:
        torch.cuda.set_device(own)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo" if cpu else "nccl")
    sharded = sharded or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return Engine(own, torch.distributed.get_rank(), world, sharded)


def faster_in_bfloat16(device: torch.device) -> bool:
    """True if a matrix product takes less time in bfloat16 than in float32.

    On a CPU both are timed seven times, because many CPUs have no bfloat16 units.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(1024, 256, dtype=dtype, device=device)
        b = torch.ones(256, 1024, dtype=dtype, device=device)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            _ = a @ b
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < seconds(torch.float32)


def shard(module: nn.Module, device: torch.device) -> None:
    """Keep only this process's part of each weight, on `device`. Gradients are then averaged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # The blocks of a transformer are the entries of a ModuleList. Inner lists come first.
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    for blocks in reversed(lists):
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """True if this process holds only a part of a tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def first_row(tensor: Tensor) -> int:
    """The first row that this process holds: FSDP2 splits dimension 0 as `torch.chunk` does."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return 0
    if tensor.placements != (Shard(0),):
        raise ValueError(
            f"placements of a sharded weight are not supported: got {tensor.placements}, want "
            "(Shard(0),)"
        )
    mesh = tensor.device_mesh
    return min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. If it is sharded, every process must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copies(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Copies of whole tensors on the CPU, each in its own memory.

    If `keep` is False, this process only helps others to gather sharded tensors, and gets none.
    """
    kept = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if keep:
            kept[name] = gathered.to("cpu", copy=True).contiguous()
    return kept


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Write `value`, whole on every process, into a tensor or into this process's part of it.

    ValueError for another dtype, because the copy would round silently.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if value.dtype != target.dtype:
        raise ValueError(f"dtype of a saved tensor is {value.dtype}, want {target.dtype}")
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """Yield consecutive tensors of one dtype, at most BUCKET_ELEMENTS numbers (or one tensor)."""
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
