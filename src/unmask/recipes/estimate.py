"""What a recipe costs, before it runs."""

from __future__ import annotations

import torch

from unmask.models.dit import DiT, Shape
from unmask.recipes.schema import Consistency, Data, NextToken, Recipe
from unmask.text.tokenizers import find_tokenizer

KNOWN = {"gpt2": 50258, "bert-base-uncased": 30522}  # V, MASK included (docs of MDLM's released configs)
FLOATS_A_BLOCK = 34  # activations a token, layer and channel kept for the backward pass, without attention scores


def vocabulary(data: Data) -> int:
    """V of the tokenizer that `data` names, without reading any text."""
    if data.tokenizer.startswith("bpe:"):
        return int(data.tokenizer.removeprefix("bpe:"))
    if data.tokenizer in KNOWN:
        return KNOWN[data.tokenizer]
    found = find_tokenizer(data.tokenizer)
    if found is None:
        raise ValueError(
            f"tokenizer {data.tokenizer!r}: neither a directory with one, nor one of {', '.join(KNOWN)}, nor bpe:V"
        )
    return found.vocab_size + (found.mask_id is None)  # MASK is one token more where the tokenizer has none


def estimate(recipe: Recipe) -> dict[str, float | int]:
    """Parameters, tokens, FLOPs and bytes of a run; memory is for one process that holds every micro-batch row.

    weights    float32 weights, gradients, two moments and the moving average: 20 bytes a parameter, and 4 more for a
               frozen teacher
    activations  34 floats a token, block and channel, of 2 or 4 bytes: a rule of thumb, not a measurement
    flops      6 a parameter outside the embedding and token, 2 more for a teacher's forward pass
    """
    sizes, distils = recipe.network, isinstance(recipe.objective, Consistency)
    vocab = vocabulary(recipe.data)
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
    return {
        "parameters": parameters,
        "tokens": tokens,
        "flops": tokens * moving * (8 if distils else 6),
        "weights_bytes": parameters * (24 if distils else 20),
        "activations_bytes": rows * sizes.length * sizes.width * sizes.blocks * FLOATS_A_BLOCK * width,
    }
