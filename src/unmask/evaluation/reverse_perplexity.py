"""Reverse perplexity: how surprising real text is to a network that has only read drawn texts.

A judge reads each drawn text and never asks what is missing. This measure asks nothing else: a set of fluent texts that
leaves modes out teaches little about real ones (Zhao et al. 2018, arXiv 1706.04223).
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

LEAST = 16  # texts: fourteen to learn from and two to stop by
BATCH = 16
LR, WEIGHT_DECAY, CLIP = 3e-3, 0.1, 1.0
PASSES, PATIENCE = (
    30,
    3,
)  # the fit ends after so many passes over the texts, or so many without a gain of
GAIN = 1e-3  # nats a token


def reverse_perplexity(drawn: Tokens, real: Tokens, vocab_size: int, seeds: int = 1) -> Measure:
    """exp(-1 / (n L) sum_ij log q(x_ij | x_i<j)) over real rows x, q fitted to drawn rows only; `vocab_size` at worst,
    or worse: a network that is sure of the wrong text knows less than nothing.

    drawn  [m, L], m >= 16: seven eighths are learnt from, the rest says when to stop, so that no real text is seen
    real   [n, L]: held out from whatever drew
    seeds  fits, each with its own first weights and order: the value is their mean, the error from their spread, and
           n counts them

    q is small (two blocks of width 64) and starts from nothing, so the number of texts decides much: compare rows of
    equal m and one tokenizer only, and with the row of real texts. It is no perplexity of a model. Other texts of the
    same law give another value: the error holds that of the fits only.
    """
    if seeds < 1:
        raise ValueError(f"seeds counts the networks that are fitted: want seeds >= 1, got {seeds}")
    if (
        drawn.dim() != 2
        or real.dim() != 2
        or drawn.shape[1] != real.shape[1]
        or len(drawn) < LEAST
        or not len(real)
    ):
        raise ValueError(
            f"reverse perplexity learns from rows [m, L], m >= {LEAST}, and reads rows [n, L], n >= 1, of one length: "
            f"got {tuple(drawn.shape)} and {tuple(real.shape)}"
        )
    values = [
        float((_nats(fit(drawn, vocab_size, seed), real).mean() / real.shape[1]).exp())
        for seed in range(seeds)
    ]
    return over_seeds(
        [Measure(value, f"reverse perplexity of {len(drawn)} texts", 1) for value in values]
    )


def fit(rows: Tokens, vocab_size: int, seed: int = 0) -> CausalPredictor:
    """A small causal network fitted to rows [m, L], as it was when it knew its last eighth of them best.

    Token `vocab_size` of the network stands before each row and is never predicted. Global randomness is left alone.
    """
    rows = rows[torch.randperm(len(rows), generator=generator(seed, 0)).to(rows.device)]
    aside, learnt = rows.tensor_split([len(rows) // 8])
    shape = Shape(
        vocab_size + 1, rows.shape[1], width=64, blocks=2, heads=4, dropout=0.0, causal=True
    )
    with global_generators(seed, 1):
        network = DiT(shape).to(rows.device)
    predictor, objective = (
        CausalPredictor(network, mask_id=vocab_size),
        NextToken(start_id=vocab_size),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    order = generator(seed, 2)
    least, best, waited = torch.inf, deepcopy(network.state_dict()), 0
    for _ in range(PASSES):
        for batch in torch.randperm(len(learnt), generator=order).to(rows.device).split(BATCH):
            objective(predictor, learnt[batch], step=0).per_token.mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
        surprise = float(_nats(predictor, aside).sum())
        if surprise < least - GAIN * aside.numel():
            least, best, waited = surprise, deepcopy(network.state_dict()), 0
        elif (waited := waited + 1) == PATIENCE:
            break
    network.load_state_dict(best)
    return predictor.eval()


def _nats(predictor: CausalPredictor, rows: Tokens) -> Tensor:
    """-log q of each row, float64 [n] nats, its first token included."""
    start = torch.full_like(rows[:, :1], predictor.vocab_size - 1)
    parts = torch.cat([start, rows], dim=1).split(64)
    return torch.cat([predictor_nats(predictor, part).double().sum(dim=1) for part in parts])
