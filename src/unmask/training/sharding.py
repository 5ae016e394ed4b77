"""Weights shared out among processes (FSDP2): each holds a part of every tensor, and whole ones pass by block by block.

`torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, arXiv 2304.11277; in its form of one tensor a weight). Moments
and averages are made of the parts and are parts themselves. What does not belong to a block, embedding and head among
it, stays whole from a forward pass to the end of the way back, because the head is applied after the pass; of a
teacher, which has no way back, to the next round.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# torch.distributed.tensor takes seconds to import; who has an optimizer has it already: so the imports are below.


def shard(module: nn.Module, device: torch.device) -> None:
    """Keep this process's part of each weight, on `device`; gradients are averaged over the processes."""
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
    """What this process holds of a tensor, in the same memory."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """True where this process holds only a part of a tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def first_row(tensor: Tensor) -> int:
    """The first row that this process holds: FSDP2 cuts dimension 0 as `torch.chunk` does."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return 0
    if tensor.placements != (Shard(0),):
        raise ValueError(
            f"a sharded weight is cut along its rows: want placements (Shard(0),), got {tensor.placements}"
        )
    mesh = tensor.device_mesh
    return min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))


def entire(tensor: Tensor) -> Tensor:
    """The whole of a tensor; where it is sharded, all processes ask for it together."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copies(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Copies of whole tensors on the CPU, each in memory of its own; none where this process only helps others."""
    kept = {}
    for name, tensor in tensors.items():
        whole = entire(tensor.detach())
        if keep:
            kept[name] = whole.to("cpu", copy=True).contiguous()
    return kept


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Write a whole `value`, which all processes hold, into a tensor or into this process's part of it.

    ValueError for numbers of another kind: they would be rounded without a word.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if value.dtype != target.dtype:
        raise ValueError(f"a saved tensor has numbers of {value.dtype}, want {target.dtype}")
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
