"""Reverse perplexity: lowest for real text, highest for missing modes, deterministic."""

import math

import pytest
import torch
from torch import Tensor

from unmask.evaluation.reverse_perplexity import fit, reverse_perplexity

V, L = 12, 8


def chain(n: int, seed: int, first: tuple[int, ...] = (0, 6)) -> Tensor:
    """Rows [n, 8] on a circle of six letters, `first` + 0 .. 5; steps of 1 or (one in four) 2."""
    source = torch.Generator().manual_seed(seed)
    side = torch.tensor(first)[torch.randint(len(first), (n, 1), generator=source)]
    steps = 1 + (torch.rand(n, L, generator=source) < 0.25).long()
    steps[:, 0] = torch.randint(6, (n,), generator=source)
    return side + steps.cumsum(dim=1) % 6


ENTROPY = (math.log(12) + 7 * (math.log(4) - 0.75 * math.log(3))) / L  # nats a token of `chain`
REAL = chain(200, seed=9)


@pytest.fixture(scope="module")
def of_real() -> float:
    return reverse_perplexity(chain(256, seed=1), REAL, V).value


def test_real_text_comes_near_the_entropy_of_its_source(of_real: float) -> None:
    assert math.exp(ENTROPY) * 0.97 < of_real < math.exp(ENTROPY) * 1.25


def test_a_missing_mode_costs_more_than_the_whole_vocabulary(of_real: float) -> None:
    """Half of the real rows are never drawn. A judge cannot notice that."""
    half = reverse_perplexity(chain(256, seed=1, first=(0,)), REAL, V)
    assert half.value > 2 * of_real
    one = reverse_perplexity(REAL[:1].expand(64, L), REAL, V)
    assert one.value > V, "sure of one text"


def test_unigrams_and_uniform_tokens_are_in_order(of_real: float) -> None:
    source = torch.Generator().manual_seed(0)
    uniform = reverse_perplexity(torch.randint(V, (256, L), generator=source), REAL, V).value
    assert uniform == pytest.approx(V, rel=0.05)
    assert of_real < 0.6 * uniform


def test_the_same_number_each_time_and_no_randomness_of_others() -> None:
    rows, state = chain(32, seed=2), torch.get_rng_state()
    one, two = (reverse_perplexity(rows, REAL, V, seeds=2) for _ in range(2))
    assert one == two and one.n == 2 and one.sem is not None and one.sem > 0
    assert "32 texts" in one.unit
    assert torch.equal(torch.get_rng_state(), state)
    alone = reverse_perplexity(rows, REAL, V)
    assert (
        alone.n == 1
        and alone.sem is None
        and abs(alone.value - one.value) == pytest.approx(one.sem)
    )
    assert torch.equal(rows, chain(32, seed=2))


def test_the_law_is_one_over_the_vocabulary() -> None:
    predictor = fit(chain(32, seed=2), V)
    with torch.no_grad():
        law = predictor(torch.tensor([[V, 0, 3]])).log_p().exp()
    assert law.shape == (1, 3, V + 1) and torch.allclose(law.sum(-1), torch.ones(1, 3), atol=1e-5)
    assert not law[..., V].any(), "what stands before a row is never predicted"


def test_what_cannot_be_compared_is_refused() -> None:
    for drawn, real in (
        (chain(15, 0), REAL),
        (chain(16, 0)[:, :4], REAL),
        (chain(16, 0), REAL[:0]),
        (REAL[0], REAL),
    ):
        with pytest.raises(ValueError, match=r"drawn or real .*, m >= 16"):
            reverse_perplexity(drawn, real, V)
    with pytest.raises(ValueError, match=r"seeds .* got 0"):
        reverse_perplexity(REAL, REAL, V, seeds=0)
