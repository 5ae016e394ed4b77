"""Sources against their definition: enumerated texts, products of probabilities, Bayes' rule."""

import math
from itertools import pairwise, product

import pytest
import torch
from scipy import stats
from torch import Tensor

from unmask.diffusion.processes import MaskedProcess
from unmask.experiments.exact.oracle import evidence, masked_model, uniform_model
from unmask.experiments.exact.synthetic_sources import (
    SyntheticSource,
    grammar,
    markov_chain,
    random_chain,
    random_grammar,
)
from unmask.prediction import LOG_ZERO

LENGTH = 4


def chain_law(source_table: Tensor, start: Tensor, length: int) -> dict[tuple[int, ...], float]:
    """p(x) by the chain rule; at order 2 the token before the text is summed out."""
    order, size = source_table.dim() - 1, source_table.shape[-1]
    law = {}
    for x in product(range(size), repeat=length):
        if order == 1:
            p = float(start[x[0]])
            for a, b in pairwise(x):
                p *= float(source_table[a, b])
        else:
            p = 0.0
            for before in range(size):
                q, text = float(start[before, x[0]]), (before, *x)
                for a, b, c in zip(text, text[1:], text[2:], strict=False):
                    q *= float(source_table[a, b, c])
                p += q
        law[x] = p
    return law


def grammar_law(
    weights: list[float], templates: list[Tensor], length: int
) -> dict[tuple[int, ...], float]:
    """Every sequence of templates that fills the text, summed."""
    size = templates[0].shape[1]
    law = dict.fromkeys(product(range(size), repeat=length), 0.0)

    def write(slots: list[Tensor], p: float) -> None:
        if len(slots) >= length:
            for x in law:
                law[x] += p * math.prod(float(slot[v]) for slot, v in zip(slots, x, strict=False))
            return
        for weight, template in zip(weights, templates, strict=True):
            write([*slots, *template], p * weight)

    write([], 1.0)
    return law


def laws() -> dict[str, tuple[SyntheticSource, dict[tuple[int, ...], float]]]:
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        table = torch.rand(*shape, generator=rng, dtype=torch.float64) + 0.02
        return table / table.sum(-1, keepdim=True)

    first, second = random(3, 3), random(3, 3, 3)
    given, pair = random(3), random(9).view(3, 3)
    opens = torch.tensor([[1, 0, 1], [1, 1, 1]]), torch.tensor([[0, 1, 0], [1, 1, 1], [1, 1, 1]])
    templates = [random(*mask.shape) * mask for mask in opens]
    templates = [t / t.sum(-1, keepdim=True) for t in templates]
    return {
        "order 1": (markov_chain(first, given), chain_law(first, given, LENGTH)),
        "order 2": (markov_chain(second, pair), chain_law(second, pair, LENGTH)),
        "grammar": (
            grammar(torch.tensor([0.3, 0.7], dtype=torch.float64), templates),
            grammar_law([0.3, 0.7], templates, LENGTH),
        ),
    }


LAWS = laws()


@pytest.fixture(params=LAWS)
def known(request: pytest.FixtureRequest) -> tuple[SyntheticSource, Tensor, Tensor]:
    """(source, texts [X, L], p [X])"""
    source, law = LAWS[request.param]
    return source, torch.tensor([*law]), torch.tensor([*law.values()], dtype=torch.float64)


def test_log_prob_is_the_law_and_sums_to_one(known) -> None:
    source, texts, p = known
    torch.testing.assert_close(source.log_prob(texts).exp(), p, rtol=1e-12, atol=1e-15)
    assert math.isclose(float(source.log_prob(texts).exp().sum()), 1, rel_tol=1e-12)


def test_entropy_marginals_and_pairs(known) -> None:
    source, texts, p = known
    for length in range(1, LENGTH + 1):
        shorter: dict[tuple[int, ...], float] = {}
        for x, weight in zip(texts[:, :length].tolist(), p.tolist(), strict=True):
            shorter[tuple(x)] = shorter.get(tuple(x), 0.0) + weight
        truth = -sum(weight * math.log(weight) for weight in shorter.values() if weight) / length
        assert math.isclose(source.entropy(length), truth, rel_tol=1e-12)
    marginals, pairs = (
        torch.zeros(LENGTH, 3, dtype=torch.float64),
        torch.zeros(3, 3, dtype=torch.float64),
    )
    for x, weight in zip(texts.tolist(), p, strict=True):
        for i, v in enumerate(x):
            marginals[i, v] += weight
        for a, b in pairwise(x):
            pairs[a, b] += weight / (LENGTH - 1)
    torch.testing.assert_close(source.marginals(LENGTH), marginals)
    torch.testing.assert_close(source.pairs(LENGTH), pairs)


def bayes(texts: Tensor, p: Tensor, likelihood: Tensor) -> Tensor:
    """p(x_i = v | evidence at other positions) [L, V], by a sum over all texts."""
    length, size = likelihood.shape
    law = torch.zeros(length, size, dtype=torch.float64)
    for x, weight in zip(texts.tolist(), p.tolist(), strict=True):
        for i in range(length):
            law[i, x[i]] += weight * math.prod(
                float(likelihood[j, x[j]]) for j in range(length) if j != i
            )
    return law / law.sum(-1, keepdim=True)


def test_masked_conditionals_are_bayes(known) -> None:
    source, texts, p = known
    denoiser = masked_model(source).denoiser
    canvases = [z for z in product(range(4), repeat=LENGTH) if float(seen(texts, p, z)) > 0][::5]
    predicted = denoiser(torch.tensor(canvases), torch.full((len(canvases),), 0.5)).log_p()
    assert predicted.dtype == torch.float64
    for z, row in zip(canvases, predicted, strict=True):
        likelihood = torch.tensor(
            [[1.0 if v in (3, w) or w == 3 else 0.0 for w in range(3)] for v in z]
        )
        truth = bayes(texts, p, likelihood)
        for i, v in enumerate(z):
            if v == 3:
                torch.testing.assert_close(row[i, :3].exp(), truth[i], rtol=1e-10, atol=1e-12)
                assert row[i, 3] <= LOG_ZERO, "MASK is never predicted"
            else:
                assert row[i, v] == 0 and float(row[i].exp().sum()) == 1, "a visible token is kept"


def seen(texts: Tensor, p: Tensor, z: tuple[int, ...]) -> Tensor:
    canvas = torch.tensor(z)
    return p[((texts == canvas) | (canvas == 3)).all(1)].sum()


def test_uniform_conditionals_are_bayes_and_leave_one_out(known) -> None:
    source, texts, p = known
    denoiser = uniform_model(source).denoiser
    canvases = torch.tensor([*product(range(3), repeat=LENGTH)])[::7]
    alpha = torch.linspace(0, 0.95, len(canvases), dtype=torch.float64)
    predicted = denoiser(canvases, alpha).log_p().exp()
    assert denoiser.sees_alpha
    for z, a, row in zip(canvases.tolist(), alpha.tolist(), predicted, strict=True):
        likelihood = torch.tensor(
            [[a * (w == v) + (1 - a) / 3 for w in range(3)] for v in z], dtype=torch.float64
        )
        torch.testing.assert_close(row, bayes(texts, p, likelihood), rtol=1e-10, atol=1e-12)


def test_the_likelihood_of_evidence_is_a_sum_over_texts(known) -> None:
    source, texts, p = known
    weights = torch.rand(
        5, LENGTH, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    likelihoods = weights[:, torch.arange(LENGTH), texts].prod(-1)  # [5, texts]
    torch.testing.assert_close(source.log_likelihood(weights).exp(), likelihoods @ p)


def test_samples_have_the_law(known) -> None:
    source, texts, p = known
    n = 20_000
    x = source.sample(n, LENGTH, torch.Generator().manual_seed(2))
    counts = torch.bincount((x * 3 ** torch.arange(LENGTH)).sum(1), minlength=3**LENGTH)
    counts = counts[(texts * 3 ** torch.arange(LENGTH)).sum(1)].double()
    assert float(counts[p == 0].sum()) == 0
    assert stats.chisquare(counts[p > 0], n * p[p > 0] / p.sum()).pvalue > 1e-4


@pytest.mark.parametrize("order", [1, 2])
def test_a_stationary_chain_has_one_law_everywhere(order: int) -> None:
    source = random_chain(5, order, concentration=0.5, seed=3)
    marginals = source.marginals(12)
    torch.testing.assert_close(marginals, marginals[:1].expand_as(marginals), rtol=0, atol=1e-12)
    assert math.isclose(source.rate(8), source.rate(20), rel_tol=1e-9), (
        "the rate of a chain is reached at its order"
    )


def test_an_order_2_chain_that_ignores_the_older_token_equals_order_1() -> None:
    """20 tokens and texts of 300: no probability underflows."""
    first = random_chain(20, 1, concentration=0.3, seed=4)
    table = first.transition
    second = markov_chain(table.expand(20, 20, 20).clone())
    x = first.sample(3, 300, torch.Generator().manual_seed(5))
    torch.testing.assert_close(first.log_prob(x), second.log_prob(x), rtol=1e-9, atol=0)
    z = x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(6)) < 0.6, 20)
    alpha = torch.full((3,), 0.4, dtype=torch.float64)
    both = [
        masked_model(source).denoiser(z, alpha).log_p(z == 20).exp() for source in (first, second)
    ]
    torch.testing.assert_close(*both, rtol=1e-8, atol=1e-12)
    assert math.isclose(first.entropy(9), second.entropy(9), rel_tol=1e-9)


def test_a_grammar_gives_every_text_a_probability_and_its_entropy_is_exact() -> None:
    source = random_grammar(8, seed=1)
    x = torch.randint(8, (50, 20), generator=torch.Generator().manual_seed(0))
    assert bool(source.log_prob(x).isfinite().all())
    own_texts = source.sample(4000, 12, torch.Generator().manual_seed(1))
    nll = -source.log_prob(own_texts) / 12
    assert abs(float(nll.mean()) - source.entropy(12)) < 4 * float(nll.std()) / 4000**0.5


@pytest.mark.parametrize(("call", "words"), [
    (lambda: random_chain(8, 3), "order .*got 3"),
    (lambda: random_chain(1), "vocab_size .*got 1"),
    (lambda: random_chain(8, 1, 0.0), "concentration .*got 0.0"),
    (lambda: random_grammar(8, slip=1.0), "slip .*got 1.0"),
    (lambda: markov_chain(torch.ones(2, 2)), "transition .*sum to 1"),
    (lambda: markov_chain(torch.ones(2, 3) / 3), "transition has shape .*2, 3"),
    (lambda: grammar(torch.ones(2) / 2, [torch.ones(1, 2) / 2] * 2), "templates share a token"),
    (lambda: random_chain(3).sample(2, 0), "length .*got 0"),
    (lambda: random_chain(3).conditionals(torch.zeros(1, 2, 3)), "evidence .*probability 0"),
    (lambda: random_chain(3).conditionals(torch.zeros(1, 2, 4)), r"evidence .*\[B, L, 3\]"),
])  # fmt: skip
def test_errors_name_the_remedy(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_evidence_at_a_mask_is_all_ones() -> None:
    values = evidence(MaskedProcess(4, 3), torch.tensor([[3, 1]]), torch.tensor([0.5]))
    assert values.tolist() == [[[1, 1, 1], [0, 1, 0]]]
