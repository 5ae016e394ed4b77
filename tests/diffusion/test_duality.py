"""The Gaussian side of masking (Latent Shadows, section 3): laws, published table, wrong input."""

import csv
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from last_bit import SHIFTS, LastBit
from reference import duality_density, duality_keep
from unmask.diffusion.duality import (
    coefficients,
    ddim_path,
    keep_derivative,
    keep_probability,
    margin,
    project,
    snr_root,
)

TABLE = Path(__file__).parents[1] / "golden" / "keep_probability_K50257.csv"
SIZES = [2, 3, 7, 100, 50257, 200_000]
ROOTS = [-30.0, -20.0, -9.0, -3.0, -0.5, 0.0, 1e-3, 0.7, 2.0, 4.0, 5.5, 7.0, 12.0]


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def relative(value: Tensor, truth: Tensor) -> float:
    return float(((value - truth) / truth).abs().max())


def draw(n: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(size, (n,), generator=generator)
    return x0, torch.randn(n, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_keep_probability_and_its_derivative_equal_the_plain_sums(size: int) -> None:
    roots = doubles(*ROOTS)
    keep = doubles(*(duality_keep(root, size) for root in ROOTS))
    density = doubles(*(duality_density(root, size) for root in ROOTS))
    assert keep.min() > 0  # relative error means something in every row
    assert relative(keep_probability(roots, size), keep) < 1e-11
    assert relative(keep_derivative(roots, size), density) < 1e-11


def test_two_coordinates_have_a_closed_form() -> None:
    roots = torch.linspace(-52, 12, 641, dtype=torch.float64)  # Phi(-52 / sqrt 2) = 1e-295
    log_keep = torch.special.log_ndtr(roots / math.sqrt(2))
    assert relative(keep_probability(roots, 2), log_keep.exp()) < 1e-11
    density = torch.exp(-(roots**2) / 4) / math.sqrt(4 * math.pi)
    assert relative(keep_derivative(roots, 2), density) < 1e-11


def test_duos_published_table() -> None:
    rows = list(csv.DictReader(TABLE.open()))
    assert len(rows) == 101
    roots = doubles(*(float(row["snr_root"]) for row in rows))
    gamma = doubles(*(float(row["gamma"]) for row in rows))
    keep = doubles(*(float(row["keep_probability"]) for row in rows))
    assert relative(roots, torch.exp(-gamma / 2)) < 1e-12
    assert relative(keep_probability(roots, 50257), keep) < 1e-9
    assert relative(keep_probability(snr_root(keep, 50257), 50257), keep) < 1e-9


@given(size=st.integers(2, 200_000))
@settings(deadline=None, max_examples=30)
def test_noise_alone_keeps_one_token_in_k(size: int) -> None:
    assert float(keep_probability(0.0, size)) == pytest.approx(1 / size, rel=1e-11)
    assert float(snr_root(1 / size, size)) == pytest.approx(0, abs=1e-11)


@given(
    size=st.integers(2, 200_000),
    # keep in (1e-12, 1 - 1e-12).
    log_odds=st.lists(st.floats(-27.6, 27.6), min_size=2, max_size=6, unique=True),
)
@settings(deadline=None, max_examples=40)
def test_the_inverse_is_right_and_monotone(size: int, log_odds: list[float]) -> None:
    keep = doubles(*sorted(log_odds)).sigmoid()
    roots = snr_root(keep, size)
    assert relative(keep_probability(roots, size), keep) < 1e-9
    assert bool((roots.diff() >= 0).all())
    # Below 1 / K no SNR exists.
    assert bool(((roots < 0) == (keep < 1 / size))[(keep * size - 1).abs() > 1e-9].all())


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_reaches_every_float_of_the_unit_interval(size: int) -> None:
    keep = doubles(5e-324, 1e-300, 1e-100, 1e-12, 0.5, 1 - 1e-12, 1 - 2.0**-53)
    roots = snr_root(keep, size)
    assert bool(roots.isfinite().all()) and bool((roots.diff() > 0).all())
    assert relative(keep_probability(roots, size)[1:], keep[1:]) < 1e-9


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_finds_the_root(size: int) -> None:
    # Further up keep is 1 to a few digits of 1 - keep.
    roots = torch.linspace(-20, 7, 109, dtype=torch.float64)
    assert float((snr_root(keep_probability(roots, size), size) - roots).abs().max()) < 1e-6


@pytest.mark.parametrize("size", [2, 5, 50257])
def test_gradients_equal_the_derivative(size: int) -> None:
    roots = doubles(-5.0, -1.0, 0.0, 1.0, 4.0, 6.0).requires_grad_()
    (gradient,) = torch.autograd.grad(keep_probability(roots, size).sum(), roots)
    assert relative(gradient, keep_derivative(roots.detach(), size)) < 1e-9


def test_any_shape_and_any_real_root() -> None:
    roots = doubles(-math.inf, -1e308, -70.0, 70.0, 1e308, math.inf)
    assert keep_probability(roots, 50257).tolist() == pytest.approx(
        [0, 0, 0, 1, 1, 1], rel=1e-11, abs=0
    )
    assert keep_derivative(roots, 50257).tolist() == [0] * 6
    assert keep_probability(torch.zeros(2, 3, 4), 5).shape == (2, 3, 4)
    assert keep_probability(torch.zeros(0), 5).shape == snr_root(torch.zeros(0), 5).shape == (0,)
    assert keep_probability(torch.zeros(()), 5).shape == ()
    many = torch.linspace(-3, 3, 10_001, dtype=torch.float64)  # more than one block of integrals
    assert bool((keep_probability(many, 9).diff() > 0).all())
    assert keep_probability(torch.zeros(3), 5).dtype == torch.float64


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_probability_never_exceeds_one(shift: str) -> None:
    with LastBit(shift):
        keep = keep_probability(torch.linspace(-60, 60, 241, dtype=torch.float64), 50257)
    assert bool(((keep >= 0) & (keep <= 1)).all()) and float(keep[-1]) == pytest.approx(
        1, rel=1e-11
    )


@given(root=st.floats(-1e6, 1e6))
def test_the_path_preserves_variance(root: float) -> None:
    alpha, sigma = coefficients(root)
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-14)
    assert float(alpha / sigma) == pytest.approx(root, rel=1e-12)


def test_the_path_is_signal_plus_noise() -> None:
    x0, eps = draw(4, 6)
    alpha, sigma = coefficients(doubles(0.5, 1.5, -1.0)[:, None])
    signal = torch.nn.functional.one_hot(x0, 6)
    expected = alpha[..., None] * signal + sigma[..., None] * eps
    path = ddim_path(x0, eps, doubles(0.5, 1.5, -1.0)[:, None])
    assert path.shape == (3, 4, 6)
    torch.testing.assert_close(path, expected)
    torch.testing.assert_close(ddim_path(x0, eps, 1.5), expected[1])


def test_project_keeps_only_a_strict_maximum() -> None:
    w = doubles(1, 3, 2, 3, 1, 3, 5, 4, 5, math.nan, 9, 0).view(4, 3)
    x0 = torch.tensor([1, 1, 2, 1])
    assert project(w, x0, mask_id=99).tolist() == [1, 99, 99, 99]
    assert project(w[:1].expand(3, 3), torch.arange(3), mask_id=2).tolist() == [2, 1, 2]


@given(seed=st.integers(0, 2**31), size=st.integers(2, 40))
@settings(deadline=None, max_examples=30)
def test_x0_is_visible_exactly_while_the_root_exceeds_the_margin(seed: int, size: int) -> None:
    x0, eps = draw(20, size, seed)
    level = margin(eps, x0)
    rivals = torch.stack(
        [torch.cat([row[:k], row[k + 1 :]]).max() - row[k] for row, k in zip(eps, x0, strict=True)]
    )
    torch.testing.assert_close(level, rivals)
    for offset in (-1.0, -1e-9, 1e-9, 1.0):
        z = project(ddim_path(x0, eps, level + offset), x0, mask_id=size)
        assert bool((z == (x0 if offset > 0 else size)).all())


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_keep_outside_the_open_interval_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep .*want 0 < keep < 1"):
        snr_root(doubles(0.5, keep), 10)


def test_wrong_input() -> None:
    for function in (keep_probability, keep_derivative, snr_root):
        with pytest.raises(ValueError, match=r"vocab_size .*got 1, want K >= 2"):
            function(doubles(0.5), 1)
    with pytest.raises(ValueError, match=r"snr_root .*got nan"):
        keep_probability(math.nan, 10)
    with pytest.raises(ValueError, match=r"x0 .*got 3, want 0 <= x0 < 3"):
        project(torch.zeros(2, 3), torch.tensor([0, 3]), mask_id=3)
