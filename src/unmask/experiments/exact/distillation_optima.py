"""Optima of distillation objectives for an exact teacher: in closed form, and by training.

The student is a table with a distribution for each canvas (a partially masked text) and position.
It can represent any prediction, so its optimum is that of the objective. Let P(z_t, z_s, x0) be the
joint distribution of the coupled pair. For a canvas z_t and a position i that is masked in it, let

    a(z_s) = P(z_t, z_s) if i is masked in z_s too, else 0
    b(v)   = P(z_t, x0_i = v, i visible in z_s)

Let q be the teacher's prediction at temperature tau. The optimum of Eq. 14 (Latent Shadows, arXiv
2602.00792) and of its variants is

    forward KL, no revealed term   sum_z_s a q
    forward KL + CE                sum_z_s a q + b
    reverse KL, no revealed term   exp(sum_z_s a log q / sum a), the geometric mean g
    reverse KL + CE                argmin_p A sum_v p (log p - log g) - sum_v b log p, A = sum a:
                                   strictly convex, solved numerically

Each is normalised over v, for masked noise. For tau = 1 and a nested pair the first two equal the
teacher: E[p(x0 | z_s) | z_t] = p(x0 | z_t). All (V + 1)^L canvases and V^L texts are enumerated, so
V and L must be small, such as 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unmask.diffusion.processes import MaskedProcess
from unmask.experiments.exact.duality_checks import ROUNDING, Check
from unmask.experiments.exact.oracle import (
    SCHEDULE,
    EnumeratedSource,
    Pairs,
    canvas_number,
    coupled_pairs,
    sampled_distribution,
)
from unmask.objectives.consistency import Consistency, Coupling, Direction, Revealed
from unmask.objectives.rounds import Rounds
from unmask.prediction import Prediction
from unmask.rng import generator
from unmask.types import PerSequence, Tokens

STEPS = (1, 2, 64)  # step counts of sampled texts
# Largest KL(optimum || student) of one round, nats. UPDATES x BATCH texts leave 1e-4 to 2e-4.
TRAINED_LIMIT = 4e-4
UPDATES, BATCH = 400, 1024
_RATE = 0.03  # the learning rate at the start of a round


@dataclass(frozen=True)
class TabularObjective:
    """A distillation objective for a table.

    Attributes:
        coupling: Whether z_t and z_s share the levels u of the tokens.
        temperatures: The teacher's tau, one for each round.
        trained: Whether `unmask verify exact` also trains a student. All would take too long.
    """

    name: str
    direction: Direction
    revealed: Revealed
    coupling: Coupling = "locked"
    temperatures: tuple[float, ...] = (1.0,)
    trained: bool = True

    def rounds(self, steps: int) -> Rounds:
        """Rounds of `steps` updates, of which the last has delta = 1/2."""
        return Rounds(steps, 0.5 ** len(self.temperatures), self.temperatures)

    @property
    def keeps_teacher(self) -> bool:
        """Whether the optimum is the teacher: forward KL on nested pairs at tau = 1."""
        return (
            self.direction == "forward"
            and self.coupling == "locked"
            and {*self.temperatures} == {1.0}
        )


PLAIN = TabularObjective("forward KL + CE", "forward", "cross_entropy")
EQ14 = TabularObjective("reverse KL + CE (Eq. 14)", "reverse", "cross_entropy")
OBJECTIVES = (
    TabularObjective("forward KL", "forward", "none", trained=False),
    PLAIN,
    replace(PLAIN, name="forward KL + CE, u apart", coupling="independent"),
    replace(PLAIN, name="forward KL + CE, tau .7", temperatures=(0.7,)),
    TabularObjective("reverse KL", "reverse", "none"),
    EQ14,
    replace(EQ14, name="Eq. 14, tau .7", temperatures=(0.7,)),
    replace(PLAIN, name="forward KL + CE, 3 rounds", temperatures=(1.0,) * 3, trained=False),
    replace(EQ14, name="Eq. 14, 3 rounds", temperatures=(1.0,) * 3, trained=False),
    replace(EQ14, name="Eq. 14, 3 rounds, MCD's tau", temperatures=(0.96, 0.93, 0.9)),
)


def optimum(source: EnumeratedSource, objective: TabularObjective) -> tuple[Tensor, Tensor]:
    """The optimum of an objective after all rounds.

    delta doubles from round to round, and each round's teacher is the last student.

    Returns:
        Predictions log p [C, L, V], and the share of the loss at each position [C, L], sum 1.
    """
    rounds, log_p = objective.rounds(steps=1), source.teacher
    weight = torch.zeros(log_p.shape[:2])
    for step in range(rounds.count):
        pairs = coupled_pairs(source, rounds.delta(step), objective.coupling)
        log_p, weight = _one_round(log_p, objective, pairs, rounds.temperature(step))
    return log_p, weight / weight.sum()


def _one_round(
    teacher: Tensor, objective: TabularObjective, pairs: Pairs, temperature: float
) -> tuple[Tensor, Tensor]:
    """(log p [C, L, V], weight [C, L]); positions without weight keep the teacher's prediction."""
    log_q = (teacher / temperature).log_softmax(-1)
    a, total, b = torch.zeros_like(log_q[..., 0]), torch.zeros_like(log_q), torch.zeros_like(log_q)
    for i in range(log_q.shape[1]):
        masked_t, masked_s = pairs.masked_t[:, i], pairs.masked_s[:, i]
        both, revealed = masked_t & masked_s, masked_t & ~masked_s
        weight = pairs.weight[both]
        target = log_q[pairs.s[both], i]
        target = target.exp() if objective.direction == "forward" else target
        a[:, i].index_add_(0, pairs.t[both], weight)
        total[:, i].index_add_(0, pairs.t[both], weight[:, None] * target)
        if objective.revealed != "none":
            b[:, i].index_put_(
                (pairs.t[revealed], pairs.x0[revealed, i]), pairs.weight[revealed], accumulate=True
            )
    weight = a + b.sum(-1)
    if objective.direction == "forward":
        log_p = (total + b).log()
    else:
        log_p = eq14_optimum(a, (total / a.clamp(min=1e-300)[..., None]).log_softmax(-1), b)
    return torch.where((weight > 0)[..., None], log_p.log_softmax(-1), teacher), weight


def eq14_optimum(a: Tensor, log_g: Tensor, b: Tensor) -> Tensor:
    """log p [.., V] that minimises a sum_v p (log p - log g) - sum_v b log p.

    At the minimum a (log p - log g) - b / p has one value c for all v. Given c, each p follows by
    bisection, because the left side increases in p. The sum of p increases in c, so c follows by an
    outer bisection. The error is about 1e-13.

    Args:
        a: Weights [..] >= 0 of the divergence.
        log_g: log g [.., V].
        b: Weights [.., V] >= 0 of the cross-entropy.
    """

    def log_p_at(c: Tensor) -> Tensor:
        def above(log_p: Tensor) -> Tensor:
            return a[..., None] * (log_p - log_g) - b * (-log_p).exp() > c[..., None]

        return _bisect(torch.full_like(b, -80.0), torch.full_like(b, 2.0), above)

    low, high = -b.sum(-1) - 2 * a - 1e-9, a * (2 - log_g.amin(-1)) + 1e-9
    return log_p_at(_bisect(low, high, lambda c: log_p_at(c).logsumexp(-1) > 0))


def _bisect(low: Tensor, high: Tensor, above: Callable[[Tensor], Tensor]) -> Tensor:
    """The numbers between low and high from which on `above` is true, by 60 bisections."""
    for _ in range(60):
        middle = (low + high) / 2
        too_high = above(middle)
        low, high = torch.where(too_high, low, middle), torch.where(too_high, middle, high)
    return (low + high) / 2


class TableStudent(nn.Module):
    """A `Denoiser` with free logits for each canvas and position, [C, L, V + 1] float64."""

    sees_alpha = False

    def __init__(self, log_p: Tensor) -> None:
        super().__init__()
        self.vocab_size = log_p.shape[-1] + 1
        self.mask_id = log_p.shape[-1]
        self.logits = nn.Parameter(nn.functional.pad(log_p.detach(), (0, 1)))

    def forward(self, z: Tokens, alpha: PerSequence) -> Prediction:
        logits = self.logits[canvas_number(z, self.mask_id)]
        return Prediction(logits, nn.Identity(), self.vocab_size, self.mask_id, z)


def train(
    source: EnumeratedSource,
    objective: TabularObjective,
    steps: int = UPDATES,
    batch: int = BATCH,
    seed: int = 0,
) -> Tensor:
    """Train a table by the library's `Consistency`; return its predictions log p [C, L, V].

    In each round Adam's learning rate decreases to zero. The result of a round is the mean of the
    weights over its last half. So its noise is small against the differences between objectives.

    Args:
        source: The enumerated source.
        objective: The objective to train by.
        steps: Updates a round.
        batch: Texts an update.
        seed: Seed of texts and corruptions.
    """
    rng = generator(seed)
    student, teacher = TableStudent(source.teacher), TableStudent(source.teacher)
    process = MaskedProcess(student.vocab_size, student.mask_id)
    loss_of = Consistency(
        process=process, schedule=SCHEDULE, teacher=teacher, rounds=objective.rounds(steps),
        direction=objective.direction, revealed=objective.revealed, coupling=objective.coupling,
    )  # fmt: skip
    for first in range(0, loss_of.rounds.total, steps):
        optimizer = torch.optim.Adam(student.parameters(), lr=_RATE, betas=(0.9, 0.99))
        total, count = torch.zeros_like(student.logits), 0
        for step in range(first, first + steps):
            optimizer.param_groups[0]["lr"] = _RATE * (1 - (step - first) / steps)
            loss_of.prepare(step, student)
            x0 = source.source.sample(batch, source.length, rng)
            loss = loss_of(student, x0, step=step, generator=rng)
            optimizer.zero_grad()
            (loss.per_token.sum() / loss.weight.sum()).backward()
            optimizer.step()
            if step - first >= steps // 2:
                total, count = total + student.logits.detach(), count + 1
        with torch.no_grad():
            student.logits.copy_(total / count)
    return student.logits.detach()[..., :-1].log_softmax(-1)


def distance(p: Tensor, q: Tensor, weight: Tensor) -> float:
    """KL(p || q) of log-probabilities [C, L, V] in nats, averaged with weight [C, L]."""
    return float((weight * (p.exp() * (p - q)).sum(-1)).sum() / weight.sum())


def mean_entropy(log_p: Tensor, weight: Tensor) -> float:
    """Entropy of log-probabilities [C, L, V] in nats, averaged with weight [C, L]."""
    return float(-(weight * (log_p.exp() * log_p).sum(-1)).sum() / weight.sum())


@dataclass(frozen=True)
class FixedPoint:
    """The optimum of an objective for an exact teacher, in nats.

    Means over masked positions have their shares of the loss as weights.

    Attributes:
        entropy: Entropy of the optimum's prediction of a token.
        teacher_entropy: Entropy of the teacher's prediction.
        from_teacher: KL(teacher || optimum).
        steps: Step counts of sampled texts.
        nll: At each step count -E_q log p / L, exact, nats a token.
        kl: At each step count KL(q || p) / L, exact, nats a token.
        to_optimum: KL(optimum || trained student). None without a trained student.
        to_teacher: KL(teacher || trained student). None without a trained student.
    """

    name: str
    entropy: float
    teacher_entropy: float
    from_teacher: float
    steps: tuple[int, ...]
    nll: tuple[float, ...]
    kl: tuple[float, ...]
    to_optimum: float | None
    to_teacher: float | None


def fixed_point(
    source: EnumeratedSource,
    name: str,
    log_p: Tensor,
    weight: Tensor,
    trained: Tensor | None = None,
) -> FixedPoint:
    """Compare the optimum of an objective with the teacher and with a trained student.

    Args:
        source: The enumerated source.
        name: Name of the row.
        log_p: The optimum's predictions log p [C, L, V].
        weight: The share of the loss at each position [C, L].
        trained: The predictions of a trained student [C, L, V].
    """
    nll, kl = [], []
    for steps in STEPS:
        q = sampled_distribution(source, log_p, steps)
        nll.append(float(-(q * source.log_p).sum()) / source.length)
        kl.append(nll[-1] + float(torch.xlogy(q, q).sum()) / source.length)
    return FixedPoint(
        name=name,
        entropy=mean_entropy(log_p, weight),
        teacher_entropy=mean_entropy(source.teacher, weight),
        from_teacher=distance(source.teacher, log_p, weight),
        steps=STEPS,
        nll=tuple(nll),
        kl=tuple(kl),
        to_optimum=None if trained is None else distance(log_p, trained, weight),
        to_teacher=None if trained is None else distance(source.teacher, trained, weight),
    )


def teacher_at_temperature(source: EnumeratedSource, temperature: float) -> FixedPoint:
    """The row of the teacher at a temperature, which needs no distillation."""
    log_p = (source.teacher / temperature).log_softmax(-1)
    name = f"the teacher at temperature {temperature:g}"
    return fixed_point(source, name, log_p, weight=optimum(source, PLAIN)[1])


def fixed_point_checks(rows: Sequence[FixedPoint]) -> list[Check]:
    """Check that forward KL at tau = 1 keeps the teacher, and that training finds each optimum."""
    objectives = {objective.name: objective for objective in OBJECTIVES}
    kept = [row for row in rows if row.name in objectives and objectives[row.name].keeps_teacher]
    error = max(abs(row.from_teacher) for row in kept)
    checks = [_limited("forward KL, tau 1: the teacher stays", error, ROUNDING)]
    for row in rows:
        if row.to_optimum is not None:
            # Errors add over rounds, and KL is quadratic in them.
            limit = TRAINED_LIMIT * len(objectives[row.name].temperatures) ** 2
            checks.append(_limited(f"trained: {row.name}", row.to_optimum, limit))
    return checks


def _limited(name: str, kl: float, limit: float) -> Check:
    return Check(name, kl, kl, limit, None, n=1)
