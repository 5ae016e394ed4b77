"""Reverse perplexity: the perplexity of real text under a small network trained on drawn texts.

A judge scores each drawn text separately, so it does not detect missing modes. This measure does: a
set of fluent texts without some modes is poor training data for real text (Zhao et al. 2018, arXiv
1706.04223).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from unmask.evaluation.judges import predictor_nats
from unmask.evaluation.measure import Measure, over_seeds
from unmask.models.denoiser import CausalPredictor
from unmask.models.dit import DiT, Shape
from unmask.objectives.autoregressive import NextToken
from unmask.rng import generator, global_generators
from unmask.types import Tokens

MIN_TEXTS = 16  # fourteen for training and two for early stopping
BATCH = 16
LR, WEIGHT_DECAY, CLIP = 3e-3, 0.1, 1.0
MAX_EPOCHS, PATIENCE = 30, 3  # stop after PATIENCE epochs without a gain of MIN_GAIN
MIN_GAIN = 1e-3  # nats per token


def reverse_perplexity(drawn: Tokens, real: Tokens, vocab_size: int, seeds: int = 1) -> Measure:
    """Perplexity of real rows x under a small network q that is trained on drawn rows only.

    The value is exp(-1 / (n L) sum_ij log q(x_ij | x_i<j)), for n rows of L tokens.

    A uniform model scores `vocab_size`; an overconfident wrong model can score higher. q is small
    (two blocks of width 64) and starts from random weights, so the number of texts matters much.
    Compare only rows of equal m and one tokenizer, and compare with the row of real texts. The
    value is not a perplexity of a model. Another draw of texts gives another value: the error
    covers only the spread over fits.

    Args:
        drawn: ids [m, L], m >= 16: seven eighths for training, the rest for early stopping, so
            that no real text is used.
        real: ids [n, L] that the model did not train on.
        vocab_size: V of the ids.
        seeds: fits, each with its own initial weights and order. The value is their mean, the
            error comes from their spread, and n counts them.
    """
    if seeds < 1:
        raise ValueError(f"seeds is too small: got {seeds}, want seeds >= 1 fitted networks")
    matrices = drawn.dim() == real.dim() == 2 and drawn.shape[1] == real.shape[1]
    if not matrices or len(drawn) < MIN_TEXTS or not len(real):
        raise ValueError(
            f"drawn or real has a wrong shape: got {tuple(drawn.shape)} and {tuple(real.shape)}, "
            f"want rows [m, L], m >= {MIN_TEXTS}, and rows [n, L], n >= 1"
        )
    values = [
        float((_nats(fit(drawn, vocab_size, seed), real).mean() / real.shape[1]).exp())
        for seed in range(seeds)
    ]
    unit = f"reverse perplexity of {len(drawn)} texts"
    return over_seeds([Measure(value, unit, 1) for value in values])


def fit(rows: Tokens, vocab_size: int, seed: int = 0) -> CausalPredictor:
    """Train a small causal network on rows [m, L], with early stopping on one eighth of them.

    Its token `vocab_size` precedes each row and is never predicted. Global random number generators
    are left unchanged.
    """
    rows = rows[torch.randperm(len(rows), generator=generator(seed, 0)).to(rows.device)]
    validation, training = rows.tensor_split([len(rows) // 8])
    shape = Shape(
        vocab_size + 1, rows.shape[1], width=64, blocks=2, heads=4, dropout=0.0, causal=True
    )
    with global_generators(seed, 1):
        network = DiT(shape).to(rows.device)
    predictor = CausalPredictor(network, mask_id=vocab_size)
    objective = NextToken(start_id=vocab_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    order = generator(seed, 2)
    least, best, epochs_without_gain = torch.inf, deepcopy(network.state_dict()), 0
    for _ in range(MAX_EPOCHS):
        for batch in torch.randperm(len(training), generator=order).to(rows.device).split(BATCH):
            objective(predictor, training[batch], step=0).per_token.mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
        nats = float(_nats(predictor, validation).sum())
        if nats < least - MIN_GAIN * validation.numel():
            least, best, epochs_without_gain = nats, deepcopy(network.state_dict()), 0
        elif (epochs_without_gain := epochs_without_gain + 1) == PATIENCE:
            break
    network.load_state_dict(best)
    return predictor.eval()


def _nats(predictor: CausalPredictor, rows: Tokens) -> Tensor:
    """-log q of each row, its first token included: float64 [n], nats."""
    start = torch.full_like(rows[:, :1], predictor.vocab_size - 1)
    parts = torch.cat([start, rows], dim=1).split(64)
    return torch.cat([predictor_nats(predictor, part).double().sum(dim=1) for part in parts])
