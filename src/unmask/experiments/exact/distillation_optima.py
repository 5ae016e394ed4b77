"""Where each distillation objective comes to rest, from a perfect teacher: in closed form, and by training.

A student that is a table (a law for each canvas and place) can say anything, so its optimum is the objective's own.
With P(z_t, z_s, x0) the law of the coupled pair, for a canvas z_t and a place i that is masked in it let

    a(z_s)  P(z_t, z_s), i masked in z_s too       b(v)  P(z_t, x0_i = v), i shown in z_s

Then the optimum of Eq. 14 (Latent Shadows, arXiv 2602.00792) and its relatives, q the teacher's law at tau, is

    forward KL            sum_z_s a q                                      (without the revealed term)
    forward KL + CE       sum_z_s a q + b
    reverse KL            exp(sum_z_s a log q / sum a), the geometric mean (without the revealed term)
    reverse KL + CE       A sum_v p (log p - log g) - sum_v b log p, least: strictly convex, solved below

each normalised over v, for masked noise. For tau = 1 and a nested pair the first two are the teacher itself:
E[p(x0 | z_s) | z_t] = p(x0 | z_t). Everything here is enumerated: (V + 1)^L canvases, V^L texts, so V = 3 and L = 3 are
the place to look.
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
    drawn_law,
    number,
)
from unmask.objectives.consistency import Consistency, Coupling, Direction, Revealed
from unmask.objectives.rounds import Rounds
from unmask.prediction import Prediction, TableHead
from unmask.rng import generator
from unmask.types import PerSequence, Tokens

STEPS = (1, 2, 64)  # of the texts drawn
EXACT = 1e-9  # nats: rounding
ARRIVED = 4e-4  # nats, of one round: UPDATES x BATCH texts leave 1e-4 to 2e-4 to chance
UPDATES, BATCH = 400, 1024


@dataclass(frozen=True)
class TabularObjective:
    """A cell of the grid direction x revealed x coupling x tau; `temperatures` has one tau a round."""

    name: str
    direction: Direction
    revealed: Revealed
    coupling: Coupling = "locked"
    temperatures: tuple[float, ...] = (1.0,)
    delta0: float = 0.5
    trained: bool = True  # by `unmask verify exact`, which has two minutes

    def rounds(self, steps: int) -> Rounds:
        return Rounds(steps, self.delta0, self.temperatures)

    @property
    def keeps_teacher(self) -> bool:
        """Forward KL on nested pairs at tau = 1."""
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
    """log_p [C, L, V] where the objective is least; weight [C, L]: how much of the loss is at a place, sum 1."""

    log_p: Tensor
    weight: Tensor


def optimum(
    world: EnumeratedSource, objective: TabularObjective, schedule: NoiseSchedule | None = None
) -> Optimum:
    """The resting place after all rounds: the teacher of each is the student of the last, and delta doubles."""
    rounds, log_p = objective.rounds(steps=1), world.teacher
    weight = torch.zeros(log_p.shape[:2])
    for step in range(rounds.count):
        pairs = coupled_pairs(
            world, schedule or LogLinear(), rounds.delta(step), objective.coupling
        )
        log_p, weight = _one_round(log_p, objective, pairs, rounds.temperature(step))
    return Optimum(log_p, weight / weight.sum())


def _one_round(
    teacher: Tensor, objective: TabularObjective, pairs: Pairs, temperature: float
) -> tuple[Tensor, Tensor]:
    """(log p [C, L, V], weight [C, L]); places without weight keep the teacher's law."""
    log_q = (teacher / temperature).log_softmax(-1)
    a, total, b = torch.zeros_like(log_q[..., 0]), torch.zeros_like(log_q), torch.zeros_like(log_q)
    for i in range(log_q.shape[1]):
        both, shown = (
            pairs.masked_t[:, i] & pairs.masked_s[:, i],
            pairs.masked_t[:, i] & ~pairs.masked_s[:, i],
        )
        weight = pairs.weight[both]
        read = log_q[pairs.s[both], i]
        read = read.exp() if objective.direction == "forward" else read
        a[:, i].index_add_(0, pairs.t[both], weight)
        total[:, i].index_add_(0, pairs.t[both], weight[:, None] * read)
        if objective.revealed != "none":
            b[:, i].index_put_(
                (pairs.t[shown], pairs.x0[shown, i]), pairs.weight[shown], accumulate=True
            )
    weight = a + b.sum(-1)
    if objective.direction == "forward":
        log_p = (total + b).log()
    else:
        log_p = hybrid(a, (total / a.clamp(min=1e-300)[..., None]).log_softmax(-1), b)
    return torch.where((weight > 0)[..., None], log_p.log_softmax(-1), teacher), weight


def hybrid(a: Tensor, log_g: Tensor, b: Tensor) -> Tensor:
    """log p [.., V] least in a sum_v p (log p - log g) - sum_v b log p, for a [..] >= 0 and b [.., V] >= 0.

    Stationary where a (log p - log g) - b / p is one number c for all v. For a given c that fixes each p (the left side
    rises in p), and sum p rises in c: bisection on c, around bisections on log p. Good to about 1e-13.
    """

    def laws(c: Tensor) -> Tensor:
        low, high = torch.full_like(b, -80.0), torch.full_like(b, 2.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = a[..., None] * (middle - log_g) - b * (-middle).exp() > c[..., None]
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    low, high = -b.sum(-1) - 2 * a - 1e-9, a * (2 - log_g.amin(-1)) + 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        above = laws(middle).logsumexp(-1) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return laws((low + high) / 2)


class TableStudent(nn.Module):
    """A `Denoiser` that can say anything: logits for each canvas and place, [C, L, V + 1] float64."""

    sees_alpha = False

    def __init__(self, log_p: Tensor) -> None:
        super().__init__()
        self.vocab_size = log_p.shape[-1] + 1
        self.mask_id = log_p.shape[-1]
        self.logits = nn.Parameter(nn.functional.pad(log_p.detach().clone(), (0, 1)))

    def forward(self, z: Tokens, alpha: PerSequence) -> Prediction:
        return Prediction(
            self.logits[number(z, self.vocab_size)], TableHead(), self.vocab_size, self.mask_id, z
        )

    def law(self) -> Tensor:
        """log p [C, L, V]."""
        return self.logits.detach()[..., :-1].log_softmax(-1)


def train(
    world: EnumeratedSource,
    objective: TabularObjective,
    steps: int = UPDATES,
    batch: int = BATCH,
    seed: int = 0,
    rate: float = 0.03,
) -> Tensor:
    """The law [C, L, V] of a table that the library's own `Consistency` has trained: `steps` updates a round.

    Adam, its rate falling to zero in each round, and the mean of the weights over the round's last half, so that what
    is left of chance is small against what the objectives differ by.
    """
    dice = generator(seed)
    student, teacher = TableStudent(world.teacher), TableStudent(world.teacher)
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
            x0 = world.source.sample(batch, world.length, dice)
            loss = loss_of(student, x0, step=step, generator=dice)
            optimizer.zero_grad()
            (loss.per_token.sum() / loss.weight.sum()).backward()
            optimizer.step()
            if step - first >= steps // 2:
                total, count = total + student.logits.detach(), count + 1
        with torch.no_grad():
            student.logits.copy_(total / count)
    return student.law()


def distance(p: Tensor, q: Tensor, weight: Tensor) -> float:
    """KL(p || q) of laws [C, L, V] in nats, the mean over places by weight [C, L]."""
    return float((weight * (p.exp() * (p - q)).sum(-1)).sum() / weight.sum())


def mean_entropy(log_p: Tensor, weight: Tensor) -> float:
    """Entropy of laws [C, L, V] in nats, the mean over places by weight [C, L]."""
    return float(-(weight * (log_p.exp() * log_p).sum(-1)).sum() / weight.sum())


@dataclass(frozen=True)
class FixedPoint:
    """What an objective makes of a perfect teacher; laws are compared at masked places, by their share of the loss.

    entropy, teacher_entropy  of the student's and the teacher's law of a token, nats
    from_teacher              KL(teacher || optimum), nats: 0 where the objective leaves the teacher where it is
    steps, nll, kl            of texts drawn in that many steps: -E_q log p / L and KL(q || p) / L, nats a token, exact
    to_optimum, to_teacher    KL(optimum || trained), KL(teacher || trained), nats; None where none was trained
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


def resting(
    world: EnumeratedSource, objective: TabularObjective, trained: Tensor | None = None
) -> FixedPoint:
    """The row of an objective; `trained` [C, L, V] is a law that training found."""
    best = optimum(world, objective)
    row = _resting(world, objective.name, best)
    if trained is None:
        return row
    to_optimum = distance(best.log_p, trained, best.weight)
    return replace(
        row, to_optimum=to_optimum, to_teacher=distance(world.teacher, trained, best.weight)
    )


def cooled(world: EnumeratedSource, temperature: float) -> FixedPoint:
    """The teacher at a temperature, for comparison: what no distillation is needed for."""
    weight = optimum(world, PLAIN).weight
    log_p = (world.teacher / temperature).log_softmax(-1)
    return _resting(world, f"the teacher at temperature {temperature:g}", Optimum(log_p, weight))


def _resting(world: EnumeratedSource, name: str, best: Optimum) -> FixedPoint:
    nll, kl = [], []
    for steps in STEPS:
        q = drawn_law(world, best.log_p, torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        nll.append(float(-(q * world.log_p).sum()) / world.length)
        kl.append(nll[-1] + float(torch.xlogy(q, q).sum()) / world.length)
    return FixedPoint(
        name, mean_entropy(best.log_p, best.weight), mean_entropy(world.teacher, best.weight),
        distance(world.teacher, best.log_p, best.weight), STEPS, tuple(nll), tuple(kl),
    )  # fmt: skip


def fixed_point_checks(rows: Sequence[FixedPoint]) -> list[Check]:
    """Forward KL at tau = 1 stays at the teacher, exactly; training arrives at the optimum of each objective."""
    still = {objective.name for objective in OBJECTIVES if objective.keeps_teacher}
    rounds = {objective.name: len(objective.temperatures) for objective in OBJECTIVES}
    error = max(abs(row.from_teacher) for row in rows if row.name in still)
    checks = [
        Check("forward KL, tau 1: the teacher stays", error, error, EXACT, None, 1, error < EXACT)
    ]
    for row in rows:
        if row.to_optimum is not None:
            limit, far = (
                ARRIVED * rounds[row.name] ** 2,
                row.to_optimum,
            )  # errors add over rounds, KL is their square
            checks.append(Check(f"trained: {row.name}", far, far, limit, None, 1, far < limit))
    return checks
