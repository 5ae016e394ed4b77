"""What a recipe costs, before it runs."""

from __future__ import annotations

from pathlib import Path

import torch

from unmask.models.dit import DiT, Shape
from unmask.recipes.schema import Consistency, Distillation, Nelbo, NextToken, Recipe, Sdtt
from unmask.text.hub import OWN, TOKENIZER_FILES, local_or_hub
from unmask.text.tokenizers import find_tokenizer

KNOWN = {"gpt2": (50257, False), "bert-base-uncased": (30522, True)}  # tokens, and whether one of them is MASK
FLOATS_A_BLOCK = 34  # activations a token, layer and channel kept for the backward pass, without attention scores


def vocabulary(recipe: Recipe) -> int:
    """V of a recipe, without reading any text: the tokenizer's tokens, and MASK where it is needed and not there."""
    name = recipe.data.tokenizer
    if name.startswith("bpe:"):
        return int(name.removeprefix("bpe:"))
    if name in KNOWN:
        size, has_mask = KNOWN[name]
    else:
        known = name.startswith(OWN) or Path(name).exists()  # the hub is not asked
        found = find_tokenizer(local_or_hub(name, TOKENIZER_FILES)) if known else None
        if found is None:
            raise ValueError(
                f"tokenizer {name!r}: neither a directory with one, nor one of {', '.join(KNOWN)}, nor bpe:V"
            )
        size, has_mask = found.vocab_size, found.mask_id is not None
    match recipe.objective:
        case Sdtt() | Nelbo(process="masked") | Consistency(process="masked"):
            return size + (not has_mask)
        case _:
            return size


def estimate(recipe: Recipe) -> dict[str, float | int]:
    """Parameters, tokens, FLOPs and bytes of a run; memory is for one process that holds every micro-batch row.

    weights    float32 weights, gradients, two moments and the moving average: 20 bytes a parameter, and 4 more for a
               frozen teacher
    activations  34 floats a token, block and channel, of 2 or 4 bytes: a rule of thumb, not a measurement
    flops      6 a parameter outside the embedding and token, 2 more for each forward pass of a teacher
    """
    sizes, distils = recipe.network, isinstance(recipe.objective, Distillation)
    vocab = vocabulary(recipe)
    shape = Shape(
        vocab, sizes.length, sizes.width, sizes.blocks, sizes.heads, sizes.cond_dim, sizes.dropout,
        causal=isinstance(recipe.objective, NextToken),
    )  # fmt: skip
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in DiT(shape).parameters())
    rows = recipe.batch_size // recipe.accumulation
    tokens = recipe.batch_size * recipe.steps * sizes.length
    width = 2 if recipe.precision == "bfloat16" else 4
    moving = parameters - vocab * sizes.width
    passes = recipe.objective.teacher_steps if isinstance(recipe.objective, Sdtt) else int(distils)
    return {
        "parameters": parameters,
        "tokens": tokens,
        "flops": tokens * moving * (6 + 2 * passes),
        "weights_bytes": parameters * (24 if distils else 20),
        "activations_bytes": rows * sizes.length * sizes.width * sizes.blocks * FLOATS_A_BLOCK * width,
    }
