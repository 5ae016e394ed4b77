"""Estimate the cost of a recipe before it runs: parameters, FLOPs, hours and memory."""

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
from unmask.recipes.schema import Recipe

# Name of a public tokenizer -> (vocabulary size, whether it has a MASK).
KNOWN = {"gpt2": (50257, False), "bert-base-uncased": (30522, True)}
# Numbers that autograd keeps for each token, channel and block, in the precision of the products.
SAVED = 20
# Vocabulary tables that a loss keeps for a chunk of rows, and for a block: student's and teacher's.
TABLES = 2
# TFLOP/s by data sheet: bfloat16 dense, float32.
GPUS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"RTX 4090": (165, 83), "A100": (312, 19.5), "H100": (989, 67), "H200": (989, 67)}
)
CUDA = torch.device("cuda")
UTILISATION = 0.4  # assumed share of the rate in the data sheet


def vocabulary(recipe: Recipe) -> int:
    """V of a recipe: the size of its tokenizer, and MASK if needed. The text is not read."""
    name = recipe.data.tokenizer
    if name.startswith("bpe:"):
        return bpe_size(name)
    if name in KNOWN:
        size, has_mask = KNOWN[name]
    else:
        is_local = name.startswith(PACKAGE_PREFIX) or Path(name).exists()  # no request to the hub
        tokenizer = find_tokenizer(local_or_hub(name, TOKENIZER_FILES)) if is_local else None
        if tokenizer is None:
            raise ValueError(
                f"data.tokenizer has no known size: got {name!r}, want a directory with a "
                f"tokenizer, one of {', '.join(KNOWN)}, or bpe:V"
            )
        size, has_mask = tokenizer.vocab_size, tokenizer.mask_id is not None
    return size + (recipe.traits.noise == "masked" and not has_mask)


def estimate(
    recipe: Recipe, vocab_size: int | None = None, device: torch.device = CUDA
) -> dict[str, Any]:
    """Estimate parameters, tokens, FLOPs, hours and bytes of a run on one process.

    Args:
        recipe: the run.
        vocab_size: V; by default that of the recipe's tokenizer.
        device: decides the size of the chunks of a loss over the vocabulary.

    Returns:
        parameters: weights of the student.
        tokens: tokens in the batches of all updates.
        flops: FLOPs of the matrix products. A forward pass takes 2 for each token and parameter
            outside the embedding, and 4 L D a block for attention. The student's pass counts three
            times, or four times with checkpointing.
        weights_bytes: float32 weights, gradients, two moments and the EMA: 20 bytes a parameter
            of each trained network, and 4 of a frozen teacher.
        activations_bytes: of a micro-batch: 20 numbers for each token, channel and block, and the
            rows of the head. Dropout or a noise level adds numbers. Checkpointing keeps 1 number,
            and the 20 of one block.
        vocabulary_bytes: a gradient of the head for each loss over the vocabulary, and tables of a
            chunk and of a block of its rows.
        memory_bytes: sum of these three, which is the peak, just before the backward pass.
        sharded_bytes: memory_bytes of each of 2, 8 and 64 processes with a micro-batch each: a
            share of the weights, and whole embeddings, heads and two blocks of each network.
        hours: GPU -> hours on one, assuming 0.4 of its data sheet's rate in the recipe's precision.
    """
    sizes, traits = recipe.network, recipe.traits
    vocab = vocabulary(recipe) if vocab_size is None else vocab_size
    causal, trained = traits.noise is None, 1 + len(traits.optims)
    parameters = _parameters(sizes.shape(vocab, causal))
    tokens = recipe.batch_size * recipe.steps * sizes.length
    attention = 4 * sizes.length * sizes.width * sizes.blocks // (2 if causal else 1)
    forward = 2 * (parameters - vocab * sizes.width) + attention
    again = forward - 2 * vocab * sizes.width if recipe.checkpointing else 0
    flops = tokens * (forward * (3 + traits.teacher_passes) + again)
    weights = parameters * (20 * trained + 4 * traits.distils)
    ends = 2 * vocab * sizes.width  # embedding and head
    body = parameters - ends
    activations, losses = _activations(recipe, body), traits.vocabulary_losses
    rows = recipe.batch_size // recipe.accumulation * sizes.length
    held = sum(min(size(vocab, device), rows) for size in (chunk_rows, block_rows))
    table = losses * vocab * sizes.width * 4 + TABLES * 4 * held * vocab
    whole = 4 * (trained + traits.distils) * (ends + 2 * body // sizes.blocks)
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
    """Raise ValueError if a step needs at least twice the memory of the machine or GPU.

    The need is a lower bound in whole numbers. It is computed before the network is built, because
    building a network of width 10^9 would exhaust the memory.

    Args:
        recipe: the run.
        device: the device of the run.
        processes: number of processes that share the weights.
    """
    if (memory := memory_of(device)) is None:
        return
    sizes, depth = recipe.network, recipe.traits.depth_multiplier
    if recipe.traits.start or recipe.traits.distils:  # its sizes are not known yet
        sizes = replace(sizes, width=2, heads=1, blocks=depth, cond_dim=1)
        recipe = replace(recipe, network=sizes)
    width, blocks, cond_dim = sizes.width, sizes.blocks, sizes.cond_dim
    body = 12 * blocks * width**2 + cond_dim * (cond_dim + 6 * blocks * width)
    least = 20 * body // processes + _activations(recipe, 0)
    if least <= 2 * memory:
        return
    usual: dict[str, tuple[int, int]] = {
        "network.length": (sizes.length, 1024),
        "network.width": (width, 768),
        "network.blocks": (blocks, 12),
        "network.cond_dim": (cond_dim, 128),
        "batch_size": (recipe.batch_size, 512 * recipe.accumulation),
        "objective.deeper": (depth, 1),
    }
    name = max(usual, key=lambda name: usual[name][0] / usual[name][1])
    owner = "this machine" if device.type == "cpu" else str(device)
    raise ValueError(
        f"{name} is too large: got {usual[name][0]}, and a step needs at least "
        f"{least / 1e9:,.0f} GB, but {owner} has {memory / 1e9:,.0f}; give a smaller "
        f"--{name.replace('_', '-')}"
    )


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory of a GPU, or of this process; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_bytes() if device.type == "cpu" else None


def _parameters(shape: Shape) -> int:
    """The number of weights of a network; all its blocks have the same number."""
    with torch.device("meta"):
        one, two = (
            sum(weight.numel() for weight in DiT(replace(shape, blocks=blocks)).parameters())
            for blocks in (1, 2)
        )
    return one + (shape.blocks - 1) * (two - one)


def _activations(recipe: Recipe, body: int) -> int:
    """Bytes of a micro-batch that the student and its losses keep for the backward pass.

    Args:
        recipe: the run.
        body: weights of the student outside embedding and head.
    """
    sizes, traits = recipe.network, recipe.traits
    width = 2 if recipe.precision == "bfloat16" else 4
    sees = sizes.sees_alpha and traits.noise is not None
    channels = recipe.batch_size // recipe.accumulation * sizes.length * sizes.width
    block = channels * (width * (SAVED + 2 * (sizes.dropout > 0)) + 8 * sees)
    if recipe.precision == "bfloat16":
        block += 2 * body // sizes.blocks  # a copy of the weights in bfloat16
    head_rows = channels * 4 * (1 + traits.distils + traits.vocabulary_losses)
    if not recipe.checkpointing:
        return sizes.blocks * block + head_rows
    return sizes.blocks * channels * 4 + max(head_rows, block)
