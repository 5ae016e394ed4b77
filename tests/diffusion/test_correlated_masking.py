"""Correlated levels: each is uniform, the correlation is as documented, and locking holds."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, multivariate_normal
from torch import Tensor

from unmask.diffusion.correlated_masking import (
    CorrelatedBlocks,
    CorrelatedSpan,
    NestedBlocks,
    Structure,
    gaussian_copula,
    parse_structure,
)
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.trajectory import Trajectory, trajectory
from unmask.prediction import Prediction

L, MASK = 11, 3
PROCESS = MaskedProcess(MASK + 1, MASK)
STRUCTURES = [
    CorrelatedBlocks(4, 0.7),
    CorrelatedBlocks(4, 1.0),
    CorrelatedSpan(3.0),
    CorrelatedSpan(0.4),
    NestedBlocks((6, 3), (0.5, 0.3)),
    NestedBlocks((8,), (1.0,)),
]
NAMES = [str(structure) for structure in STRUCTURES]


def correlation(structure: Structure, i: int, j: int) -> float:
    """C_ij by its definition in words."""
    if i == j:
        return 1.0
    match structure:
        case CorrelatedBlocks(size, rho):
            return rho if i // size == j // size else 0.0
        case CorrelatedSpan(length):
            return math.exp(-abs(i - j) / length)
        case NestedBlocks(sizes, shares):
            return sum(
                share for size, share in zip(sizes, shares, strict=True) if i // size == j // size
            )
    raise AssertionError(structure)


def matrix(structure: Structure, length: int) -> Tensor:
    rows = [[correlation(structure, i, j) for j in range(length)] for i in range(length)]
    return torch.tensor(rows, dtype=torch.float64)


def linear_map(structure: Structure, length: int) -> Tensor:
    """The matrix A [L, S L] of g = A e, one column for each independent normal."""
    inputs = structure.sources * length
    basis = (
        torch.eye(inputs, dtype=torch.float64)
        .view(inputs, structure.sources, length)
        .transpose(0, 1)
    )
    return structure(basis).T


def draw(structure: Structure | None, rows: int, seed: int = 0, length: int = L) -> Trajectory:
    x0 = torch.zeros(rows, length, dtype=torch.int64)
    return trajectory(PROCESS, x0, torch.Generator().manual_seed(seed), structure)


sizes_of_blocks = st.integers(1, 9)
shares_of_variance = st.floats(0, 1)
structures = st.one_of(
    st.builds(CorrelatedBlocks, sizes_of_blocks, shares_of_variance),
    st.builds(CorrelatedSpan, st.floats(1e-3, 1e6)),
    st.builds(
        lambda inner, factor, one, two: NestedBlocks(
            (inner * factor, inner), (one, (1 - one) * two)
        ),
        st.integers(1, 4), st.integers(2, 3), shares_of_variance, shares_of_variance,
    ),
)  # fmt: skip


@given(structures, st.integers(1, 40))
def test_the_correlation_is_the_stated_one(structure: Structure, length: int) -> None:
    """A A^T = C up to rounding. The variance is 1, so the marginal law of g is normal for any C."""
    a = linear_map(structure, length)
    assert torch.allclose(a @ a.T, matrix(structure, length), rtol=0, atol=1e-12)


def test_long_texts_are_exact_too() -> None:
    for structure in (
        CorrelatedBlocks(64, 0.9),
        CorrelatedSpan(16.0),
        CorrelatedSpan(1e5),
        NestedBlocks((64, 16, 4), (0.3, 0.3, 0.3)),
    ):
        a = linear_map(structure, 500)
        assert torch.allclose(a @ a.T, matrix(structure, 500), rtol=0, atol=1e-12)


@given(structures, st.integers(2, 20), st.integers(0, 10**9))
def test_a_longer_text_begins_as_the_shorter_one(
    structure: Structure, length: int, seed: int
) -> None:
    """Each row is the same in any batch, to the last bit."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(structure.sources, 3, length, dtype=torch.float64, generator=generator)
    u = gaussian_copula(structure, normals)
    assert u.shape == (3, length) and u.dtype == torch.float64
    assert torch.equal(gaussian_copula(structure, normals[..., : length - 1]), u[:, :-1])
    assert torch.equal(gaussian_copula(structure, normals[:, 1:2]), u[1:2])


@pytest.mark.parametrize("structure", STRUCTURES, ids=NAMES)
def test_each_level_is_uniform(structure: Structure) -> None:
    u = draw(structure, 10_000).u
    assert u.dtype == torch.float64 and u.shape == (10_000, L)
    assert min(kstest(u[:, i].numpy(), "uniform").pvalue for i in range(L)) > 1e-3 / L


@pytest.mark.parametrize(
    "structure", [*STRUCTURES, CorrelatedBlocks(4, 0.0), NestedBlocks((4, 2), (0.0, 0.0))], ids=str
)
def test_drawn_levels_have_the_correlation(structure: Structure) -> None:
    """Every pair within 4.5 standard errors, (1 - rho^2) / sqrt n."""
    n = 20_000
    g = torch.special.ndtri(draw(structure, n, seed=1).u)
    due = matrix(structure, L)
    assert bool(((g.T.corrcoef() - due).abs() <= 4.5 * (1 - due**2) / math.sqrt(n) + 1e-9).all())


def test_the_correlation_test_has_power() -> None:
    n = 20_000
    seen = torch.special.ndtri(draw(CorrelatedBlocks(4, 0.7), n, seed=1).u).T.corrcoef()
    for other in (CorrelatedBlocks(4, 0.67), CorrelatedBlocks(5, 0.7), CorrelatedSpan(3.0)):
        due = matrix(other, L)
        assert bool(((seen - due).abs() > 4.5 * (1 - due**2) / math.sqrt(n) + 1e-9).any())


@pytest.mark.parametrize(
    ("structure", "size"),
    [(CorrelatedBlocks(4, 1.0), 4), (NestedBlocks((8, 4, 2), (0.7, 0.2, 0.1)), 2)],
)
def test_at_correlation_1_a_block_changes_as_one_token(structure: Structure, size: int) -> None:
    u = draw(structure, 200).u
    blocks = u.split(size, dim=1)
    assert all(torch.equal(block, block[:, :1].expand_as(block)) for block in blocks)
    assert all(len(row.unique()) == len(blocks) for row in u)
    whole = draw(CorrelatedSpan(math.inf), 200).u
    assert torch.equal(whole, whole[:, :1].expand_as(whole)) and len(whole.unique()) == 200


def test_without_correlation_each_token_has_its_own_level() -> None:
    normals = torch.randn(3, 5, L, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for structure in (
        CorrelatedBlocks(4, 0.0),
        NestedBlocks((4, 2), (0.0, 0.0)),
        CorrelatedSpan(1e-3),
    ):
        assert torch.equal(structure(normals[: structure.sources]), normals[0])


def test_texts_of_a_batch_are_independent() -> None:
    one, two = (
        torch.special.ndtri(draw(CorrelatedBlocks(L, 1.0), 20_000, seed=3).u[k::2, 0])
        for k in (0, 1)
    )
    assert abs(float(torch.stack([one, two]).corrcoef()[0, 1])) < 4.5 / math.sqrt(10_000)


@given(structures, st.integers(0, 10**9), st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_masks_are_nested(structure: Structure, seed: int, alphas: list[float]) -> None:
    """Theorem 3.3 for any copula: the MASKs of z_s are MASKs of z_t.

    The ends are the text and all MASK.
    """
    path = draw(structure, 3, seed)
    low, high = torch.tensor(alphas, dtype=torch.float64).view(2, 3).sort(dim=0).values
    masked_t, masked_s = path.at(low) == MASK, path.at(high) == MASK
    assert bool((masked_t | ~masked_s).all())
    assert bool((path.at(torch.zeros(3)) == MASK).all()) and bool(
        (path.at(torch.ones(3)) == path.x0).all()
    )


@pytest.mark.parametrize("structure", STRUCTURES, ids=NAMES)
def test_a_token_is_masked_with_probability_one_minus_alpha(structure: Structure) -> None:
    n = 10_000
    path = draw(structure, n, seed=4)
    for alpha in (0.05, 0.5, 0.9):
        share = (path.at(torch.full((n,), alpha, dtype=torch.float64)) == MASK).double().mean(0)
        assert float((share - (1 - alpha)).abs().max()) < 4.5 * math.sqrt(alpha * (1 - alpha) / n)


def test_the_joint_law_of_two_masks_is_that_of_the_copula() -> None:
    """P(both masked) = P(g_1, g_2 >= Phi^-1(alpha)), the bivariate normal by quadrature."""
    n, alpha, rho = 40_000, 0.6, 0.8
    z = draw(CorrelatedBlocks(2, rho), n, seed=5, length=2).at(
        torch.full((n,), alpha, dtype=torch.float64)
    )
    edge = float(torch.special.ndtri(torch.tensor(alpha, dtype=torch.float64)))
    due = float(multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([-edge, -edge]))
    assert due > (1 - alpha) ** 2 + 0.1
    assert abs(float((z == MASK).all(1).double().mean()) - due) < 4.5 * math.sqrt(
        due * (1 - due) / n
    )


def test_levels_stay_inside_the_interval() -> None:
    """Phi(9) is 1 and Phi(-40) is 0 in float64; u is neither."""
    far = torch.tensor([9.0, -40.0, 0.0], dtype=torch.float64).expand(1, 1, 3)
    assert torch.special.ndtr(far[..., :2]).flatten().tolist() == [1.0, 0.0]
    assert gaussian_copula(CorrelatedSpan(1e-3), far).tolist() == [[1 - 2.0**-53, 2.0**-53, 0.5]]


@pytest.mark.parametrize("process", [PROCESS, UniformProcess(4)], ids=["masked", "uniform"])
def test_without_a_structure_the_random_numbers_do_not_change(
    process: MaskedProcess | UniformProcess,
) -> None:
    """The levels and the noise after them are the same to the last bit."""
    x0 = torch.zeros(4, 6, dtype=torch.int64)
    before = torch.get_rng_state()
    for path in (
        trajectory(process, x0, torch.Generator().manual_seed(8)),
        trajectory(process, x0, torch.Generator().manual_seed(8), structure=None),
    ):
        generator = torch.Generator().manual_seed(8)
        assert torch.equal(path.u, torch.rand(4, 6, generator=generator, dtype=torch.float64))
        assert torch.equal(path.noise, process.prior(x0, generator))
    one, same, other = (
        trajectory(process, x0, torch.Generator().manual_seed(seed), structure=CorrelatedSpan(2.0))
        for seed in (8, 8, 9)
    )
    assert (
        torch.equal(one.u, same.u)
        and torch.equal(one.noise, same.noise)
        and not torch.equal(one.u, other.u)
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
def test_the_bound_is_tight_for_independent_levels_only(rho: float) -> None:
    """For independent levels the exact denoiser's bound is log 2, with a structure it is more.

    The text is two tokens that are always equal, one bit together. With a structure the mean of the
    integrand is 2 log 2 (1 - q), q = E|E_1 - E_2| / 2 for E = -log(1 - u). The partner of a masked
    token is masked more often than with independent levels. At rho = 1 it always is.
    """
    n = 200_000
    generator = torch.Generator().manual_seed(6)
    path = trajectory(
        PROCESS, torch.zeros(n, 2, dtype=torch.int64), generator, CorrelatedBlocks(2, rho)
    )
    alpha = torch.rand(n, generator=generator, dtype=torch.float64)
    z = path.at(alpha)
    visible = (z.flip(1) != MASK)[..., None]
    law = torch.where(
        visible, torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.5, 0.5, 0, 0])
    ).double()
    prediction = Prediction.from_log_p(law.clamp(min=1e-300).log())
    integrand = PROCESS.nelbo(prediction, path.x0, z, alpha, -torch.ones_like(alpha)).sum(1)
    e = -torch.log1p(-draw(CorrelatedBlocks(2, rho), n, seed=7, length=2).u)
    due = 2 * math.log(2) * (1 - float((e[:, 0] - e[:, 1]).abs().mean()) / 2)
    assert abs(float(integrand.clamp(max=1e3).mean()) - due) < 0.03
    assert (abs(due - math.log(2)) < 0.01) == (rho == 0)


def test_text_forms() -> None:
    assert parse_structure("") is None and parse_structure("none") is None
    assert parse_structure("block:8:0.9") == CorrelatedBlocks(8, 0.9)
    assert parse_structure("span:16") == CorrelatedSpan(16.0)
    assert parse_structure("hierarchy:64,16,4:0.3,0.3,0.3") == NestedBlocks(
        (64, 16, 4), (0.3, 0.3, 0.3)
    )
    assert parse_structure("hierarchy:2:1") == NestedBlocks((2,), (1.0,))


@pytest.mark.parametrize(
    "text", ["None", "blocks:8:0.9", "block:8", "block:8:0.9:1", "block:x:1", "block:8.5:1",
             "span", "span:", "span:a", "hierarchy:4,2", "hierarchy:4,,2:0.1,0.1", "hierarchy:4:a",
             "block"],
)  # fmt: skip
def test_other_forms_are_refused(text: str) -> None:
    message = f"structure .*got {re.escape(repr(text))}, want .*'block:SIZE:CORRELATION'"
    with pytest.raises(ValueError, match=message):
        parse_structure(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "block:0:0.5",
            "size is too small: got 0, want a whole number 1 .. 2^63 - 1",
        ),
        (
            "block:99999999999999999999:0.5",
            "size is too large: got 99999999999999999999",
        ),
        ("block:4:1.01", "correlation is out of range: got 1.01, want 0 <= correlation <= 1"),
        ("block:4:-0.1", "correlation is out of range: got -0.1, want 0 <= correlation <= 1"),
        ("block:4:nan", "correlation is out of range: got nan, want 0 <= correlation <= 1"),
        ("span:0", "length is out of range: got 0.0, want length > 0"),
        ("span:-2", "length is out of range: got -2.0, want length > 0"),
        ("span:nan", "length is out of range: got nan, want length > 0"),
        (
            "hierarchy:8,4:0.5",
            "got sizes (8, 4) and shares (0.5,), want one share for each size",
        ),
        ("hierarchy:8,-4:0.5,0.1", "sizes is too small: got -4"),
        ("hierarchy:8,3:0.5,0.1", "sizes do not nest: got (8, 3)"),
        ("hierarchy:4,8:0.5,0.1", "sizes do not nest: got (4, 8)"),
        ("hierarchy:8,8:0.5,0.1", "sizes do not nest: got (8, 8)"),
        ("hierarchy:8,4:0.7,0.4", "shares are out of range: got (0.7, 0.4)"),
        ("hierarchy:8,4:0.7,-0.4", "shares are out of range: got (0.7, -0.4)"),
        ("hierarchy:8,4:0.7,nan", "shares are out of range: got (0.7, nan)"),
    ],
)
def test_numbers_outside_their_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_structure(text)


def test_constructors_check_their_arguments() -> None:
    for size in (True, 2.5):
        with pytest.raises(ValueError, match=f"size .*got {size}"):
            CorrelatedBlocks(size, 0.5)
    with pytest.raises(ValueError, match=r"got sizes .* and shares .*, want one share"):
        NestedBlocks((), ())
