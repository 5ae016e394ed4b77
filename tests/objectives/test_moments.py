"""Laws of moment matching on sources whose texts can be enumerated."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.testing import assert_close

from toy_denoiser import Toy
from unmask.diffusion.levels import spread_order
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.trajectory import trajectory
from unmask.diffusion.vocabulary_losses import expected_log_ratio, leave_one_out
from unmask.objectives.moments import Moments, bridge
from unmask.prediction import Prediction
from unmask.types import Denoiser

V, MASK, B, L = 5, 4, 6, 9
PROCESSES = {"masked": MaskedProcess(V, MASK), "uniform": UniformProcess(V)}
X0 = torch.randint(MASK, (B, L), generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(process: Process, seed: int) -> Toy:
    return Toy(V, process.mask_id, seed=seed)


def objective(process: Process, **switches: object) -> Moments:
    made = {"teacher": toy(process, 7), "critic": toy(process, 9), "critic_start": 2}
    return Moments(process, **{**made, **switches})


def law(network: nn.Module, z: Tensor) -> Tensor:
    """p(v | z), [B, L, V], with a gradient."""
    return network(z, torch.zeros(len(z))).log_p()


def step_of(method: Moments, step: int, seed: int = 0) -> tuple[Tensor, Tensor, Toy]:
    """(z_t, z_s, student) of a step, from the inputs that the networks saw."""
    student = toy(method.process, 8)
    for network in (method.teacher, method.critic):
        network.calls.clear()
    method(student, X0, step=step, generator=seeded(seed))
    [(z_t, alpha_t)] = student.calls
    z_s, alpha_s = method.critic.calls[-1]
    assert torch.equal(method.teacher.calls[0][0], z_s)
    assert bool((alpha_s >= alpha_t).all()) or method.renoising != "bridge"
    return z_t, z_s, student


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("levels", [(0.3, 0.7), (0.1, 1.0), (0.6, 0.6)])
def test_a_bridge_has_the_law_of_the_posterior(name: str, levels: tuple[float, float]) -> None:
    """z_s given z_t and x^ is drawn from q(z_s | z_t, x^), at each position on its own."""
    process, n = PROCESSES[name], 20_000
    alpha_t, alpha_s = (torch.full((n,), level, dtype=torch.float64) for level in levels)
    x0 = torch.zeros(n, 2, dtype=torch.int64)
    path = trajectory(process, x0, seeded(1))
    z_t = path.at(alpha_t)
    noised = process.is_noised(z_t)
    x_hat = z_t.masked_fill(noised, 1)
    z_s = bridge(process, path, z_t, x_hat, alpha_t, alpha_s, seeded(2))
    for token in z_t.unique().tolist():
        at = z_t[:, 0] == token
        shown = int(x_hat[at][0, 0])
        one_hot = torch.nn.functional.one_hot(torch.tensor([[shown]]), V).double()
        one_level = (torch.tensor([level], dtype=torch.float64) for level in levels)
        q = process.posterior(one_hot, torch.tensor([[token]]), *one_level)[0, 0]
        counts = z_s[at][:, 0].bincount(minlength=V).double()
        assert counts[q < 1e-12].sum() == 0
        expected = q[q >= 1e-12] * counts.sum()
        if len(expected) > 1:
            assert chisquare(counts[q >= 1e-12].numpy(), expected.numpy()).pvalue > 1e-4
    if process.mask_id is None:
        both = (z_s == z_t).double()
        joint = (both[:, 0] * both[:, 1]).mean() - both[:, 0].mean() * both[:, 1].mean()
        assert abs(float(joint)) < 4 * 0.25 / n**0.5


def test_a_bridge_keeps_the_order_of_its_path() -> None:
    """In spread order, neighbours are not unmasked in one half of the levels."""
    process, n, length = PROCESSES["masked"], 500, 8
    x0 = torch.zeros(n, length, dtype=torch.int64)
    path = trajectory(process, x0, seeded(), spread_order)
    half = torch.full((n,), 0.5, dtype=torch.float64)
    z_t = path.at(half)
    x_hat = z_t.masked_fill(z_t == MASK, 1)
    new = bridge(process, path, z_t, x_hat, half, torch.ones_like(half)) == 1
    assert new.sum() > 0 and not bool((new[:, 1:] & new[:, :-1]).any())


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("renoising", ["bridge", "fresh", "mixed"])
def test_states(name: str, renoising: str) -> None:
    process = PROCESSES[name]
    z_t, z_s, _ = step_of(objective(process, renoising=renoising), step=0)
    if process.mask_id is not None:
        visible = z_t != MASK
        kept = (z_s == z_t) | ~visible
        if renoising == "bridge":
            assert bool(kept.all())
        if renoising == "mixed":
            assert bool(kept[: B // 2].all()) and not bool(kept[B // 2 :].all())
        assert bool(((z_s == z_t) | (z_s == MASK) | (z_t == MASK)).all())


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("renoising", ["bridge", "fresh"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.3])
def test_the_critics_gradient_is_that_of_the_cross_entropy(
    name: str, renoising: str, share: float
) -> None:
    """- sum_v [(1 - w) q(v | z_t) + w p(v | z_s)] log psi(v | z_s), the mean over noise of z_s."""
    process = PROCESSES[name]
    method = objective(process, renoising=renoising, teacher_share=share)
    student = toy(process, 8)
    loss = method(student, X0, step=1, generator=seeded())
    ours = torch.autograd.grad(loss.per_token.sum() / loss.weight.sum(), method.critic.embedding)
    [(z_t, _)], (z_s, _) = student.calls, method.critic.calls[-1]
    with torch.no_grad():
        q, p = law(student, z_t).exp(), law(method.teacher, z_s).exp()
        shown = ~process.is_noised(z_t)
        q = q.where(~shown[..., None], torch.nn.functional.one_hot(z_t, V).double())
        target = (1 - share) * q + share * p
    where = process.is_noised(z_s)
    value = -(target * law(method.critic, z_s)).sum(-1)[where].mean()
    assert_close(ours, torch.autograd.grad(value, method.critic.embedding))
    assert torch.equal(loss.weight > 0, where)
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("anchor", [0.0, 0.3])
def test_the_students_gradient_is_that_of_the_enumeration(name: str, anchor: float) -> None:
    """sum_v q(v) [log psi(v) - log p(v)], with a constant bracket, and the anchor."""
    process = PROCESSES[name]
    method = objective(process, anchor=anchor)
    student = toy(process, 8)
    loss = method(student, X0, step=3, generator=seeded())
    assert method.turn(3) == "student"
    ours = torch.autograd.grad(loss.per_token.sum() / loss.weight.sum(), student.embedding)
    [(z_t, _)], (z_s, _) = student.calls, method.critic.calls[-1]
    both = process.is_noised(z_t) & process.is_noised(z_s)
    log_q = law(student, z_t)[both]
    with torch.no_grad():
        bracket = (law(method.critic, z_s) - law(method.teacher, z_s))[both]
        log_p = law(method.teacher, z_t)[both]
    value = (log_q.exp() * bracket).sum(-1)
    value = value + anchor * (log_q.exp() * (log_q - log_p)).sum(-1)
    assert_close(ours, torch.autograd.grad(value.mean(), student.embedding))
    assert_close((loss.per_token.sum() / loss.weight.sum()).double(), value.mean().detach())


def tables(seed: int = 3) -> tuple[Tensor, Prediction, Prediction, Prediction]:
    """Logits [1, 2, V] with a gradient, and the predictions p, a and b."""
    generator = seeded(seed)
    logits = torch.randn(1, 2, V, generator=generator, dtype=torch.float64).requires_grad_()
    others = [torch.randn(1, 2, V, generator=generator, dtype=torch.float64) for _ in range(2)]
    above, below = (Prediction.from_log_p(table.log_softmax(-1)) for table in others)
    return logits, Prediction.from_log_p(logits.log_softmax(-1)), above, below


@pytest.mark.parametrize("draws", [2, 3])
def test_leave_one_out_has_the_mean_of_the_soft_gradient(draws: int) -> None:
    """The mean over all K-tuples of tokens, each with its probability."""
    logits, prediction, above, below = tables()
    where = torch.tensor([[True, False]])
    soft = expected_log_ratio(prediction, above, below, where)
    (exact,) = torch.autograd.grad(soft.sum(), logits, retain_graph=True)
    p = logits.detach().softmax(-1)[0, 0]
    mean, value = torch.zeros_like(logits), 0.0
    for tokens in itertools.product(range(V), repeat=draws):
        chance = math.prod(float(p[v]) for v in tokens)
        drawn = torch.tensor(tokens)[:, None]
        loss = leave_one_out(prediction, above, below, where, drawn)
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        mean, value = mean + chance * gradient, value + chance * float(loss.detach())
    assert_close(mean, exact)
    assert value == pytest.approx(float(soft.detach()))


@pytest.mark.parametrize("name", PROCESSES)
def test_a_perfect_student_of_one_token_has_no_gradient(name: str) -> None:
    """At one token a call the best critic is the teacher if q = p, for w = 0 and for w > 0."""
    process = PROCESSES[name]
    student = toy(process, 7)
    for share in (0.0, 0.5):
        method = objective(process, teacher=toy(process, 7), critic=toy(process, 7), anchor=0.2,
                           teacher_share=share, reach=1e-12)  # fmt: skip
        one = X0[:, :1]
        for step, network in ((0, method.critic), (3, student)):
            loss = method(student, one, step=step, generator=seeded(step))
            (gradient,) = torch.autograd.grad(loss.per_token.sum(), network.embedding)
            assert gradient.abs().max() < 1e-12 and len(method.teacher.calls)


class Free(nn.Module):
    """A critic with a free law for each text of two tokens: logits [V, V, 2, V]."""

    sees_alpha = False

    def __init__(self, mask_id: int | None) -> None:
        super().__init__()
        self.vocab_size, self.mask_id = V, mask_id
        self.logits = nn.Parameter(torch.zeros(V, V, 2, V, dtype=torch.float64))

    def forward(self, z: Tensor, alpha: Tensor) -> Prediction:
        table = self.logits[z[:, 0], z[:, 1]]
        return Prediction(table, nn.Identity(), V, self.mask_id, z)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_best_critic_is_the_mean_of_its_targets(share: float) -> None:
    """psi(. | z_s) = (1 - w) E[q(. | z_t) | z_s] + w p(. | z_s), by enumeration for two tokens.

    A MASK of z_s that stands beside a visible token came from one of two z_t: the other token was
    visible in z_t, or the student drew it.
    """
    process, n = PROCESSES["masked"], 400_000
    teacher, student, critic = toy(process, 7), toy(process, 8), Free(MASK)
    method = Moments(process, teacher, critic, critic_start=1, teacher_share=share, reach=0.25)
    x0 = torch.randint(MASK, (n, 2), generator=seeded(5))
    with torch.no_grad():
        truth = {}
        for text in [(MASK, 0), (MASK, 1), (MASK, MASK)]:
            z = torch.tensor([text])
            truth[text] = law(student, z)[0, 0].exp(), law(teacher, z)[0, 0].exp()
    # By quadrature: the weights of z_t = (MASK, token) and of z_t = (MASK, MASK) in z_s.
    a = (torch.arange(2000, dtype=torch.float64) + 0.5)[:, None] / 2000
    s = (a + 0.25 * (torch.arange(400) + 0.5)[None, :] / 400).clamp(max=1)
    shown = float((a * (1 - s)).mean()) / MASK  # x0 is uniform over MASK = 4 tokens
    drawn = float(((s - a) * (1 - s)).mean())
    both = law(student, torch.tensor([[MASK, MASK]])).detach().exp()[0]
    loss = method(student, x0, step=0, generator=seeded(6))
    (loss.per_token.sum() / n).backward()
    for token in (0, 1):
        q_shown, p = truth[MASK, token]
        weights = shown, drawn * float(both[1, token])
        mean = (weights[0] * q_shown + weights[1] * both[0]) / sum(weights)
        best = (1 - share) * mean + share * p
        gradient = critic.logits.grad[MASK, token, 0]
        uniform = torch.full((V,), 1 / MASK).double().index_fill(0, torch.tensor(MASK), 0.0)
        mass = sum(weights)
        assert_close(gradient, mass * (uniform - best), atol=4 * (mass / n) ** 0.5, rtol=0)
        assert (uniform - best).abs().max() * mass > 20 * (mass / n) ** 0.5, "the test can fail"


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("reward", ["soft", "leave-one-out"])
def test_training_in_turns_lowers_the_distance_of_the_critic(name: str, reward: str) -> None:
    process = PROCESSES[name]
    method = objective(process, reward=reward, critic_start=60, critic=toy(process, 9))
    student: Denoiser = toy(process, 8)
    optimizers = {
        turn: torch.optim.Adam(network.parameters(), lr=0.05)
        for turn, network in (("critic", method.critic), ("student", student))
    }
    losses: dict[str, list[float]] = {"critic": [], "student": []}
    for step in range(120):
        turn = method.turn(step)
        optimizers[turn].zero_grad()
        loss = method(student, X0, step=step, generator=seeded(step))
        value = loss.per_token.sum() / loss.weight.sum()
        value.backward()
        optimizers[turn].step()
        losses[turn].append(float(value.detach()))
    assert len(losses["student"]) == 30
    assert sum(losses["critic"][:5]) > 1.5 * sum(losses["critic"][55:60])


def test_turns() -> None:
    method = objective(PROCESSES["masked"], critic_start=2, critic_steps=2)
    names = [method.turn(step)[0] for step in range(8)]
    assert names == ["c", "c", "c", "c", "s", "c", "c", "s"]
    assert method.networks() == {"critic": method.critic}
    assert method.frozen() == {"teacher": method.teacher}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("critic_start", -1),
        ("critic_steps", 0),
        ("reach", 0.0),
        ("reach", 1.5),
        ("anchor", -0.1),
        ("teacher_share", 1.0),
        ("draws", 1),
        ("renoising", "x"),
        ("reward", "x"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*got {value!r}"):
        replace(objective(PROCESSES["masked"]), **{name: value})
