"""The bound of a process, at times that cover the unit interval."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from toy_denoiser import Toy
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule
from unmask.objectives.nelbo import Nelbo

V, MASK = 6, 5
MASKED, UNIFORM = MaskedProcess(V, MASK), UniformProcess(V)
BOTH = pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
X0 = torch.randint(MASK, (8, 10), generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(process: Process) -> Toy:
    return Toy(V, MASK if process is MASKED else None)


@BOTH
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=["log-linear", "cosine"])
def test_it_is_the_bound_at_the_input_of_the_network(
    process: Process, schedule: NoiseSchedule
) -> None:
    network = toy(process)
    loss = Nelbo(process, schedule)(network, X0, step=3, generator=seeded())
    [(z, alpha)] = network.calls
    slope = schedule.dalpha(schedule.time(alpha))
    want = process.nelbo(network(z, alpha), X0, z, alpha, slope)
    assert_close(loss.per_token, want, rtol=1e-6, atol=1e-9)
    assert torch.equal(loss.weight, torch.ones_like(loss.per_token)), (
        "a mean over all tokens, not over MASKs"
    )
    assert dict(loss.metrics) == {} and alpha.dtype == torch.float64


@BOTH
def test_noise_is_that_of_the_process(process: Process) -> None:
    network = toy(process)
    Nelbo(process, LogLinear())(network, X0, step=0, generator=seeded())
    [(z, alpha)] = network.calls
    assert (
        z.shape == X0.shape
        and alpha.shape == (8,)
        and bool((z[z != X0] == MASK).all()) == (process is MASKED)
    )


@pytest.mark.parametrize("t_min", [1e-3, 0.3])
def test_times_are_stratified_over_the_batch(t_min: float) -> None:
    network = toy(MASKED)
    objective = Nelbo(MASKED, LogLinear(), t_min)
    for seed in range(20):
        objective(network, X0, step=0, generator=seeded(seed))
    for _, alpha in network.calls:
        place = (LogLinear().time(alpha) - t_min) / (1 - t_min)
        assert sorted((place * 8).long().tolist()) == list(range(8))
        assert float(place.min()) > 0 and float(place.max()) <= 1
    assert not all(bool((alpha.diff() < 0).all()) for _, alpha in network.calls), "in random order"


def test_the_mean_over_batches_is_the_bound() -> None:
    """A network with zero logits: log(V - 1) nats a token, as MDLM's starts."""
    network = toy(MASKED)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    objective, generator = Nelbo(MASKED, LogLinear(1e-3)), seeded()
    x0 = X0.repeat(8, 1)
    losses = [objective(network, x0, step=i, generator=generator).per_token for i in range(300)]
    means = torch.stack([loss.detach().mean() for loss in losses])
    # A token is masked with probability 0.999 t and then weighs 1 / t.
    exact = 0.999 * math.log(V - 1)
    error = float(means.std()) / 300**0.5
    assert abs(float(means.mean()) - exact) < 4 * error and error < 0.01


def test_all_randomness_comes_from_the_generator() -> None:
    before = torch.get_rng_state()
    objective = Nelbo(UNIFORM, LogLinear())
    one, same, other = (
        objective(toy(UNIFORM), X0, step=9, generator=seeded(seed)).per_token for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@BOTH
def test_gradients_reach_every_weight(process: Process) -> None:
    network = toy(process)
    Nelbo(process, LogLinear())(network, X0, step=0, generator=seeded()).per_token.sum().backward()
    assert all(
        weight.grad is not None and bool(weight.grad.any()) for weight in network.parameters()
    )


def test_it_trains_the_student_alone() -> None:
    objective, student = Nelbo(MASKED, LogLinear()), toy(MASKED)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    objective.prepare(0, student)
    assert (
        objective.networks() == {} and objective.frozen() == {} and objective.turn(5) == "student"
    )
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
