"""Laws of the N-step bound on tables whose texts can be enumerated."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import sampler_p_value, sampler_reveal
from toy_sampling import (
    MASK,
    L,
    Table,
    V,
    alphas_of,
    causal,
    draw,
    filtered,
    masked,
    start,
    uniform,
)
from unmask.diffusion.schedules import LogLinear
from unmask.evaluation.likelihood import nelbo_batches
from unmask.evaluation.step_bound import (
    few_step_bound,
    readable_sampler,
    step_bound_batches,
    unmasking_nats,
)
from unmask.rng import generator
from unmask.samplers.counts import uniform_grid
from unmask.samplers.latent import Latent, draw_latent
from unmask.samplers.steps import SamplingProblem

TEXTS = torch.tensor([*itertools.product(range(V - 1), repeat=L)])
LEVELS = ["random", "spread", "spread,count=equal", "random,blocks=2", "spread,blocks=2"]
STATISTICS = [
    "entropy",
    "margin",
    "entropy,blocks=2",
    "entropy,count=bound:0.9",
    "margin,count=equal",
]


def likelihoods(
    model: object, levels: Tensor, alphas: Tensor, order: str, texts: Tensor = TEXTS, pins: int = 0
) -> Tensor:
    """q_N(x | u) of texts under one set of levels u [L]; the first `pins` tokens are given."""
    n = len(texts)
    latent = Latent(levels.expand(n, -1), torch.zeros(n, dtype=torch.int64))
    given = texts.where(torch.arange(L) < pins, -1)
    problem = SamplingProblem(model.process, given, latent, alphas)
    sampler = readable_sampler(model.process, order)
    nats = torch.zeros(n, dtype=torch.float64)
    for part, called in unmasking_nats(model.denoiser, problem, sampler, texts):
        assert len(called), "a call has samples"
        nats += part.sum(1)
    return (-nats).exp()


@pytest.mark.parametrize("order", LEVELS + STATISTICS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize(("eps", "sees_alpha"), [(1e-3, False), (0.3, True)])
def test_the_likelihoods_of_all_texts_sum_to_one(
    order: str, steps: int, eps: float, sees_alpha: bool
) -> None:
    model = masked(V, L, LogLinear(eps), sees_alpha=sees_alpha)
    alphas = uniform_grid(steps, model.schedule)
    for seed in range(5):
        levels = draw_latent(1, L, seed).u[0]
        assert likelihoods(model, levels, alphas, order).sum() == pytest.approx(1)
    prompted = TEXTS[TEXTS[:, 0] == 1]
    assert likelihoods(model, levels, alphas, order, prompted, 1).sum() == pytest.approx(1)


@pytest.mark.parametrize("eps", [1e-3, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_mean_over_all_plans_is_the_law_of_the_sampler(steps: int, eps: float) -> None:
    """A plan gives every token a step; the tokens of a plan are unmasked independently."""
    model = masked(V, L, LogLinear(eps), sees_alpha=True)
    alphas = uniform_grid(steps, model.schedule)
    exact = sampler_reveal(start((-1,) * L), alphas_of(model, steps), filtered(model), MASK)
    law = torch.zeros(len(TEXTS), dtype=torch.float64)
    for plan in itertools.product(range(steps), repeat=L):
        levels = (torch.tensor(plan).double() + 0.5) / steps
        law += likelihoods(model, levels, alphas, "random") / steps**L
    assert law.tolist() == pytest.approx([exact[tuple(text)] for text in TEXTS.tolist()])


@pytest.mark.parametrize("order", ["spread", "spread,count=equal", "spread,blocks=2", *STATISTICS])
@pytest.mark.parametrize("steps", [2, 5])
def test_the_likelihoods_are_the_law_of_the_sampler(order: str, steps: int) -> None:
    """In spread order the mean over all levels; in other orders the levels do not matter."""
    model = masked(V, L, LogLinear(0.1), seed=6, sees_alpha=True, one_level=False)
    alphas = uniform_grid(steps, model.schedule)
    size = 4 * 6 * steps  # the steps of all tokens are constant between these points
    firsts = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    law = sum(
        likelihoods(model, torch.stack([first, *torch.rand(L - 1).double()]), alphas, order)
        for first in (firsts if order.startswith("spread") else firsts[:1])
    )
    law = law / law.sum()
    tokens = draw(model, steps, sampler=f"order={order}").tokens
    exact = {tuple(text): float(p) for text, p in zip(TEXTS.tolist(), law, strict=True)}
    assert sampler_p_value(tokens, exact) > 1e-3


def test_one_token_a_call_is_the_entropy_of_a_perfect_model() -> None:
    """Then the bound of each text is -log p(x), whatever the order."""
    truth = torch.rand((V - 1,) * L, generator=torch.Generator().manual_seed(1)).double()
    truth /= truth.sum()

    class Perfect(Table):
        def rows(self, z: Tensor) -> Tensor:
            table = torch.full((*z.shape, V), -torch.inf, dtype=torch.float64)
            for b, i in np.ndindex(*z.shape):
                index = tuple(
                    slice(None) if at == i or token == MASK else token
                    for at, token in enumerate(z[b].tolist())
                )
                weights = truth[index]
                axis = sum(at < i and z[b, at] == MASK for at in range(L))
                others = [d for d in range(weights.dim()) if d != axis]
                table[b, i, : V - 1] = weights.sum(others).log() if others else weights.log()
            return table.log_softmax(-1)

    model = masked(V, L)
    model.denoiser = Perfect(V, L, mask_id=MASK)
    expected = np.array([-math.log(truth[tuple(text)]) for text in TEXTS.tolist()])
    p = np.exp(-expected)
    for order in ("random", "spread", "entropy", "margin"):
        every = few_step_bound(model, TEXTS, 3000, order)
        assert every.samples == pytest.approx(expected / L) and every.nfe == L
        # Fewer calls cost the factorisation error, and never gain in the mean.
        few = few_step_bound(model, TEXTS, 1, order)
        assert p @ np.array(few.samples) > p @ np.array(every.samples) + 0.01 / L and few.nfe == 1


def test_rows_and_batches_do_not_change_the_bound() -> None:
    model, rows = masked(V, L), TEXTS[:10]

    def bound(batch_size: int, passes: int = 2) -> tuple[float, ...]:
        how = {"passes": passes, "batch_size": batch_size}
        return few_step_bound(model, rows, 3, "spread", 3, **how).samples

    assert bound(1) == pytest.approx(bound(4))
    assert bound(4) != pytest.approx(bound(4, passes=1))


def test_given_tokens_have_no_score() -> None:
    """The mean is over the other tokens, and the given ones are visible from the start."""
    model = masked(V, L, one_level=False)
    given = torch.zeros_like(TEXTS, dtype=torch.bool)
    given[:, 1] = True
    bound = few_step_bound(model, TEXTS, 1, given=given)
    for text, nats in zip(TEXTS.tolist(), bound.samples, strict=True):
        law = model.denoiser.law((MASK, text[1], MASK), 0.0)
        assert nats == pytest.approx(-sum(math.log(law[i, text[i]]) for i in (0, 2)) / 2)
    assert bound.value == pytest.approx(np.mean(bound.samples)) and bound.n == len(TEXTS)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"order": "confidence"}, "order depends on the drawn tokens: got 'confidence'"),
        ({"order": "random,count=threshold:0.5"}, "order depends on the drawn tokens"),
        ({"order": "spam"}, "order is unknown: got 'spam'"),
        ({"steps": 0}, "steps is too small: got 0"),
        ({"passes": 0}, "passes is too small: got 0"),
        ({"batch_size": 0}, "batch_size is too small: got 0"),
        ({"temperature": 0.0}, "temperature is out of range: got 0"),
        ({"given": torch.ones_like(TEXTS, dtype=torch.bool)}, "given is not valid"),
        ({"given": TEXTS}, "given is not valid: got int64"),
        ({"ids": TEXTS + 1}, str(V - 1)),
        ({"ids": TEXTS[0]}, r"ids is not a table of token ids: got int64 \[3\]"),
        ({"ids": TEXTS[:0]}, r"ids is not a table of token ids: got int64 \[0, 3\]"),
        ({"ids": TEXTS.float()}, "ids is not a table of token ids: got float32"),
        ({"ids": ["abc"]}, "ids is not a tensor: got .*list"),
        ({"given": [[True]]}, "given is not a tensor: got .*list"),
        ({"model": "unmask:teacher"}, "unmask:teacher"),
        ({"model": causal(V, L)}, "model is autoregressive"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        few_step_bound(**{"model": masked(V, L), "ids": TEXTS, "steps": 2, **wrong})


def reference_uniform(model: object, x: tuple[int, ...], alphas: list[float]) -> float:
    """The discrete-time bound of one text by matrices, and by enumeration of z_t."""

    def forward(keep: float) -> np.ndarray:
        return keep * np.eye(V) + (1 - keep) / V

    first = forward(alphas[0])[list(x)]
    total = float((first * np.log(first * V)).sum())
    for a, b in itertools.pairwise(alphas):
        for z in itertools.product(range(V), repeat=L):
            weight = math.prod(forward(a)[x[i], z[i]] for i in range(L))
            law = model.denoiser.law(z, a)
            for i in range(L):
                true = forward(b)[x[i]] * forward(a / b)[:, z[i]]
                guess = (law[i] @ forward(b)) * forward(a / b)[:, z[i]]
                true, guess = true / true.sum(), guess / guess.sum()
                seen = true > 0
                total += weight * float((true[seen] * np.log(true[seen] / guess[seen])).sum())
    return total


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_uniform_noise_has_the_discrete_time_bound(steps: int) -> None:
    model = uniform(V, L, LogLinear(0.1), sees_alpha=True, one_level=False)
    alphas = uniform_grid(steps, model.schedule)
    n, text = 4000, (2, 0, 3)
    x0 = torch.tensor([text]).expand(n, -1)
    nats = L * np.array(few_step_bound(model, x0, steps, seed=5, batch_size=n).samples)
    exact = reference_uniform(model, text, alphas.tolist())
    assert nats.mean() == pytest.approx(exact, abs=4 * float(nats.std()) / math.sqrt(n))
    with pytest.raises(ValueError, match="order has no effect: got 'spread'"):
        few_step_bound(model, x0, steps, "spread")


def test_many_steps_of_uniform_noise_give_the_bound_in_continuous_time() -> None:
    model = uniform(V, L, LogLinear(1e-3), sees_alpha=False, one_level=False)
    n = 4000
    x0 = torch.tensor([[1, 0, 2]]).expand(n, -1)
    steps = sum(s.nats for s in step_bound_batches(model, x0, 200, seed=5, batch_size=n))
    limit = sum(
        nelbo_batches(
            model.denoiser, model.process, x0, passes=20, batch_size=n, generator=generator(7)
        )
    )
    error = 4 * math.hypot(float(steps.std()), float(limit.std())) / math.sqrt(n)
    assert steps.mean() == pytest.approx(float(limit.mean()), abs=error + 0.01)
