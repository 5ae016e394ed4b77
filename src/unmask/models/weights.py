"""From named tensors to a network that they fit exactly: names, sizes, strictness."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from unmask.models.dit import DiT, Shape
from unmask.models.pickles import CheckpointError

EMBEDDING, FREQUENCIES, NOISE = "vocab_embed.embedding", "rotary_emb.inv_freq", "sigma_map.mlp.0.weight"


def bare(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights by their own names, in float32: prefixes of wrappers stripped, frozen teachers left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = re.sub(r"^(_orig_mod\.|backbone\.)+", "", name)
        if own in found:
            raise CheckpointError(
                f"{where}: the weights {own} are there twice, under two prefixes: which ones are meant?"
            )
        if not own.startswith("teacher"):
            found[own] = clean(name, tensor, where)
    return found


def clean(name: str, tensor: Tensor, where: str) -> Tensor:
    """A float32 copy (safetensors' own tensors live in the file); CheckpointError where a value is not finite."""
    copy = tensor.to(torch.float32, copy=True)
    if not bool(torch.isfinite(copy).all()):
        raise CheckpointError(
            f"{where}: the tensor {name} holds NaN or infinity, so the training that wrote it had diverged: take an "
            "earlier checkpoint"
        )
    return copy


def shape_of(tensors: Mapping[str, Tensor], where: str) -> Shape:
    """The sizes of the network that bare weights belong to, all from the tensors but `length` and `dropout`."""
    causal = not any("sigma_map." in name or "adaLN_modulation." in name for name in tensors)
    needed = {EMBEDDING: 2, FREQUENCIES: 1} | ({} if causal else {NOISE: 2})
    missing = [name for name in needed if name not in tensors]
    if missing:
        _misfit(where, missing, sorted(tensors), [])
    misshapen = [
        f"{name} {tuple(tensors[name].shape)}, want {axes} axes"
        for name, axes in needed.items()
        if tensors[name].dim() != axes
    ]
    if misshapen:
        _misfit(where, [], [], misshapen)
    vocab_size, width = tensors[EMBEDDING].shape
    try:
        return Shape(
            vocab_size,
            length=1,
            width=width,
            blocks=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            heads=width // (2 * max(1, len(tensors[FREQUENCIES]))),
            cond_dim=1 if causal else len(tensors[NOISE]),
            causal=causal,
        )
    except ValueError as error:
        raise CheckpointError(f"the weights of {where} make no network of this architecture: {error}") from error


def fill(shape: Shape, tensors: dict[str, Tensor], averages: Sequence[Tensor] | None, where: str) -> DiT:
    """A network of this shape with these weights; CheckpointError unless names and shapes are exactly its own.

    `averages`: moving averages to take in the place of the parameters, in the network's order.
    """
    with torch.random.fork_rng(devices=[]):  # first weights are drawn and thrown away: nobody's seed should notice
        network = DiT(shape)
    _check(where, tensors, network.state_dict())
    if averages is not None:
        names = [name for name, _ in network.named_parameters()]
        if len(averages) != len(names):
            raise CheckpointError(f"{where} has {len(averages)} moving averages for {len(names)} parameters")
        tensors = tensors | dict(zip(names, averages, strict=True))
        _check(f"the moving average in {where}", tensors, network.state_dict())
    network.load_state_dict(tensors, assign=True)
    return network


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


def _check(where: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    misshapen = [
        f"{name} {tuple(found[name].shape)}, want {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if missing or extra or misshapen:
        _misfit(where, missing, extra, misshapen)


def _misfit(where: str, missing: list[str], extra: list[str], misshapen: list[str]) -> NoReturn:
    prefixes = [key.removesuffix(name) for name in missing for key in extra if key.endswith(f".{name}")]
    hint = f"is {prefixes[0]!r} a prefix to strip?" if prefixes else "is it another architecture?"
    kinds = {"missing": missing, "not known": extra, "of the wrong shape": misshapen}
    lists = [f"{len(names)} {kind}: {', '.join(names[:10])}" for kind, names in kinds.items() if names]
    raise CheckpointError(f"the weights of {where} do not fit ({hint}); " + "; ".join(lists))
