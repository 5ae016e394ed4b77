"""Build a network from named tensors that fit it exactly in names, shapes and dtypes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn

from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.ema_check import check_order, thinned
from unmask.models.dit import DiT, Shape
from unmask.models.modules import distinct_weights

EMBEDDING = "vocab_embed.embedding"
FREQUENCIES = "rotary_emb.inv_freq"
NOISE = "sigma_map.mlp.0.weight"
# Integers and complex numbers cannot be weights.
FLOATS = ("float16", "bfloat16", "float32", "float64")
# Parts of a name from wrappers: torch.compile, DataParallel, FSDP, activation checkpointing,
# Lightning.
WRAPPERS = frozenset(
    "_orig_mod module model backbone _fsdp_wrapped_module _checkpoint_wrapped_module "
    "_forward_module".split()
)
MOST_BLOCKS = 4096  # of a network; else the names in a file could request any number of blocks


@dataclass(frozen=True)
class Weight:
    """A tensor of a file.

    Attributes:
        shape: its sizes
        kind: its dtype, as torch or the file spells it: "float32"
        read: reads its values
        storage: key of the storage that contains its values. Tensors of one storage are read one
            after the other
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], Tensor]
    storage: str = ""


def strip_wrappers(name: str) -> str:
    """The name of a weight without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def strip_prefixes(weights: Mapping[str, Weight], where: str) -> dict[str, Weight]:
    """Rename weights without wrappers, and drop those of a frozen teacher."""
    stripped: dict[str, Weight] = {}
    for name, weight in weights.items():
        own = strip_wrappers(name)
        if own in stripped:
            raise CheckpointError(
                f"{where} has two sets of weights: {own} occurs under two prefixes; "
                "keep one of them"
            )
        if not own.startswith("teacher"):
            stripped[own] = weight
    return stripped


def read_float32(name: str, weight: Weight, where: str) -> Tensor:
    """Read a float32 copy; CheckpointError for other kinds of numbers, and for NaN or infinity."""
    if weight.kind not in FLOATS:
        raise CheckpointError(
            f"{where}: the tensor {name} has the wrong dtype: got {weight.kind}, "
            f"want one of {', '.join(FLOATS)}; convert a quantised model back first"
        )
    copy = weight.read().to(torch.float32, copy=True)
    if not bool(torch.isfinite(copy).all()):
        raise CheckpointError(
            f"{where}: the tensor {name} holds NaN or infinity, so its training has diverged: "
            "use an earlier checkpoint"
        )
    return copy


def infer_shape(weights: Mapping[str, Weight], where: str) -> Shape:
    """The sizes of the network with these weights, except `length` and `dropout`."""
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
            f"{where} has too many blocks: got {blocks} by the names of its weights, "
            f"want at most {MOST_BLOCKS}"
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
        raise CheckpointError(f"{where} has weights of another architecture: {error}") from error


def build_network(
    shape: Shape, weights: Mapping[str, Weight], averages: Sequence[Weight] | None, where: str
) -> DiT:
    """Build the network of a shape with these weights.

    Names and shapes are compared before a network is built and before any value is read. So no
    config and no file can request more memory than its tensors fill.

    Args:
        shape: Sizes of the network.
        weights: All weights by name.
        averages: EMA weights that replace the parameters, in the network's order; see
            `check_order`.
        where: Name of the checkpoint in errors.

    Raises:
        CheckpointError: Names or shapes are not exactly those of the network.
    """
    sizes = _sizes(shape, where)
    _check_fit(where, weights, sizes)
    with torch.device("meta"):
        network = DiT(shape)
    ema: dict[str, Weight] = {}
    if averages is not None:
        names = [name for name, _ in network.named_parameters()]
        if len(averages) != len(names):
            raise CheckpointError(
                f"{where} has the wrong number of EMA weights: got {len(averages)}, "
                f"want {len(names)}"
            )
        ema = dict(zip(names, averages, strict=True))
        _check_fit(f"the EMA in {where}", {**weights, **ema}, sizes)
    tensors, raw = {}, {}
    for name, weight in _by_storage(weights):
        tensor = read_float32(name, weight, where)
        if name in ema:
            raw[name] = thinned(tensor)
        else:
            tensors[name] = tensor
    for name, weight in _by_storage(ema):
        tensors[name] = read_float32(f"ema of {name}", weight, where)
    check_order(raw, {name: thinned(tensors[name]) for name in raw}, where)
    network.load_state_dict(tensors, assign=True)
    return network


def fill_network(network: nn.Module, weights: Mapping[str, Weight], where: str) -> None:
    """Copy weights into a foreign network; CheckpointError unless they fit exactly.

    Args:
        network: The network. Tied weights have their first name.
        weights: By names without wrappers, as `strip_prefixes` gives them.
        where: Name of the checkpoint in errors.
    """
    own = {strip_wrappers(name): tensor for name, tensor in distinct_weights(network).items()}
    _check_fit(where, weights, {name: tuple(tensor.shape) for name, tensor in own.items()})
    for name, weight in _by_storage(weights):
        is_float = own[name].is_floating_point()
        own[name].copy_(read_float32(name, weight, where) if is_float else weight.read())


def insert_blocks(tensors: Mapping[str, Tensor], multiplier: int) -> dict[str, Tensor]:
    """Rename weights for a network `multiplier` times as deep: block i becomes multiplier i.

    New conditioned blocks start as the identity, because their gates are 0 (adaLN-Zero, arXiv
    2212.09748). So the deeper network computes the same function at first.
    """

    def deeper(match: re.Match[str]) -> str:
        return f"blocks.{multiplier * int(match[1])}"

    return {re.sub(r"^blocks\.(\d+)", deeper, name): tensor for name, tensor in tensors.items()}


def _by_storage(weights: Mapping[str, Weight]) -> list[tuple[str, Weight]]:
    return sorted(weights.items(), key=lambda item: item[1].storage)


def _sizes(shape: Shape, where: str) -> dict[str, tuple[int, ...]]:
    """The names and sizes of a network's state. One block is built, because all are equal."""
    try:
        with torch.device("meta"):
            one = DiT(replace(shape, blocks=1)).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise CheckpointError(f"{where} has weights of another architecture: {error}") from error
    first = "blocks.0."
    return {
        name.replace(first, f"blocks.{block}."): tuple(tensor.shape)
        for name, tensor in one.items()
        for block in range(shape.blocks if name.startswith(first) else 1)
    }


def _check_fit(
    where: str, weights: Mapping[str, Weight], sizes: Mapping[str, tuple[int, ...]]
) -> None:
    """CheckpointError unless names and shapes are exactly those of `sizes`."""
    missing = sorted(sizes.keys() - weights.keys())
    extra = sorted(weights.keys() - sizes.keys())
    misshapen = [
        f"{name} {weights[name].shape}, want {size}"
        for name, size in sizes.items()
        if name in weights and weights[name].shape != size
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
    kinds = {"missing": missing, "unknown": extra, "of the wrong shape": misshapen}
    lists = [
        f"{len(names)} {kind}: {', '.join(name[:200] for name in names[:10])}"
        for kind, names in kinds.items()
        if names
    ]
    raise CheckpointError(f"the weights of {where} do not fit ({hint}); " + "; ".join(lists))
