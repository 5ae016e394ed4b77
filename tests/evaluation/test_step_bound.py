"""Laws of the N-step bound on tables whose texts can be enumerated."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import sampler_reveal
from toy_sampling import MASK, L, Table, V, alphas_of, filtered, masked, start, uniform
from unmask.diffusion.schedules import LogLinear
from unmask.diffusion.trajectory import Trajectory
from unmask.evaluation.likelihood import nelbo_batches
from unmask.evaluation.step_bound import corruption, step_bound_batches, step_nats
from unmask.rng import generator
from unmask.samplers.counts import uniform_grid
from unmask.samplers.latent import Latent, draw_latent
from unmask.samplers.orders import RANDOM, SPREAD

TEXTS = torch.tensor([*itertools.product(range(V - 1), repeat=L)])


def likelihoods(model: object, levels: Tensor, alphas: Tensor) -> Tensor:
    """q_N(x | u) of all texts x under one set of levels u [L]."""
    path = Trajectory(TEXTS, torch.full_like(TEXTS, MASK), levels.expand(len(TEXTS), -1))
    nats = sum(step_nats(model.denoiser, model.process, path, alphas))
    return (-nats.sum(1)).exp()


@pytest.mark.parametrize("order", [RANDOM, SPREAD])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize(("eps", "sees_alpha"), [(1e-3, False), (0.3, True)])
def test_the_likelihoods_of_all_texts_sum_to_one(
    order: object, steps: int, eps: float, sees_alpha: bool
) -> None:
    model = masked(V, L, LogLinear(eps), sees_alpha=sees_alpha)
    alphas = uniform_grid(steps, model.schedule)
    for seed in range(5):
        one = draw_latent(1, L, seed)
        latent = Latent(one.u.expand(len(TEXTS), -1), one.key.expand(len(TEXTS)))
        path = corruption(model.process, TEXTS, alphas, latent, order)
        assert likelihoods(model, path.u[0], alphas).sum() == pytest.approx(1)


@pytest.mark.parametrize("eps", [1e-3, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_mean_over_all_plans_is_the_law_of_the_sampler(steps: int, eps: float) -> None:
    """A plan gives every token a step; the tokens of a plan are unmasked independently."""
    model = masked(V, L, LogLinear(eps), sees_alpha=True)
    alphas = uniform_grid(steps, model.schedule)
    exact = sampler_reveal(start((-1,) * L), alphas_of(model, steps), filtered(model), MASK)
    shares = alphas.diff() / (1 - alphas[0])
    law = torch.zeros(len(TEXTS), dtype=torch.float64)
    for plan in itertools.product(range(steps), repeat=L):
        levels = torch.stack([(alphas[k] + alphas[k + 1]) / 2 for k in plan])
        law += shares[[*plan]].prod() * likelihoods(model, levels, alphas)
    assert law.tolist() == pytest.approx([exact[tuple(text)] for text in TEXTS.tolist()])


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
    alphas = uniform_grid(3000, model.schedule)
    for order in (RANDOM, SPREAD):
        nats = sum(step_bound_batches(model.denoiser, model.process, TEXTS, alphas, order))
        expected = [-math.log(truth[tuple(text)]) for text in TEXTS.tolist()]
        assert nats.tolist() == pytest.approx(expected)
        # Fewer calls cost the factorisation error, and never gain in the mean.
        few = sum(step_bound_batches(model.denoiser, model.process, TEXTS, alphas[[0, -1]], order))
        p = torch.tensor(expected).neg().exp()
        assert (p * few).sum() > (p * nats).sum() + 0.01


def test_rows_and_batches_do_not_change_the_bound() -> None:
    model = masked(V, L)
    alphas, rows = uniform_grid(3, model.schedule), TEXTS[:10]

    def bound(batch_size: int, passes: int = 2) -> Tensor:
        how = {"passes": passes, "batch_size": batch_size, "seed": 3}
        return sum(step_bound_batches(model.denoiser, model.process, rows, alphas, SPREAD, **how))

    assert bound(1).tolist() == pytest.approx(bound(4).tolist())
    assert bound(4).tolist() != pytest.approx(bound(4, passes=1).tolist())


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
    how = {"batch_size": n, "seed": 5}
    nats = sum(step_bound_batches(model.denoiser, model.process, x0, alphas, RANDOM, **how))
    exact = reference_uniform(model, text, alphas.tolist())
    assert nats.mean() == pytest.approx(exact, abs=4 * float(nats.std()) / math.sqrt(n))


def test_many_steps_of_uniform_noise_give_the_bound_in_continuous_time() -> None:
    model = uniform(V, L, LogLinear(1e-3), sees_alpha=False, one_level=False)
    n = 4000
    x0 = torch.tensor([[1, 0, 2]]).expand(n, -1)
    alphas = uniform_grid(200, model.schedule)
    how = {"batch_size": n, "seed": 5}
    steps = sum(step_bound_batches(model.denoiser, model.process, x0, alphas, RANDOM, **how))
    limit = sum(
        nelbo_batches(
            model.denoiser, model.process, x0, passes=20, batch_size=n, generator=generator(7)
        )
    )
    error = 4 * math.hypot(float(steps.std()), float(limit.std())) / math.sqrt(n)
    assert steps.mean() == pytest.approx(float(limit.mean()), abs=error + 0.01)
