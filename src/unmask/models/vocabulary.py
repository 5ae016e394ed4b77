"""A model beside a tokenizer: which rows of its vocabulary are tokens, and which of them is MASK."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from unmask.data.tokenizers import Tokenizer, check_vocabulary
from unmask.models.checkpoints.config import MASKED, CheckpointConfig
from unmask.models.checkpoints.safe_unpickle import CheckpointError
from unmask.models.dit import DiT

PADDINGS = (
    8,
    16,
    32,
    64,
    128,
)  # a vocabulary is made larger until one of these divides it, for speed
_ROWS = (
    "vocab_embed.embedding",
    "output_layer.linear.weight",
    "output_layer.linear.bias",
)  # a row a token


@dataclass(frozen=True)
class Named:
    """The sources of MASK and of the tokenizer.

    said   the config names it; else it was taken to be the last row
    given  the tokenizer is the user's, and no part of the model's files
    """

    said: bool
    given: bool


def beside(
    network: DiT, facts: CheckpointConfig, tokenizer: Tokenizer, named: Named, where: str
) -> tuple[DiT, CheckpointConfig]:
    """Fit a network and its facts to the vocabulary of `tokenizer`: a row for each token, and one for MASK.

    MASK is what the config names, else the tokenizer's, else the last row. Rows behind the tokenizer's tokens other
    than MASK are padding, where their number makes the vocabulary a multiple of 8 to 128. No text holds them: they are
    cut off, so that the law of a token is the network's, conditioned on the other rows; MASK becomes the last.
    ValueError where the vocabularies differ otherwise, where config and tokenizer name two MASKs, and where nothing
    says which of the padded rows is MASK.
    """
    size, tokens = network.shape.vocab_size, tokenizer.vocab_size
    padded = size > tokens + 1 and any(
        size == -(-n // each) * each for n in (tokens, tokens + 1) for each in PADDINGS
    )
    if not padded:
        check_vocabulary(tokenizer, size)
    guessed = not named.said or (named.given and facts.mask_id == size - 1)
    if facts.kind == MASKED and tokenizer.mask_id not in (None, facts.mask_id):
        if not guessed:
            raise CheckpointError(
                f"{where}: MASK is token {facts.mask_id} by the config and {tokenizer.mask_id} by the tokenizer: set "
                "`mask_id` in config.json, or take the tokenizer that this model was trained with"
            )
        facts = replace(facts, mask_id=tokenizer.mask_id)
    if not padded:
        return network, facts
    mask_id = facts.mask_id
    if not named.said and tokenizer.mask_id is None:
        if facts.kind == MASKED:
            raise CheckpointError(
                f"{where}: mask_id is not known: of {size} rows the tokenizer names {tokens}, and the others are MASK "
                f"and padding; set `mask_id` in config.json ({tokens} for models of MDLM's code)"
            )
        mask_id = None  # an autoregressive model never reads or predicts it
    rows = [*range(tokens), *([] if mask_id is None or mask_id < tokens else [mask_id])]
    return _cut(network, rows), replace(
        facts, mask_id=None if mask_id is None else rows.index(mask_id)
    )


def _cut(network: DiT, rows: list[int]) -> DiT:
    """The network over these rows of its vocabulary only."""
    with torch.device("meta"):
        smaller = DiT(replace(network.shape, vocab_size=len(rows)))
    weights = dict(network.state_dict())
    weights |= {name: weights[name][torch.tensor(rows)] for name in _ROWS}
    smaller.load_state_dict(weights, assign=True)
    return smaller
