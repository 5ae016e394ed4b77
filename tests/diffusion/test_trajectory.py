"""A trajectory: nested, with the right law at one level and at two."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from reference import process_channel
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.trajectory import Trajectory, trajectory

V, MASK = 4, 3
PROCESSES = [MaskedProcess(V, MASK), UniformProcess(V)]
NOISE = {
    PROCESSES[0]: torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64),
    PROCESSES[1]: torch.full((V,), 1 / V, dtype=torch.float64),
}
process_and_text = st.tuples(st.sampled_from(PROCESSES), st.integers(0, 10**9))


def draw(
    process: MaskedProcess | UniformProcess, seed: int, batch: int = 3, length: int = 8
) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(MASK, (batch, length), generator=generator)
    return trajectory(process, x0, generator)


def levels(*alphas: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(alphas, dtype=dtype)


@given(process_and_text, st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_views_of_one_trajectory_are_nested(drawn: tuple, alphas: list[float]) -> None:
    """Theorem 3.3: less noise shows more of the text, and a noised token is the same noise."""
    path = draw(*drawn)
    low, high = levels(*alphas).view(2, 3).sort(dim=0).values
    z_t, z_s = path.at(low), path.at(high)
    kept_t, kept_s = path.u < low[:, None], path.u < high[:, None]
    assert bool((kept_s | ~kept_t).all())
    for z, kept in ((z_t, kept_t), (z_s, kept_s)):
        assert torch.equal(z, torch.where(kept, path.x0, path.noise))
    masked_t, masked_s = z_t != path.x0, z_s != path.x0
    assert bool((masked_t | ~masked_s).all()), "noise at s is noise at t"
    assert torch.equal(z_t[masked_s], z_s[masked_s]), (
        "and the same noise: the competitor never changes"
    )


@given(process_and_text)
def test_its_ends_are_the_text_and_the_noise(drawn: tuple) -> None:
    path = draw(*drawn)
    assert torch.equal(path.at(levels(1, 1, 1)), path.x0)
    assert torch.equal(path.at(levels(0, 0, 0)), path.noise)
    assert path.u.dtype == torch.float64 and path.u.shape == path.x0.shape
    assert float(path.u.min()) >= 0 and float(path.u.max()) < 1


def test_each_sequence_has_its_own_level() -> None:
    path = draw(PROCESSES[0], 0)
    mixed = path.at(levels(0.0, 1.0, 0.5))
    assert torch.equal(mixed[0], path.noise[0]) and torch.equal(mixed[1], path.x0[1])
    assert torch.equal(mixed[2], path.at(levels(0.5, 0.5, 0.5))[2])


def test_u_is_compared_in_float64_and_strictly() -> None:
    """A token stays while u < alpha. A float32 alpha is compared exactly."""
    half = 0.5
    path = Trajectory(
        torch.zeros(1, 3).long(),
        torch.ones(1, 3).long(),
        levels(half - 1e-12, half, half + 1e-12)[None],
    )
    for dtype in (torch.float32, torch.float64):
        assert path.at(levels(half, dtype=dtype)).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("process", PROCESSES, ids=["masked", "uniform"])
@pytest.mark.parametrize("alpha", [0.1, 0.6, 0.95])
def test_at_one_level_it_is_the_forward_process(
    process: MaskedProcess | UniformProcess, alpha: float
) -> None:
    n = 20_000
    for token in (0, 2):
        path = trajectory(process, torch.full((1, n), token), torch.Generator().manual_seed(token))
        due = process_channel(NOISE[process], alpha)[token] * n
        seen = torch.bincount(path.at(levels(alpha))[0], minlength=V)
        assert not seen[due == 0].any()
        assert chisquare(seen[due > 0].numpy(), due[due > 0].numpy()).pvalue > 1e-3


def masked_pair(alpha_t: float, alpha_s: float) -> Tensor:
    """q(z_s | x0) q(z_t | z_s) as a table [z_t, z_s]: the Markov chain of masked diffusion."""
    noise = NOISE[PROCESSES[0]]
    return (
        process_channel(noise, alpha_s)[0][:, None] * process_channel(noise, alpha_t / alpha_s)
    ).T


def uniform_pair(alpha_t: float, alpha_s: float) -> Tensor:
    """Duo's arg max path: x0 twice, x0 at s and a competitor at t, or the same competitor twice."""
    table = torch.diag((1 - alpha_s) * NOISE[PROCESSES[1]])
    table[:, 0] += (alpha_s - alpha_t) * NOISE[PROCESSES[1]]
    table[0, 0] += alpha_t
    return table


@pytest.mark.parametrize(
    ("process", "law"),
    [(PROCESSES[0], masked_pair), (PROCESSES[1], uniform_pair)],
    ids=["masked", "uniform"],
)
def test_at_two_levels_it_is_the_locked_pair(
    process: MaskedProcess | UniformProcess, law: Callable[[float, float], Tensor]
) -> None:
    n, alpha_t, alpha_s = 40_000, 0.3, 0.55
    path = trajectory(
        process, torch.zeros(1, n, dtype=torch.int64), torch.Generator().manual_seed(1)
    )
    pairs = torch.bincount(
        path.at(levels(alpha_t))[0] * V + path.at(levels(alpha_s))[0], minlength=V * V
    )
    due = n * law(alpha_t, alpha_s).flatten()
    assert float(due.sum()) == pytest.approx(n) and not pairs[due < 1e-9].any()
    assert chisquare(pairs[due > 1e-9].numpy(), due[due > 1e-9].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("process", PROCESSES, ids=["masked", "uniform"])
def test_tokens_and_sequences_are_lost_independently(
    process: MaskedProcess | UniformProcess,
) -> None:
    path = trajectory(
        process, torch.zeros(2, 20_000, dtype=torch.int64), torch.Generator().manual_seed(2)
    )
    first, second = path.u
    for one, two in ((first, second), (first[1:], first[:-1])):
        cells = torch.bincount((one * 6).long() * 6 + (two * 6).long(), minlength=36)
        assert chisquare(cells.numpy()).pvalue > 1e-3
    # The noise token does not depend on the level.
    lost = (
        path.noise[0][first > 0.5],
        path.noise[0][first <= 0.5],
    )
    rates = [torch.bincount(part, minlength=V) / len(part) for part in lost]
    assert float((rates[0] - rates[1]).abs().max()) < 0.03


def test_all_randomness_comes_from_the_generator() -> None:
    before = torch.get_rng_state()
    for process in PROCESSES:
        one, same, other = (draw(process, seed) for seed in (3, 3, 4))
        assert (
            torch.equal(one.u, same.u)
            and torch.equal(one.noise, same.noise)
            and not torch.equal(one.u, other.u)
        )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_levels_are_shares(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha .*got {alpha}, want 0 <= alpha <= 1"):
        draw(PROCESSES[0], 0).at(levels(0.5, alpha, 0.5))
