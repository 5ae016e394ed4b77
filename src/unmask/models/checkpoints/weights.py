"""From named tensors to a network that they fit exactly: names, sizes, strictness."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from unmask.models.checkpoints.ema_check import check_order, thinned
from unmask.models.checkpoints.safe_unpickle import CheckpointError
from unmask.models.dit import DiT, Shape

EMBEDDING, FREQUENCIES, NOISE = (
    "vocab_embed.embedding",
    "rotary_emb.inv_freq",
    "sigma_map.mlp.0.weight",
)
NUMBERS = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
)  # integers and complex numbers are no weights of a network here
# Parts of a name that a wrapper put there: torch.compile, DataParallel, FSDP, activation checkpointing, Lightning.
WRAPPERS = frozenset(
    "_orig_mod module model backbone _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module".split()
)

MOST_BLOCKS = 4096  # of a network: a file of names only could ask for any number


@dataclass(frozen=True)
class Weight:
    """A tensor of a file, whose values are not read before `read()`.

    kind     its numbers, as torch or the file names them: "float32"
    storage  the bytes that it is a view of; tensors of one storage are read one after the other
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], Tensor]
    storage: str = ""

    @staticmethod
    def of(tensor: Tensor) -> Weight:
        """A tensor that is in memory."""
        return Weight(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)


def bare(weights: Mapping[str, Weight], where: str) -> dict[str, Weight]:
    """Weights by their own names: parts that wrappers put there are left out, and so are frozen teachers."""
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        own = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if own in found:
            raise CheckpointError(
                f"{where}: the weights {own} are there twice, under two prefixes: which ones are meant?"
            )
        if not own.startswith("teacher"):
            found[own] = weight
    return found


def clean(name: str, weight: Weight, where: str) -> Tensor:
    """Read a float32 copy; CheckpointError where the numbers are of another kind, or not finite."""
    if weight.kind not in NUMBERS:
        raise CheckpointError(
            f"{where}: the tensor {name} holds {weight.kind}, want one of {', '.join(NUMBERS)}: a quantised model has "
            "to be converted back first"
        )
    copy = weight.read().to(torch.float32, copy=True)
    if not bool(torch.isfinite(copy).all()):
        raise CheckpointError(
            f"{where}: the tensor {name} holds NaN or infinity, so the training that wrote it had diverged: take an "
            "earlier checkpoint"
        )
    return copy


def shape_of(weights: Mapping[str, Weight], where: str) -> Shape:
    """The sizes of the network that bare weights belong to, all from the tensors but `length` and `dropout`."""
    causal = not any("sigma_map." in name or "adaLN_modulation." in name for name in weights)
    needed = {EMBEDDING: 2, FREQUENCIES: 1} | ({} if causal else {NOISE: 2})
    missing = [name for name in needed if name not in weights]
    if missing:
        _misfit(where, missing, sorted(weights), [])
    misshapen = [
        f"{name} {weights[name].shape}, want {axes} axes"
        for name, axes in needed.items()
        if len(weights[name].shape) != axes
    ]
    if misshapen:
        _misfit(where, [], [], misshapen)
    vocab_size, width = weights[EMBEDDING].shape
    blocks = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if blocks > MOST_BLOCKS:
        raise CheckpointError(
            f"the weights of {where} name {blocks} blocks, want at most {MOST_BLOCKS}"
        )
    try:
        return Shape(
            vocab_size,
            length=1,
            width=width,
            blocks=blocks,
            heads=width // (2 * max(1, weights[FREQUENCIES].shape[0])),
            cond_dim=1 if causal else weights[NOISE].shape[0],
            causal=causal,
        )
    except ValueError as error:
        raise CheckpointError(
            f"the weights of {where} make no network of this architecture: {error}"
        ) from error


def fill(
    shape: Shape, weights: Mapping[str, Weight], averages: Sequence[Weight] | None, where: str
) -> DiT:
    """A network of this shape with these weights; CheckpointError unless names and shapes are exactly its own.

    Names and shapes are compared before a network is built, and before any value is read: no config and no file of
    names can ask for more memory than its tensors fill.

    averages  moving averages to take in the place of the parameters, in the network's order; see `check_order`
    """
    wanted = _sizes(shape, where)
    _check(where, weights, wanted)
    with torch.device("meta"):
        network = DiT(shape)
    means: dict[str, Weight] = {}
    if averages is not None:
        names = [name for name, _ in network.named_parameters()]
        if len(averages) != len(names):
            raise CheckpointError(
                f"{where} has {len(averages)} moving averages for {len(names)} parameters"
            )
        means = dict(zip(names, averages, strict=True))
        _check(f"the moving average in {where}", {**weights, **means}, wanted)
    tensors, raw = {}, {}
    for name, weight in _by_storage(weights):
        tensor = clean(name, weight, where)
        if name in means:
            raw[name] = thinned(tensor)
        else:
            tensors[name] = tensor
    tensors |= {name: clean(f"ema of {name}", weight, where) for name, weight in _by_storage(means)}
    check_order(raw, {name: thinned(tensors[name]) for name in raw}, where)
    network.load_state_dict(tensors, assign=True)
    return network


def _by_storage(weights: Mapping[str, Weight]) -> list[tuple[str, Weight]]:
    return sorted(weights.items(), key=lambda item: item[1].storage)


def _sizes(shape: Shape, where: str) -> dict[str, tuple[int, ...]]:
    """The names and sizes of a network's state, from one block: all are alike."""
    try:
        with torch.device("meta"):
            one = DiT(replace(shape, blocks=1)).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise CheckpointError(
            f"the weights of {where} make no network of this architecture: {error}"
        ) from error
    first = "blocks.0."
    return {
        name.replace(first, f"blocks.{block}."): tuple(tensor.shape)
        for name, tensor in one.items()
        for block in range(shape.blocks if name.startswith(first) else 1)
    }


def spread_blocks(tensors: Mapping[str, Tensor], deeper: int) -> dict[str, Tensor]:
    """The weights under the names that they have in a network `deeper` times as deep: block i is block `deeper` i.

    Conditioned blocks begin as the identity, since their gates are 0 (adaLN-Zero, arXiv 2212.09748), so a network
    whose other blocks are new computes what the old one did.
    """
    return {
        re.sub(r"^blocks\.(\d+)", lambda match: f"blocks.{deeper * int(match[1])}", name): tensor
        for name, tensor in tensors.items()
    }


def gather_blocks(tensors: Mapping[str, Tensor], deeper: int) -> dict[str, Tensor]:
    """What `spread_blocks` has spread, under its old names; new blocks are left out."""
    found = {}
    for name, tensor in tensors.items():
        block = re.match(r"blocks\.(\d+)(.*)", name)
        if block is None:
            found[name] = tensor
        elif int(block[1]) % deeper == 0:
            found[f"blocks.{int(block[1]) // deeper}{block[2]}"] = tensor
    return found


def _check(where: str, found: Mapping[str, Weight], wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    misshapen = [
        f"{name} {found[name].shape}, want {size}"
        for name, size in wanted.items()
        if name in found and found[name].shape != size
    ]
    if missing or extra or misshapen:
        _misfit(where, missing, extra, misshapen)


def _misfit(where: str, missing: list[str], extra: list[str], misshapen: list[str]) -> NoReturn:
    prefixes = [
        key.removesuffix(name)
        for name in missing[:50]
        for key in extra[:50]
        if key.endswith(f".{name}")
    ]
    hint = f"is {prefixes[0]!r} a prefix to strip?" if prefixes else "is it another architecture?"
    kinds = {"missing": missing, "not known": extra, "of the wrong shape": misshapen}
    lists = [
        f"{len(names)} {kind}: {', '.join(name[:200] for name in names[:10])}"
        for kind, names in kinds.items()
        if names
    ]
    raise CheckpointError(f"the weights of {where} do not fit ({hint}); " + "; ".join(lists))
