"""Optima of objectives: closed forms against sums, gradients and the library's training."""

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear
from unmask.experiments.exact.distillation_optima import (
    EQ14,
    OBJECTIVES,
    PLAIN,
    TableStudent,
    TabularObjective,
    distance,
    eq14_optimum,
    fixed_point,
    fixed_point_checks,
    optimum,
    teacher_at_temperature,
    train,
)
from unmask.experiments.exact.oracle import (
    EnumeratedSource,
    coupled_pairs,
    enumerate_source,
    sampled_distribution,
)
from unmask.experiments.exact.synthetic_sources import random_chain
from unmask.objectives.consistency import distillation_loss
from unmask.samplers.sample import sample

GEOMETRIC = TabularObjective("geometric", "reverse", "none")
HYBRID = TabularObjective("hybrid", "reverse", "cross_entropy", temperatures=(0.8,))


@pytest.fixture(scope="module")
def source() -> EnumeratedSource:
    return enumerate_source(random_chain(2, 1, 0.7, seed=5), length=3)


@pytest.fixture(scope="module")
def wide() -> EnumeratedSource:
    return enumerate_source(random_chain(3, 1, 0.5, seed=1), length=3)


@pytest.mark.parametrize("coupling", ["locked", "independent"])
def test_pairs_are_distributed_as_the_trajectory(source: EnumeratedSource, coupling) -> None:
    """Against a mean over a fine grid of t, mask by mask."""
    delta, schedule, points = 0.4, LogLinear(), 4000
    pairs = coupled_pairs(source, delta, coupling)
    assert math.isclose(float(pairs.weight.sum()), 1, rel_tol=1e-12)
    t = delta + (1 - delta) * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    a_t, a_s = schedule.alpha(t), schedule.alpha(t - delta)
    masks = [*product([False, True], repeat=3)]
    for number, (m_t, m_s) in enumerate(product(masks, masks)):
        chance = torch.ones(points, dtype=torch.float64)
        for in_t, in_s in zip(m_t, m_s, strict=True):
            if coupling == "independent":
                chance = chance * ((1 - a_t) if in_t else a_t) * ((1 - a_s) if in_s else a_s)
            else:
                both = {(1, 1): 1 - a_s, (1, 0): a_s - a_t, (0, 1): 0 * a_t, (0, 0): a_t}
                chance = chance * both[int(in_t), int(in_s)]
        here = (pairs.masked_t == torch.tensor(m_t)).all(1) & (
            pairs.masked_s == torch.tensor(m_s)
        ).all(1)
        assert math.isclose(float(pairs.weight[here].sum()), float(chance.mean()), abs_tol=1e-6), (
            number
        )


def expected_gradient(
    source: EnumeratedSource, objective: TabularObjective, logits: torch.Tensor
) -> torch.Tensor:
    """The gradient of the exact mean of `distillation_loss` over all coupled pairs."""
    pairs = coupled_pairs(source, 0.5, objective.coupling)
    student, teacher = TableStudent(logits), TableStudent(source.teacher)
    alpha = torch.ones(len(pairs.weight), dtype=torch.float64)
    loss = distillation_loss(
        student(source.canvases[pairs.t], alpha),
        teacher(source.canvases[pairs.s], alpha),
        pairs.x0,
        pairs.masked_t,
        pairs.masked_s,
        temperature=objective.temperatures[0],
        direction=objective.direction,
        revealed=objective.revealed,
    )
    total = (pairs.weight * loss.sum(1)).sum()
    (gradient,) = torch.autograd.grad(total, student.logits)
    return gradient


@pytest.mark.parametrize(
    "objective",
    [*(objective for objective in OBJECTIVES if len(objective.temperatures) == 1), HYBRID],
    ids=lambda objective: objective.name,
)
def test_the_gradient_is_zero_at_the_optimum_only(
    source: EnumeratedSource, objective: TabularObjective
) -> None:
    best, _ = optimum(source, objective)
    assert float(expected_gradient(source, objective, best).abs().max()) < 1e-12
    moved = best + 0.1 * torch.randn(
        best.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert float(expected_gradient(source, objective, moved).abs().max()) > 1e-4


def test_forward_kl_keeps_an_exact_teacher(wide: EnumeratedSource) -> None:
    for objective in OBJECTIVES:
        best, weight = optimum(wide, objective)
        difference = float((weight[..., None] * (best.exp() - wide.teacher.exp()).abs()).max())
        if objective.keeps_teacher:
            assert difference < 1e-14, objective.name
        else:
            assert difference > 1e-5, objective.name


def test_reverse_kl_is_the_geometric_mean(source: EnumeratedSource) -> None:
    """At the all-MASK canvas and its first position, by a plain sum over texts and masks."""
    best = optimum(source, GEOMETRIC)[0][-1, 0].exp()
    mean, total = torch.zeros(2, dtype=torch.float64), 0.0
    points = 2000
    t = 0.5 + 0.5 * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    a_t, a_s = LogLinear().alpha(t), LogLinear().alpha(t - 0.5)
    for x, p in zip(source.texts.tolist(), source.log_p.exp().tolist(), strict=True):
        for visible in product(
            [False, True], repeat=2
        ):  # positions 2 and 3 in z_s; z_t is all MASK
            chance = 1 - a_s
            for is_visible in visible:
                chance = chance * ((a_s - a_t) if is_visible else (1 - a_s))
            z = (2, *(v if is_visible else 2 for v, is_visible in zip(x[1:], visible, strict=True)))
            weight = p * float(chance.mean())
            law = torch.zeros(2, dtype=torch.float64)
            for y, q in zip(source.texts.tolist(), source.log_p.exp().tolist(), strict=True):
                if all(v in (2, w) for v, w in zip(z, y, strict=True)):
                    law[y[0]] += q
            mean, total = mean + weight * (law / law.sum()).log(), total + weight
    torch.testing.assert_close(best, (mean / total).softmax(-1), rtol=1e-5, atol=0)


def test_eq14_optimum_at_its_limits() -> None:
    """b = 0: the geometric mean. a = 0: the frequencies. Otherwise between them."""
    log_g = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    b = torch.tensor([[0.1, 0.1, 0.2]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(eq14_optimum(one, log_g, 0 * b), log_g, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        eq14_optimum(0 * one, log_g, b).exp(), b / b.sum(), rtol=1e-9, atol=1e-12
    )
    p = eq14_optimum(one, log_g, b).exp()[0]
    assert 0.25 < float(p[0]) < 0.7 and math.isclose(float(p.sum()), 1, rel_tol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_sampled_distribution_is_that_of_sample(source: EnumeratedSource, steps: int) -> None:
    """Against texts of `sample`, for predictions that differ from the source's."""
    log_p, _ = optimum(source, HYBRID)
    schedule = LogLinear(eps=0.0)
    model = SimpleNamespace(
        denoiser=TableStudent(log_p), process=MaskedProcess(3, 2), schedule=schedule, tokenizer=None
    )
    n = 20_000
    drawn = sample(model, n=n, length=3, steps=steps, seed=3, order="random").tokens
    counts = torch.bincount((drawn * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    law = sampled_distribution(source, log_p, steps)
    assert math.isclose(float(law.sum()), 1, rel_tol=1e-12)
    assert stats.chisquare(counts, n * law).pvalue > 1e-4


def test_one_step_draws_the_product_of_marginals(wide: EnumeratedSource) -> None:
    law = sampled_distribution(wide, wide.teacher, steps=1)
    product_law = wide.source.marginals(3)[torch.arange(3), wide.texts].prod(-1)
    torch.testing.assert_close(law, product_law)
    row = teacher_at_temperature(wide, 1.0)
    assert math.isclose(row.kl[0], float((law * (law.log() - wide.log_p)).sum()) / 3, rel_tol=1e-9)
    assert row.from_teacher == pytest.approx(0, abs=1e-12) and row.kl[0] > row.kl[1] > row.kl[2] > 0


@pytest.mark.parametrize(
    "objective",
    [
        PLAIN,
        GEOMETRIC,
        HYBRID,
        TabularObjective("rounds", "reverse", "none", "locked", (0.9, 0.9)),
    ],
    ids=lambda objective: objective.name,
)
def test_training_finds_the_optimum(source: EnumeratedSource, objective: TabularObjective) -> None:
    """A table trained by `Consistency` ends at the closed form, and not at another objective's."""
    trained = train(source, objective, steps=200, batch=512, seed=1)
    best, weight = optimum(source, objective)
    remaining = distance(best, trained, weight)
    assert remaining < 5e-4
    for other in (PLAIN, GEOMETRIC, HYBRID):
        other_best, _ = optimum(source, other)
        if other != objective and distance(other_best, best, weight) > 4e-3:
            assert distance(other_best, trained, weight) > 4 * remaining


def test_a_check_fails_for_another_optimum(wide: EnumeratedSource) -> None:
    rows = [
        fixed_point(wide, objective.name, *optimum(wide, objective), trained=wide.teacher)
        for objective in (PLAIN, EQ14)
    ]
    assert [check.passed for check in fixed_point_checks(rows)] == [True, True, False]
    off = replace(rows[0], from_teacher=1e-3)
    assert not fixed_point_checks([off])[0].passed


def test_a_large_source_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 4096"):
        enumerate_source(random_chain(8), length=5)
