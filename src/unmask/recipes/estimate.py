"""What a recipe costs, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from unmask.data.hub import PACKAGE_PREFIX, TOKENIZER_FILES, local_or_hub
from unmask.data.tokenizers import bpe_size, find_tokenizer
from unmask.limits import memory_bytes
from unmask.models.dit import DiT, Shape
from unmask.prediction import block_rows, chunk_rows
from unmask.recipes.build import deeper_by, starts_from
from unmask.recipes.schema import (
    AutoregressiveSettings,
    ConsistencySettings,
    DistillationSettings,
    NelboSettings,
    Recipe,
    SdttSettings,
)

KNOWN = {
    "gpt2": (50257, False),
    "bert-base-uncased": (30522, True),
}  # tokens, and whether one of them is MASK
SAVED = (
    20  # numbers a token, channel and block that autograd keeps, in the precision of the products
)
TABLES = 2  # over the vocabulary that a loss holds of a chunk of rows, student's and teacher's, and as many of a block
GPUS: Mapping[str, tuple[float, float]] = (
    MappingProxyType(  # TFLOP/s by data sheet: bfloat16 dense, float32
        {"RTX 4090": (165, 83), "A100": (312, 19.5), "H100": (989, 67), "H200": (989, 67)}
    )
)
CUDA = torch.device("cuda")
UTILISATION = 0.4  # of the data sheet's rate: an assumption


def vocabulary(recipe: Recipe) -> int:
    """V of a recipe, without reading any text: the tokenizer's tokens, and MASK where it is needed and not there."""
    name = recipe.data.tokenizer
    if name.startswith("bpe:"):
        return bpe_size(name)
    if name in KNOWN:
        size, has_mask = KNOWN[name]
    else:
        known = name.startswith(PACKAGE_PREFIX) or Path(name).exists()  # the hub is not asked
        found = find_tokenizer(local_or_hub(name, TOKENIZER_FILES)) if known else None
        if found is None:
            raise ValueError(
                f"tokenizer {name!r}: neither a directory with one, nor one of {', '.join(KNOWN)}, nor bpe:V"
            )
        size, has_mask = found.vocab_size, found.mask_id is not None
    match recipe.objective:
        case (
            SdttSettings() | NelboSettings(process="masked") | ConsistencySettings(process="masked")
        ):
            return size + (not has_mask)
        case _:
            return size


def estimate(
    recipe: Recipe, vocab_size: int | None = None, device: torch.device = CUDA
) -> dict[str, Any]:
    """Parameters, tokens, FLOPs, hours and bytes of a run on one process; `vocab_size` where no tokenizer tells it.

    weights_bytes      float32 weights, gradients, two moments and the moving average: 20 bytes a parameter, and 4 more
                       for a frozen teacher
    activations_bytes  of a micro-batch: what autograd keeps of every block (20 numbers a token and channel, more with
                       dropout and with a noise level; with checkpointing one, and one block's), and the head's rows
    vocabulary_bytes   a gradient of the head for each loss over it, and tables of a chunk and of a block of its rows
    memory_bytes       their sum: the greatest sum of all tensors, that of the moment before the way back
    sharded_bytes      the same for each of 2, 8 and 64 processes with one micro-batch, among whom weights are sharded:
                       its share of them, and whole embeddings, heads and two blocks of each network
    flops              of the matrix products: a forward pass takes 2 a parameter outside the embedding and token, and
                       4 L D a block for attention; the student's pass counts three times, four with checkpointing
    hours              on one GPU, at 0.4 of its data sheet's rate in the recipe's precision: an assumption
    """
    sizes, distils = recipe.network, isinstance(recipe.objective, DistillationSettings)
    vocab = vocabulary(recipe) if vocab_size is None else vocab_size
    causal = isinstance(recipe.objective, AutoregressiveSettings)
    parameters = _parameters(
        Shape(
            vocab,
            sizes.length,
            sizes.width,
            sizes.blocks,
            sizes.heads,
            sizes.cond_dim,
            sizes.dropout,
            causal=causal,
        )
    )
    tokens = recipe.batch_size * recipe.steps * sizes.length
    attention = 4 * sizes.length * sizes.width * sizes.blocks // (2 if causal else 1)
    forward = 2 * (parameters - vocab * sizes.width) + attention
    teacher = (
        recipe.objective.teacher_steps
        if isinstance(recipe.objective, SdttSettings)
        else int(distils)
    )
    again = forward - 2 * vocab * sizes.width if recipe.checkpointing else 0
    flops = tokens * (forward * (3 + teacher) + again)
    weights = parameters * (24 if distils else 20)
    ends = 2 * vocab * sizes.width  # embedding and head
    body = parameters - ends
    activations, losses = _activations(recipe, body), _losses(recipe)
    rows = recipe.batch_size // recipe.accumulation * sizes.length
    held = sum(min(size(vocab, device), rows) for size in (chunk_rows, block_rows))
    table = losses * vocab * sizes.width * 4 + TABLES * 4 * held * vocab
    whole = 4 * (1 + distils) * (ends + 2 * body // sizes.blocks)
    rate = 0 if recipe.precision != "float32" else 1
    return {
        "parameters": parameters,
        "tokens": tokens,
        "flops": flops,
        "weights_bytes": weights,
        "activations_bytes": activations,
        "vocabulary_bytes": table,
        "memory_bytes": weights + activations + table,
        "sharded_bytes": {str(n): weights // n + whole + activations + table for n in (2, 8, 64)},
        "hours": {
            name: float(f"{flops / (rates[rate] * 1e12 * UTILISATION * 3600):.3g}")
            for name, rates in GPUS.items()
        },
    }


def check_memory(recipe: Recipe, device: torch.device, processes: int = 1) -> None:
    """ValueError where the least that a step needs is over twice the memory of the machine, or of the GPU.

    It is a lower bound in whole numbers, known before anything is built: a size of 10^9 would take the machine down.
    processes  that share out the weights
    """
    if (memory := memory_of(device)) is None:
        return
    sizes, deeper = recipe.network, deeper_by(recipe)
    if starts_from(recipe):  # its sizes are not known yet
        sizes = replace(sizes, width=2, heads=1, blocks=deeper, cond_dim=1)
        recipe = replace(recipe, network=sizes)
    width, blocks = sizes.width, sizes.blocks
    weights = (
        20
        * (12 * blocks * width**2 + sizes.cond_dim * (sizes.cond_dim + 6 * blocks * width))
        // processes
    )
    least = weights + _activations(recipe, 0)
    if least <= 2 * memory:
        return
    usual: dict[str, tuple[int, int]] = {
        "network.length": (sizes.length, 1024), "network.width": (width, 768), "network.blocks": (blocks, 12),
        "network.cond_dim": (sizes.cond_dim, 128), "batch_size": (recipe.batch_size, 512 * recipe.accumulation),
        "objective.deeper": (deeper, 1),
    }  # fmt: skip
    name = max(usual, key=lambda name: usual[name][0] / usual[name][1])
    raise ValueError(
        f"{name} is too large: got {usual[name][0]}, and a step needs {least / 1e9:,.0f} GB at least, of which "
        f"{'this machine' if device.type == 'cpu' else device} has {memory / 1e9:,.0f}; give a smaller "
        f"--{name.replace('_', '-')}"
    )


def memory_of(device: torch.device) -> int | None:
    """Bytes of the memory of a GPU, or of this process; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_bytes() if device.type == "cpu" else None


def _parameters(shape: Shape) -> int:
    """The weights of a network; all its blocks are alike."""
    with torch.device("meta"):
        one, two = (
            sum(weight.numel() for weight in DiT(replace(shape, blocks=blocks)).parameters())
            for blocks in (1, 2)
        )
    return one + (shape.blocks - 1) * (two - one)


def _activations(recipe: Recipe, body: int) -> int:
    """Bytes of a micro-batch that the student's body, `body` weights, and its losses keep for the way back."""
    sizes = recipe.network
    width = 2 if recipe.precision == "bfloat16" else 4
    sees = sizes.sees_alpha and not isinstance(recipe.objective, AutoregressiveSettings)
    channels = recipe.batch_size // recipe.accumulation * sizes.length * sizes.width
    block = channels * (width * (SAVED + 2 * (sizes.dropout > 0)) + 8 * sees)
    block += (
        2 * body // sizes.blocks if recipe.precision == "bfloat16" else 0
    )  # weights in the products' precision
    rows = (
        channels * 4 * (1 + isinstance(recipe.objective, DistillationSettings) + _losses(recipe))
    )  # that the head reads
    if not recipe.checkpointing:
        return sizes.blocks * block + rows
    return sizes.blocks * channels * 4 + max(rows, block)


def _losses(recipe: Recipe) -> int:
    """How many losses over the vocabulary an update computes before the first of them goes back."""
    match recipe.objective:
        case SdttSettings(teacher_steps=steps):
            return steps
        case ConsistencySettings(process="masked", revealed="cross_entropy"):
            return 2
        case _:
            return 1
