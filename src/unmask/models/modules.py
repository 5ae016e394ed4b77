"""Functions on the weights of any module: digest, copies with other weights, comparison."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of names, dtypes, shapes and bits, the same on any machine: 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def with_weights(module: M, weights: Mapping[str, Tensor]) -> M:
    """A copy of a module with other weights; ValueError unless names and shapes fit.

    Args:
        module: The module to copy. It may be on the meta device, as `without_weights` makes it.
        weights: The full state by name, as `module.state_dict()`; its tensors are not copied. Tied
            weights take the value of their first name.
    """
    own = module.state_dict(keep_vars=True)
    check_same_shapes(weights, own, "weights")
    memo: dict[int, object] = {}
    for name, old in own.items():
        if id(old) in memo:  # tied to an earlier name, the only one that an EMA holds
            continue
        new = weights[name].detach()
        is_parameter = isinstance(old, nn.Parameter)
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
    return copy.deepcopy(module, memo)


def without_weights(module: M) -> M:
    """A copy with its state on the meta device, which takes no memory, for `with_weights`."""
    empty = {name: weight.to("meta") for name, weight in module.state_dict().items()}
    return with_weights(module, empty)


def inference_view(module: M) -> M:
    """A copy on the same memory, in evaluation mode and without gradient."""
    memo: dict[int, object] = {id(buffer): buffer for buffer in module.buffers()}
    for weight in module.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
    return copy.deepcopy(module, memo).eval()


def distinct_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state by name, with each tied weight under its first name only."""
    seen: set[int] = set()
    distinct = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            distinct[name] = tensor.detach()
    return distinct


def check_same_shapes(got: Mapping[str, Tensor], want: Mapping[str, Tensor], argument: str) -> None:
    """ValueError if names or shapes of weights differ; `argument` begins its message."""
    wrong = sorted(got.keys() ^ want.keys())
    wrong += [name for name in want if name in got and got[name].shape != want[name].shape]
    if wrong:
        raise ValueError(
            f"{argument} has names or shapes other than expected: {len(wrong)} differ, first: "
            f"{wrong[:10]}"
        )
