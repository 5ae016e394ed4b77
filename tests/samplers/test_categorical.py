"""Draws have the given law, filters keep the right tokens, the float32 draw is biased."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import sampler_filtered, sampler_p_value
from unmask import rng
from unmask.prediction import LOG_ZERO, Prediction
from unmask.samplers import categorical as draws
from unmask.samplers.categorical import (
    DRAW_LABELS,
    DRAWS,
    PRECISION,
    Draw,
    SamplingFilters,
    check_finite,
    draw_rows,
    gumbel_max,
    gumbel_max_float32,
    inverse_cdf,
    iter_blocks,
    iter_log_probs,
)
from unmask.samplers.latent import draw_latent

N = 30_000
LAW = torch.tensor([0.4, 0.0, 0.25, 0.2, 0.0, 0.15, 0.0], dtype=torch.float64)


def states(n: int = N, seed: int = 0) -> Tensor:
    return draw_latent(1, n, seed).address((torch.zeros(n, dtype=torch.int64), torch.arange(n)))


def positions(n: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, dtype=torch.int64), torch.arange(n)


def flag() -> Tensor:
    return torch.zeros((), dtype=torch.bool)


@pytest.mark.parametrize("draw", DRAWS.values())
@pytest.mark.parametrize("never", [-math.inf, LOG_ZERO])
def test_every_draw_has_the_law_and_never_draws_zero(draw: Draw, never: float) -> None:
    tokens = draw(LAW.log().clamp(min=never).expand(N, -1), states())
    assert tokens.shape == (N,) and tokens.dtype == torch.int64
    assert sampler_p_value(tokens[:, None], {(v,): float(p) for v, p in enumerate(LAW)}) > 1e-3


@pytest.mark.parametrize("draw", DRAWS.values())
def test_a_draw_is_a_function_of_its_row(draw: Draw) -> None:
    log_p, state = torch.randn(40, 9, dtype=torch.float64).log_softmax(-1), states(40)
    order = torch.randperm(40)
    assert torch.equal(draw(log_p[order], state[order]), draw(log_p, state)[order])


def test_shared_gumbel_noise_couples_laws_and_one_shared_number_does_not() -> None:
    """Gumbel-max: P(differ) <= 2 TV / (1 + TV). Inverse CDF: moved mass changes all between."""
    p = torch.full((50,), 0.02, dtype=torch.float64)
    q = p.clone()
    q[0], q[-1] = 0.01, 0.03
    tv = 0.01
    log_p, log_q = p.log().expand(N, -1), q.log().expand(N, -1)
    differ = {
        draw: float((draw(log_p, states()) != draw(log_q, states())).double().mean())
        for draw in (gumbel_max, inverse_cdf)
    }
    assert differ[gumbel_max] < 2 * tv / (1 + tv) + 3 * math.sqrt(2 * tv / N)
    assert differ[inverse_cdf] > 10 * differ[gumbel_max]


@pytest.mark.parametrize(
    ("odds", "window"), [(1e-8, 2**-21), (3e-8, 2**-20), (1e-6, 2**-15), (1e-4, 2**-9)]
)
def test_float32_noise_loses_rare_tokens(
    odds: float, window: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share drawn is x / (e^x - 1) of p, x = 2^-24 / odds: 0.015, 0.3, 0.97, 1.

    The rare token wins only where its uniform number is within `window` of 1, so the numbers are
    taken from there, on a stratified grid (importance sampling).
    """
    n = 2**18
    common, rare = (rng.stratified(n, torch.Generator().manual_seed(i)) for i in (0, 1))
    numbers = torch.stack([common, 1 - window * rare], dim=1)
    monkeypatch.setattr(draws, "uniform", lambda _: numbers.clone())
    monkeypatch.setattr(rng, "uniform", lambda _: numbers.clone())
    log_p = torch.tensor([1.0, odds], dtype=torch.float64).log().log_softmax(0).expand(n, -1)

    def share_of_p(draw: Draw) -> float:
        return float(draw(log_p, states(n)).double().mean()) * window / odds

    x = 2**-24 / odds
    assert share_of_p(gumbel_max) == pytest.approx(1, abs=0.03)
    assert share_of_p(gumbel_max_float32) == pytest.approx(x / math.expm1(x), abs=0.03)


laws = (
    st.lists(st.integers(0, 8), min_size=2, max_size=6)
    .filter(any)
    .map(lambda w: np.array(w) / sum(w))
)


@given(
    laws,
    st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0]),
    st.sampled_from([None, 1, 2, 4, 99]),
)
def test_filters_keep_the_tokens_of_a_plain_loop(
    p: np.ndarray, top_p: float, top_k: int | None
) -> None:
    """Ties and zeros (a MASK column) included: weights are small whole numbers."""
    log_p = torch.from_numpy(p).log().clamp(min=LOG_ZERO)[None]
    kept = SamplingFilters(top_p=top_p, top_k=top_k).apply(log_p)[0].exp().numpy()
    expected = sampler_filtered(p[None], top_k=top_k, top_p=top_p)[0]
    assert np.allclose(kept, expected, atol=1e-12)


@given(laws, st.floats(0.01, 0.99))
def test_top_p_keeps_a_smallest_set_that_reaches_p(p: np.ndarray, top_p: float) -> None:
    kept = (
        SamplingFilters(top_p=top_p)
        .apply(torch.from_numpy(p).log().clamp(min=LOG_ZERO)[None])[0]
        .exp()
        > 0
    )
    reaching = [
        subset
        for size in range(1, len(p) + 1)
        for subset in itertools.combinations(range(len(p)), size)
        if p[list(subset)].sum() >= top_p - 1e-6
    ]
    assert p[kept.numpy()].sum() >= top_p - 2e-6
    assert int(kept.sum()) == len(reaching[0])
    assert p[kept.numpy()].min() >= p[~kept.numpy()].max(initial=0)


@pytest.mark.parametrize(
    ("filters", "match"),
    [
        ({"temperature": 0.0}, "temperature .* got 0.0"),
        ({"temperature": -1.0}, "temperature .* got -1.0"),
        ({"temperature": math.nan}, "got nan"),
        ({"temperature": math.inf}, "got inf"),
        ({"top_p": 0.0}, "top_p .* got 0.0"),
        ({"top_p": 1.5}, "got 1.5"),
        ({"top_p": math.nan}, "got nan"),
        ({"top_k": 0}, "top_k is too small: got 0"),
    ],
)
def test_filters_refuse_values_out_of_range(filters: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SamplingFilters(**filters)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = Prediction.from_log_p(torch.randn(3, 5, 7))
    where = torch.tensor([0, 3, 4, 9, 11, 14])
    at = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 3, 4, 4, 1, 4])
    [(part, log_p)] = iter_log_probs(prediction, where, at, 0.7, None, flag())
    assert torch.equal(part[0], at[0]) and torch.equal(part[1], at[1])
    assert torch.equal(log_p, prediction.log_p(where, temperature=0.7))
    filters, token = SamplingFilters(top_k=3), torch.tensor([0, 1, 2, 3, 6, 6])
    whole = draw_rows(gumbel_max, filters, log_p, states(6)), filters.probability(log_p, token)
    [(_, law)] = iter_blocks(log_p)
    monkeypatch.setattr(draws, "CPU_BLOCK_ELEMENTS", 15)
    parts = list(iter_blocks(log_p))
    assert [rows for rows, _ in parts] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert torch.equal(torch.cat([block for _, block in parts]), law) and law.dtype == torch.float64
    assert torch.equal(law, log_p.double())
    assert torch.equal(draw_rows(gumbel_max, filters, log_p, states(6)), whole[0])
    assert torch.equal(filters.probability(log_p, token), whole[1])


@pytest.mark.parametrize(
    "filters", [SamplingFilters(), SamplingFilters(top_p=0.6), SamplingFilters(top_k=2)]
)
def test_the_probability_of_a_token_is_that_after_the_filters(filters: SamplingFilters) -> None:
    log_p, token = torch.randn(40, 7).log_softmax(-1), torch.arange(40) % 7
    chance = filters.probability(log_p, token)
    assert torch.allclose(
        chance, filters.apply(log_p.double()).exp()[torch.arange(40), token], atol=1e-12
    )
    assert chance.dtype == torch.float64 and bool((chance == 0).any()) != filters.keeps_all


def test_mask_has_probability_0_even_if_a_table_gives_it_more() -> None:
    table = Prediction.from_log_p(torch.zeros(1, 1, 4))
    [(_, log_p)] = iter_log_probs(table, torch.tensor([0]), positions(1), 1.0, 2, flag())
    assert torch.allclose(
        log_p.exp(), torch.tensor([[1 / 3, 1 / 3, 0, 1 / 3]], dtype=torch.float64)
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_log_probabilities_that_are_no_numbers_set_the_flag(bad: float) -> None:
    table = torch.zeros(2, 3, 4)
    table[1, 2, 3] = bad
    fine, broken = flag(), flag()
    prediction = Prediction.from_log_p(table)
    list(iter_log_probs(prediction, torch.tensor([0, 4]), positions(2), 1.0, None, fine))
    check_finite(fine)
    list(iter_log_probs(prediction, torch.tensor([0, 5]), positions(2), 1.0, None, broken))
    with pytest.raises(ValueError, match="not a number"):
        check_finite(broken)


def test_old_names_are_the_same_draws_and_rows_on_disk_keep_them() -> None:
    for new, old in (("gumbel_max", "race"), ("gumbel_max_float32", "legacy_gumbel32")):
        assert DRAWS[new] is DRAWS[old] and PRECISION[new] == PRECISION[old]
        assert DRAW_LABELS[new] == DRAW_LABELS[old] == old
    assert DRAW_LABELS["inverse_cdf"] == "inverse_cdf"
