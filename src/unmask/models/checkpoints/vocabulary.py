"""Fit a network to its tokenizer: find MASK, and remove the padding of the vocabulary."""

from __future__ import annotations

from dataclasses import replace

import torch

from unmask.data.tokenizers import Tokenizer, check_vocabulary
from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.config import CheckpointConfig
from unmask.models.denoiser import MASKED
from unmask.models.dit import DiT

# For speed, some codes enlarge the vocabulary to a multiple of one of these.
PADDINGS = (8, 16, 32, 64, 128)
# The weights with one row for each token.
_ROWS = ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias")


def fit_vocabulary(
    network: DiT,
    use: CheckpointConfig,
    tokenizer: Tokenizer,
    where: str,
    *,
    mask_named: bool,
    tokenizer_given: bool,
) -> tuple[DiT, CheckpointConfig]:
    """Fit a network and its config to the vocabulary of a tokenizer.

    The result has one row for each token, and one for MASK. MASK is the id that the config names,
    else the tokenizer's, else the last row. Rows after the tokenizer's tokens, except MASK, are
    padding if they make the vocabulary a multiple of 8, 16, 32, 64 or 128. No text contains them,
    so they are removed. The prediction is then the network's, conditioned on the rows that remain.
    MASK becomes the last row.

    Args:
        network: The network of the checkpoint.
        use: Its use by the config.
        tokenizer: The tokenizer to fit.
        where: Name of the checkpoint in errors.
        mask_named: True if the config names MASK; else MASK was assumed to be the last row.
        tokenizer_given: True if the user supplied the tokenizer, which is not in the model's files.

    Raises:
        ValueError: The vocabularies differ in another way.
        CheckpointError: Config and tokenizer name two MASKs, or MASK is unknown among padded rows.
    """
    size, tokens = network.shape.vocab_size, tokenizer.vocab_size
    padded = size > tokens + 1 and any(
        size == -(-n // multiple) * multiple for n in (tokens, tokens + 1) for multiple in PADDINGS
    )
    if not padded:
        check_vocabulary(tokenizer, size)
    assumed = not mask_named or (tokenizer_given and use.mask_id == size - 1)
    if use.kind == MASKED and tokenizer.mask_id not in (None, use.mask_id):
        if not assumed:
            raise CheckpointError(
                f"{where}: mask_id is {use.mask_id} in the config and {tokenizer.mask_id} in the "
                "tokenizer: set `mask_id` in config.json, or use the tokenizer of this model's "
                "training"
            )
        use = replace(use, mask_id=tokenizer.mask_id)
    if not padded:
        return network, use
    mask_id = use.mask_id
    if not mask_named and tokenizer.mask_id is None:
        if use.kind == MASKED:
            raise CheckpointError(
                f"{where}: mask_id is unknown: of {size} rows the tokenizer has {tokens}, and the "
                "others are MASK and padding; set `mask_id` in config.json "
                f"({tokens} for models of MDLM's code)"
            )
        mask_id = None  # an autoregressive model neither reads nor predicts MASK
    rows = [*range(tokens)]
    if mask_id is not None and mask_id >= tokens:
        rows.append(mask_id)
        mask_id = rows.index(mask_id)
    return _with_rows(network, rows), replace(use, mask_id=mask_id)


def _with_rows(network: DiT, rows: list[int]) -> DiT:
    """The network with these rows of its vocabulary only."""
    with torch.device("meta"):
        smaller = DiT(replace(network.shape, vocab_size=len(rows)))
    weights = dict(network.state_dict())
    weights |= {name: weights[name][torch.tensor(rows)] for name in _ROWS}
    smaller.load_state_dict(weights, assign=True)
    return smaller
