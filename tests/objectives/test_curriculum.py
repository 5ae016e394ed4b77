"""Duo's curriculum: soft input first, then the plain bound; at a low temperature they agree."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import dense_input
from toy_denoiser import Toy
from unmask.diffusion.processes import UniformProcess
from unmask.diffusion.schedules import Cosine, GaussianArgmax, LogLinear, gamma_at
from unmask.objectives.base import Loss
from unmask.objectives.curriculum import Curriculum
from unmask.objectives.nelbo import Nelbo
from unmask.types import SoftTokens

K, B, L = 6, 8, 5
PROCESS = UniformProcess(K)
PATH = GaussianArgmax(K, gamma_at(0.95, K), gamma_at(0.05, K))
X0 = torch.randint(K, (B, L), generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(**switches: object) -> Curriculum:
    settings = {"soft_steps": 10, "temperature": 0.3, "top_k": 3}
    return Curriculum(PROCESS, Cosine(), PATH, **(settings | switches))


def step_of(
    method: Curriculum | Nelbo, step: int = 0, seed: int = 0, x0: Tensor = X0
) -> tuple[Loss, Toy]:
    student = Toy(K, seed=8)
    return method(student, x0, step=step, generator=seeded(seed)), student


def heaviest(soft: SoftTokens) -> Tensor:
    """The token with the greatest weight at each position."""
    return soft.tokens.gather(-1, soft.weights.argmax(-1, keepdim=True)).squeeze(-1)


# --- while it is soft


@given(st.integers(0, 10**6), st.sampled_from([1, 3, K - 1]), st.sampled_from([0, 9]))
def test_the_network_reads_soft_tokens_and_the_bound_is_at_their_arg_max(
    seed: int, top_k: int, step: int
) -> None:
    """The bound uses alpha and slope of the Gaussian path at t, not of the schedule."""
    loss, student = step_of(objective(top_k=top_k), step, seed)
    [(soft, alpha)] = student.calls
    assert (
        isinstance(soft, SoftTokens) and soft.shape == (B, L) and soft.tokens.shape[-1] == top_k + 1
    )
    t = PATH.time(alpha)
    want = PROCESS.nelbo(student(soft, alpha), X0, heaviest(soft), alpha, PATH.dalpha(t))
    assert_close(loss.per_token.detach(), want.detach(), rtol=1e-7, atol=1e-9)
    assert bool((loss.weight == 1).all()) and loss.weight.shape == X0.shape
    assert (
        alpha.dtype == torch.float64
        and float(alpha.max()) <= 0.95 + 1e-9
        and float(alpha.min()) >= 0.05 - 1e-9
    )


def test_times_are_stratified_from_t_min_on() -> None:
    for seed in range(10):
        _, student = step_of(objective(t_min=0.3), seed=seed)
        t = PATH.time(student.calls[0][1])
        assert sorted(((t - 0.3) / 0.7 * B + 1e-9).long().tolist()) == list(range(B))


def test_the_gradient_is_that_of_the_bound_on_soft_input() -> None:
    loss, student = step_of(objective())
    loss.per_token.sum().backward()
    [(soft, alpha)] = student.calls
    twin = Toy(K, seed=8)
    slope = PATH.dalpha(PATH.time(alpha))
    PROCESS.nelbo(twin(soft, alpha), X0, heaviest(soft), alpha, slope).sum().backward()
    for one, two in zip(student.parameters(), twin.parameters(), strict=True):
        assert bool(one.grad.any())
        assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-9)


def test_the_mean_loss_is_that_of_duos_code() -> None:
    """The sparse input with all other tokens against Eq. 18 from K Gaussians a token.

    Means of the loss of a row over many rows, each with its own time.
    """
    n, tau = 20_000, 0.3
    x0 = torch.randint(K, (1, L), generator=seeded(3)).repeat(n, 1)
    loss, student = step_of(objective(temperature=tau, top_k=K - 1), x0=x0)
    eps = torch.randn(n, L, K, generator=seeded(4), dtype=torch.float64)
    t = 1e-3 + (1 - 1e-3) * torch.rand(n, generator=seeded(5), dtype=torch.float64)
    z, logits = dense_input(x0, eps, PATH.snr_root(t), tau)
    everything = SoftTokens(torch.arange(K).expand(n, L, K), torch.softmax(logits, dim=-1))
    alpha = PATH.alpha(t)
    dense = PROCESS.nelbo(student(everything, alpha), x0, z, alpha, PATH.dalpha(t))
    one, two = (rows.detach().double().mean(1) for rows in (loss.per_token, dense))
    assert abs(float(one.mean() - two.mean())) < 5 * math.sqrt(float(one.var() + two.var()) / n)
    assert float(one.std()) > 0.1


# --- cold, and afterwards


@given(st.integers(0, 10**6))
def test_at_temperature_zero_it_is_the_plain_bound_on_the_path(seed: int) -> None:
    loss, student = step_of(objective(temperature=1e-12), seed=seed)
    [(soft, alpha)] = student.calls
    z = heaviest(soft)
    want = PROCESS.nelbo(student(z, alpha), X0, z, alpha, PATH.dalpha(PATH.time(alpha)))
    assert_close(loss.per_token.detach(), want.detach(), rtol=1e-7, atol=1e-9)


def test_at_temperature_zero_the_law_of_the_input_is_that_of_a_trajectory() -> None:
    """The arg max of the Gaussian and `Nelbo` on trajectories have one law of (t, z_t)."""
    n = 20_000
    x0 = torch.randint(K, (1, L), generator=seeded(3)).repeat(n, 1)
    soft, _ = step_of(objective(temperature=1e-12, top_k=1), seed=1, x0=x0)
    hard, _ = step_of(Nelbo(PROCESS, PATH), seed=2, x0=x0)
    one, two = (loss.per_token.detach().double().mean(1) for loss in (soft, hard))
    assert abs(float(one.mean() - two.mean())) < 5 * math.sqrt(float(one.var() + two.var()) / n)


@pytest.mark.parametrize("t_min", [1e-3, 0.2])
def test_from_soft_steps_on_it_is_the_plain_bound_bit_for_bit(t_min: float) -> None:
    plain, hard_student = step_of(Nelbo(PROCESS, Cosine(), t_min), seed=4)
    for step in (10, 11, 10**6):
        loss, student = step_of(objective(t_min=t_min), step, seed=4)
        [(z, alpha)] = student.calls
        assert isinstance(z, Tensor) and torch.equal(z, hard_student.calls[0][0])
        assert torch.equal(alpha, hard_student.calls[0][1])
        assert torch.equal(loss.per_token, plain.per_token) and torch.equal(
            loss.weight, plain.weight
        )
    never, student = step_of(objective(soft_steps=0, t_min=t_min), 0, seed=4)
    assert torch.equal(never.per_token, plain.per_token)
    soft, _ = step_of(objective(t_min=t_min), 9, seed=4)
    assert not torch.equal(soft.per_token, plain.per_token)


def test_a_step_is_a_function_of_step_and_generator() -> None:
    before = torch.get_rng_state()
    for step in (0, 10):
        one, same, other = (step_of(objective(), step, seed)[0].per_token for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_trains_one_network() -> None:
    method = objective()
    assert method.networks() == {} and method.frozen() == {} and method.turn(5) == "student"


def test_wrong_arguments_are_refused_at_once() -> None:
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"temperature .*got {temperature}, want"):
            objective(temperature=temperature)
    for top_k in (0, K):
        with pytest.raises(ValueError, match=f"top_k .*got {top_k}, want 1 <= top_k < 6"):
            objective(top_k=top_k)
    with pytest.raises(ValueError, match=r"path .*got vocab_size = 7, want 6"):
        replace(objective(), path=GaussianArgmax(7, -2.0, -1.0))


def test_soft_input_uses_the_path_and_not_the_schedule() -> None:
    """Another path changes the loss. Another schedule changes nothing while the input is soft."""
    one = step_of(objective())[0].per_token
    same = step_of(replace(objective(), schedule=LogLinear()))[0].per_token
    other = step_of(
        replace(objective(), path=GaussianArgmax(K, gamma_at(0.9, K), gamma_at(0.1, K)))
    )[0].per_token
    assert torch.equal(one, same) and not torch.equal(one, other)
