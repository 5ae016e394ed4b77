"""Optima of distillation objectives for an exact teacher: in closed form, and by training.

The student is a table with a distribution for each canvas and position. It can represent any
prediction, so its optimum is that of the objective. Let P(z_t, z_s, x0) be the joint distribution
of the coupled pair, z_t a canvas, and i a position that is masked in z_t. Define

    a(z_s)  P(z_t, z_s), i masked in z_s too       b(v)  P(z_t, x0_i = v), i visible in z_s

Then the optimum of Eq. 14 (Latent Shadows, arXiv 2602.00792) and its variants is as follows, where
q is the teacher's prediction at temperature tau:

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

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear, NoiseSchedule
from unmask.experiments.exact.duality_checks import Check
from unmask.experiments.exact.enumeration import (
    EnumeratedSource,
    Pairs,
    coupled_pairs,
    number,
    sampled_distribution,
)
from unmask.objectives.consistency import Consistency, Coupling, Direction, Revealed
from unmask.objectives.rounds import Rounds
from unmask.prediction import Prediction
from unmask.rng import generator
from unmask.types import PerSequence, Tokens

STEPS = (1, 2, 64)  # step counts of sampled texts
EXACT = 1e-9  # nats of rounding
# Nats for one round: with UPDATES x BATCH texts chance leaves 1e-4 to 2e-4.
TRAINED = 4e-4
UPDATES, BATCH = 400, 1024


@dataclass(frozen=True)
class TabularObjective:
    """A distillation objective for a table; `temperatures` has one tau for each round.

    Attributes:
        trained: whether `unmask verify exact` also trains it, within its two minutes
    """

    name: str
    direction: Direction
    revealed: Revealed
    coupling: Coupling = "locked"
    temperatures: tuple[float, ...] = (1.0,)
    delta0: float = 0.5
    trained: bool = True

    def rounds(self, steps: int) -> Rounds:
        return Rounds(steps, self.delta0, self.temperatures)

    @property
    def keeps_teacher(self) -> bool:
        """Whether the optimum is the teacher: forward KL on nested pairs at tau = 1."""
        return (
            self.direction == "forward"
            and self.coupling == "locked"
            and {*self.temperatures} == {1.0}
        )


PLAIN = TabularObjective("forward KL + CE", "forward", "cross_entropy")
OBJECTIVES = (
    TabularObjective("forward KL", "forward", "none", trained=False),
    PLAIN,
    TabularObjective("forward KL + CE, u apart", "forward", "cross_entropy", "independent"),
    TabularObjective("forward KL + CE, tau .7", "forward", "cross_entropy", temperatures=(0.7,)),
    TabularObjective("reverse KL", "reverse", "none"),
    TabularObjective("reverse KL + CE (Eq. 14)", "reverse", "cross_entropy"),
    TabularObjective("Eq. 14, tau .7", "reverse", "cross_entropy", temperatures=(0.7,)),
    TabularObjective(
        "forward KL + CE, 3 rounds",
        "forward",
        "cross_entropy",
        "locked",
        (1.0,) * 3,
        0.125,
        trained=False,
    ),
    TabularObjective(
        "Eq. 14, 3 rounds", "reverse", "cross_entropy", "locked", (1.0,) * 3, 0.125, trained=False
    ),
    TabularObjective(
        "Eq. 14, 3 rounds, MCD's tau",
        "reverse",
        "cross_entropy",
        temperatures=(0.96, 0.93, 0.9),
        delta0=0.125,
    ),
)


@dataclass(frozen=True)
class Optimum:
    """The optimum of an objective.

    Attributes:
        log_p: [C, L, V] predictions
        weight: [C, L] the share of the loss at each position, sum 1
    """

    log_p: Tensor
    weight: Tensor


def optimum(
    source: EnumeratedSource, objective: TabularObjective, schedule: NoiseSchedule | None = None
) -> Optimum:
    """The optimum after all rounds; delta doubles, and each round's teacher is the last student."""
    rounds, log_p = objective.rounds(steps=1), source.teacher
    weight = torch.zeros(log_p.shape[:2])
    for step in range(rounds.count):
        delta = rounds.delta(step)
        pairs = coupled_pairs(source, schedule or LogLinear(), delta, objective.coupling)
        log_p, weight = _one_round(log_p, objective, pairs, rounds.temperature(step))
    return Optimum(log_p, weight / weight.sum())


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
        low, high = torch.full_like(b, -80.0), torch.full_like(b, 2.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = a[..., None] * (middle - log_g) - b * (-middle).exp() > c[..., None]
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    low, high = -b.sum(-1) - 2 * a - 1e-9, a * (2 - log_g.amin(-1)) + 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        above = log_p_at(middle).logsumexp(-1) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return log_p_at((low + high) / 2)


class TableStudent(nn.Module):
    """A `Denoiser` with free logits for each canvas and position, [C, L, V + 1] float64."""

    sees_alpha = False

    def __init__(self, log_p: Tensor) -> None:
        super().__init__()
        self.vocab_size = log_p.shape[-1] + 1
        self.mask_id = log_p.shape[-1]
        self.logits = nn.Parameter(nn.functional.pad(log_p.detach().clone(), (0, 1)))

    def forward(self, z: Tokens, alpha: PerSequence) -> Prediction:
        return Prediction(
            self.logits[number(z, self.vocab_size)], nn.Identity(), self.vocab_size, self.mask_id, z
        )

    def log_p(self) -> Tensor:
        """The predictions log p [C, L, V]."""
        return self.logits.detach()[..., :-1].log_softmax(-1)


def train(
    source: EnumeratedSource,
    objective: TabularObjective,
    steps: int = UPDATES,
    batch: int = BATCH,
    seed: int = 0,
    rate: float = 0.03,
) -> Tensor:
    """Train a table by the library's `Consistency`; return its predictions [C, L, V].

    Adam's learning rate decreases to zero in each round, and the weights are averaged over the
    round's last half. The remaining noise is then small against the differences between the
    objectives.

    Args:
        source: The enumerated source.
        objective: The objective to train by.
        steps: Updates a round.
        batch: Texts an update.
        seed: Seed of texts and corruptions.
        rate: The learning rate at the start of a round.
    """
    rng = generator(seed)
    student, teacher = TableStudent(source.teacher), TableStudent(source.teacher)
    process = MaskedProcess(student.vocab_size, student.mask_id)
    loss_of = Consistency(
        process=process, schedule=LogLinear(), teacher=teacher, rounds=objective.rounds(steps),
        direction=objective.direction, revealed=objective.revealed, coupling=objective.coupling,
    )  # fmt: skip
    for first in range(0, loss_of.rounds.total, steps):
        optimizer = torch.optim.Adam(student.parameters(), lr=rate, betas=(0.9, 0.99))
        total, count = torch.zeros_like(student.logits), 0
        for step in range(first, first + steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - (step - first) / steps)
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
    return student.log_p()


def distance(p: Tensor, q: Tensor, weight: Tensor) -> float:
    """KL(p || q) of log-probabilities [C, L, V] in nats, averaged with weight [C, L]."""
    return float((weight * (p.exp() * (p - q)).sum(-1)).sum() / weight.sum())


def mean_entropy(log_p: Tensor, weight: Tensor) -> float:
    """Entropy of log-probabilities [C, L, V] in nats, averaged with weight [C, L]."""
    return float(-(weight * (log_p.exp() * log_p).sum(-1)).sum() / weight.sum())


@dataclass(frozen=True)
class FixedPoint:
    """The optimum of an objective for an exact teacher, in nats.

    Predictions are compared at masked positions, weighted by their share of the loss.

    Attributes:
        entropy: entropy of the student's prediction of a token
        teacher_entropy: entropy of the teacher's prediction
        from_teacher: KL(teacher || optimum)
        steps: step counts of sampled texts
        nll, kl: at each step count, exact: -E_q log p / L and KL(q || p) / L, nats a token
        to_optimum: KL(optimum || trained student); None if none was trained
        to_teacher: KL(teacher || trained student); None if none was trained
    """

    name: str
    entropy: float
    teacher_entropy: float
    from_teacher: float
    steps: tuple[int, ...]
    nll: tuple[float, ...]
    kl: tuple[float, ...]
    to_optimum: float | None = None
    to_teacher: float | None = None


def fixed_point(
    source: EnumeratedSource, objective: TabularObjective, trained: Tensor | None = None
) -> FixedPoint:
    """The row of an objective; `trained` [C, L, V] are the predictions of a trained student."""
    best = optimum(source, objective)
    row = _fixed_point(source, objective.name, best)
    if trained is None:
        return row
    to_optimum = distance(best.log_p, trained, best.weight)
    to_teacher = distance(source.teacher, trained, best.weight)
    return replace(row, to_optimum=to_optimum, to_teacher=to_teacher)


def teacher_at_temperature(source: EnumeratedSource, temperature: float) -> FixedPoint:
    """The row of the teacher at a temperature, which needs no distillation."""
    weight = optimum(source, PLAIN).weight
    log_p = (source.teacher / temperature).log_softmax(-1)
    name = f"the teacher at temperature {temperature:g}"
    return _fixed_point(source, name, Optimum(log_p, weight))


def _fixed_point(source: EnumeratedSource, name: str, best: Optimum) -> FixedPoint:
    nll, kl = [], []
    for steps in STEPS:
        alphas = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        q = sampled_distribution(source, best.log_p, alphas)
        nll.append(float(-(q * source.log_p).sum()) / source.length)
        kl.append(nll[-1] + float(torch.xlogy(q, q).sum()) / source.length)
    return FixedPoint(
        name, mean_entropy(best.log_p, best.weight), mean_entropy(source.teacher, best.weight),
        distance(source.teacher, best.log_p, best.weight), STEPS, tuple(nll), tuple(kl),
    )  # fmt: skip


def fixed_point_checks(rows: Sequence[FixedPoint]) -> list[Check]:
    """Check that forward KL at tau = 1 keeps the teacher, and that training finds each optimum."""
    fixed = {objective.name for objective in OBJECTIVES if objective.keeps_teacher}
    rounds = {objective.name: len(objective.temperatures) for objective in OBJECTIVES}
    error = max(abs(row.from_teacher) for row in rows if row.name in fixed)
    results = [("forward KL, tau 1: the teacher stays", error, EXACT)]
    for row in rows:
        if row.to_optimum is not None:
            # Errors add over rounds, and KL is quadratic in them.
            limit = TRAINED * rounds[row.name] ** 2
            results.append((f"trained: {row.name}", row.to_optimum, limit))
    return [Check(name, kl, kl, limit, None, 1, kl < limit) for name, kl, limit in results]
