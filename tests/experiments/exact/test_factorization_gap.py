"""Samplers against enumerated distributions, and checks that fail for a wrong sampler."""

import math
from dataclasses import asdict, replace
from itertools import pairwise, product

import pytest
import torch
from scipy import stats

from unmask.experiments.exact.factorization_gap import (
    ChanceDistance,
    DrawnSamples,
    GapRow,
    calibrate_entropy_bound,
    chance_distance,
    draw,
    even,
    gap_checks,
    gap_rows,
    measure,
    order_rows,
    own_row,
    reveal_steps,
    spread,
)
from unmask.experiments.exact.oracle import masked_model, uniform_model
from unmask.experiments.exact.synthetic_sources import markov_chain, random_chain
from unmask.samplers.counts import entropy_bound
from unmask.samplers.orders import ENTROPY
from unmask.samplers.remasking import ancestral
from unmask.samplers.sample import sample
from unmask.samplers.unmasking import Unmasking, confidence, reveal

SMALL = random_chain(3, 2, 0.6, seed=1)  # of 3^4 texts
CHAIN = random_chain(8, 1, 0.4, seed=1)
N = 1000


def chi_square(tokens: torch.Tensor) -> float:
    texts = torch.tensor([*product(range(3), repeat=4)])
    place = torch.tensor([27, 9, 3, 1])
    counts = torch.bincount((tokens * place).sum(1), minlength=81).double()
    expected = SMALL.log_prob(texts).exp() * len(tokens)
    kept = expected > 5
    few = (float(counts[~kept].sum()), float(expected[~kept].sum()))
    observed, expected_counts = [*counts[kept].tolist(), few[0]], [*expected[kept].tolist(), few[1]]
    scaled = torch.tensor(expected_counts) * sum(observed) / sum(expected_counts)
    return float(stats.chisquare(observed, scaled).pvalue)


@pytest.mark.parametrize(
    "sampler",
    [even, spread, Unmasking(ENTROPY, entropy_bound(0.0))],
    ids=["even", "spread", "entropy_bounded:0"],
)
def test_one_token_a_call_has_the_distribution_of_the_source(sampler) -> None:
    drawn = draw(masked_model(SMALL), sampler, 4, 8000, 4, seed=0, traced=True)
    assert chi_square(drawn.tokens) > 1e-4
    torch.testing.assert_close(drawn.log_q, SMALL.log_prob(drawn.tokens), rtol=0, atol=1e-10)
    assert bool((drawn.nfe == 4).all())


@pytest.mark.parametrize("sampler", [reveal, confidence], ids=["reveal", "confidence"])
def test_chi_square_rejects_samplers_that_are_not_exact(sampler) -> None:
    assert chi_square(draw(masked_model(SMALL), sampler, 4, 8000, 4, seed=0).tokens) < 1e-4


def test_many_steps_of_uniform_noise_are_nearly_exact() -> None:
    assert chi_square(draw(uniform_model(SMALL), ancestral, 128, 1000, 4, seed=0).tokens) > 1e-4
    assert chi_square(draw(uniform_model(SMALL), ancestral, 2, 1000, 4, seed=0).tokens) < 1e-4


def test_log_q_of_a_batch_is_that_of_the_product_in_one_call() -> None:
    """This holds over batches too, and `draw` returns the texts of `sample`."""
    drawn = draw(masked_model(CHAIN), reveal, 1, 1100, 6, seed=3, traced=True)
    marginals = CHAIN.marginals(6).log()
    truth = marginals[torch.arange(6), drawn.tokens].sum(1)
    torch.testing.assert_close(drawn.log_q, truth)
    several = draw(masked_model(CHAIN), reveal, 3, 1100, 6, seed=3)
    again = sample(masked_model(CHAIN), n=1100, length=6, steps=3, seed=3, order="random")
    assert torch.equal(several.tokens, again.tokens) and torch.equal(several.nfe, again.nfe)


def test_steps_unmask_equally_many_tokens() -> None:
    for steps, counts in ((1, [6]), (4, [2, 1, 2, 1]), (6, [1] * 6)):
        drawn = draw(masked_model(SMALL), even, steps, 20, 6, seed=0)
        assert drawn.nfe.tolist() == [len(counts)] * 20


def test_the_measures_of_known_texts() -> None:
    """Two texts of the chain, worked out by hand."""
    tokens = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
    row = measure(CHAIN, "two", 7, DrawnSamples(tokens, torch.tensor([3, 4]), None))
    log_p = CHAIN.log_prob(tokens)
    assert (row.sampler, row.steps, row.nfe, row.kl) == ("two", 7, 3.5, None)
    assert row.nll.value == pytest.approx(-float(log_p.mean()) / 4) and row.nll.n == 2
    assert row.excess == pytest.approx(row.nll.value - CHAIN.entropy(4))
    assert row.entropy.value == pytest.approx(math.log(2))
    shares = {(0, 0): 1 / 6, (0, 1): 3 / 6, (1, 1): 1 / 6, (1, 0): 1 / 6}
    law = CHAIN.pairs(4)
    distance = (
        sum(abs(shares.get((a, b), 0.0) - float(law[a, b])) for a in range(8) for b in range(8)) / 2
    )
    assert row.pair_distance == pytest.approx(distance)
    assert row.pair_entropy == pytest.approx(-sum(p * math.log(p) for p in shares.values()))


def test_texts_of_the_source_have_the_chance_distance() -> None:
    least, row = chance_distance(CHAIN, 500, 8, seed=0), own_row(CHAIN, 500, 8, seed=1)
    assert abs(row.pair_distance - least.mean) < 6 * least.deviation
    assert abs(row.excess) < 4 * row.nll.sem and row.kl.value == 0
    more = chance_distance(CHAIN, 2000, 8, seed=0)
    assert more.mean == pytest.approx(least.mean / 2, rel=0.15), (
        "the chance distance falls as 1 / sqrt n"
    )


@pytest.fixture(scope="module")
def families() -> tuple[list[GapRow], list[GapRow], ChanceDistance]:
    model = masked_model(CHAIN)
    rows = [[*gap_rows(model, name, sampler, [1, 2, 4, 8], N, 8, 0, traced=True)]
            for name, sampler in (("reveal", reveal), ("even", even))]  # fmt: skip
    return rows[0], rows[1], chance_distance(CHAIN, N, 8, seed=1)


def test_the_gap_decreases_and_the_checks_pass(families) -> None:
    rows, even_rows, least = families
    for family in families[:2]:
        for one, more in pairwise(family):
            assert more.kl.value < one.kl.value - 4 * one.kl.sem and more.nll.value < one.nll.value
            assert more.pair_distance < one.pair_distance
        assert all(row.excess > 0 for row in family[:-1])
    assert rows[-1].nfe < 0.7 * 8 and even_rows[-1].nfe == 8
    assert all(check.passed for check in gap_checks(CHAIN, rows, even_rows, least, seed=2))


def test_each_check_fails_for_its_own_fault(families) -> None:
    rows, even_rows, least = families
    last, first = even_rows[-1], even_rows[0]
    faults = {
        "one token a call: nll = entropy": replace(last, excess=0.1),
        "one token a call: q = p, text by text": replace(last, kl=replace(last.kl, value=1e-6)),
        "one token a call: pairs as by chance": replace(last, pair_distance=first.pair_distance),
    }
    for name, row in faults.items():
        checks = gap_checks(CHAIN, rows, [*even_rows[:-1], row], least, seed=2)
        assert name in {check.name for check in checks if not check.passed}, name
    off = replace(rows[0], nll=replace(rows[0].nll, value=rows[0].nll.value + 0.3))
    checks = gap_checks(CHAIN, [off, *rows[1:]], even_rows, least, seed=2)
    assert {c.name for c in checks if not c.passed} == {"one call: product of marginals (reveal)"}


def test_reveal_steps_make_the_requested_calls() -> None:
    for calls in (2, 4, 7):
        steps = reveal_steps(calls, 8)
        nfe = float(draw(masked_model(SMALL), reveal, steps, 2000, 8, seed=0).nfe.double().mean())
        assert abs(nfe - calls) < 0.5
    with pytest.raises(ValueError, match=r"nfe .*got 8.*nfe < 8"):
        reveal_steps(8, 8)


def test_orders_are_compared_at_equal_calls() -> None:
    rows = [*order_rows(masked_model(CHAIN), 3, 400, 8, seed=0)]
    assert [row.sampler.partition(":")[0] for row in rows] == [
        "reveal",
        "even",
        "spread",
        "confidence",
        "entropy_bounded",
    ]
    assert all(abs(row.nfe - 3) < 0.4 for row in rows)
    assert abs(rows[-1].nfe - 3) < 0.1, "two bounds are mixed if calls jump"
    assert rows[3].kl is None and all(row.kl is not None for row in (*rows[:3], rows[4]))
    even_row, spread_row, confidence_row = rows[1], rows[2], rows[3]
    assert spread_row.kl.value < even_row.kl.value / 3, (
        "far apart, the tokens of a chain are nearly independent"
    )
    assert (
        confidence_row.nll.value < even_row.nll.value
        and confidence_row.pair_distance > even_row.pair_distance
    )
    low, high, share = calibrate_entropy_bound(masked_model(CHAIN), 8, 50, 8, seed=0)
    assert (low, high, share) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"nfe .*got 9.*nfe <= 8"):
        calibrate_entropy_bound(masked_model(CHAIN), 9, 50, 8, seed=0)


def test_rows_are_plain() -> None:
    row = asdict(own_row(SMALL, 100, 4, seed=0))
    assert {type(value) for value in row.values()} == {str, int, float, dict}


@pytest.mark.parametrize(("steps", "share"), [(2, 0.533), (64, 0.922)])
def test_uniform_noise_does_not_trust_a_pinned_token(steps: int, share: float) -> None:
    """Two equal tokens, the first given: masked diffusion always copies it, uniform noise does not.

    A denoiser of uniform noise gets one alpha for all tokens, so a given token has no more weight.
    """
    source, n = markov_chain(torch.eye(4, dtype=torch.float64), start=torch.full((4,), 0.25)), 4000
    pinned = torch.tensor([[2, -1]]).expand(n, -1)
    copies = {
        model.process: float(
            (sample(model, n, 2, steps, pinned=pinned).tokens[:, 1] == 2).double().mean()
        )
        for model in (masked_model(source), uniform_model(source))
    }
    masked_share, uniform_share = copies.values()
    assert masked_share == 1
    assert abs(uniform_share - share) < 5 * math.sqrt(share * (1 - share) / n) + 0.01
