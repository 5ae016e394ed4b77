"""Duo's soft input: the sparse form has the law of K Gaussians a token."""

import math
from collections import Counter
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from reference import dense_input, duality_keep
from unmask.diffusion.gaussian_input import distinct, largest_normals, sparse_input
from unmask.types import SoftTokens

K, N = 6, 60_000
ROOTS = pytest.mark.parametrize("root", [0.0, 1.2, 3.0])
TEMPERATURES = pytest.mark.parametrize("temperature", [2.0, 0.3, 1e-3])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sparse(
    token: int, root: float, size: int, temperature: float, k: int, n: int = N, seed: int = 0
) -> tuple[Tensor, SoftTokens]:
    """(z [n], input of n positions) of one token."""
    z, soft = sparse_input(
        torch.full((1, n), token), doubles(root), size, temperature, k, seeded(seed)
    )
    return z[0], soft


def dense(
    token: int, root: float, size: int, temperature: float, n: int = N, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """The same from K Gaussians: (z [n], logits [n, K])."""
    eps = torch.randn(1, n, size, generator=seeded(seed), dtype=torch.float64)
    z, logits = dense_input(torch.full((1, n), token), eps, doubles(root), temperature)
    return z[0], logits[0]


def whole(soft: SoftTokens, size: int) -> Tensor:
    """Soft tokens as weights of all tokens, [n, K]."""
    tokens, weights = soft.tokens.flatten(0, 1), soft.weights.flatten(0, 1).double()
    return torch.zeros(len(tokens), size, dtype=torch.float64).scatter_add(1, tokens, weights)


def far(one: Tensor, two: Tensor) -> float:
    """The greatest z-score between the column means of two samples."""
    variance = one.var(0) / len(one) + two.var(0) / len(two)
    return float(((one.mean(0) - two.mean(0)) / (variance + 1e-24).sqrt()).abs().max())


def moments(columns: Tensor) -> Tensor:
    """Every column, and every product of two."""
    i, j = torch.triu_indices(columns.shape[1], columns.shape[1])
    return torch.cat([columns, columns[:, i] * columns[:, j]], dim=1)


# --- the law of the input


@ROOTS
@TEMPERATURES
def test_with_all_tokens_it_is_the_tempered_gaussian(root: float, temperature: float) -> None:
    """Weights of all tokens and arg max, jointly: the means of each and of all products of two."""
    token = 2
    z, soft = sparse(token, root, K, temperature, K - 1)
    z_dense, logits = dense(token, root, K, temperature)
    both = [
        torch.cat([weights, torch.nn.functional.one_hot(hard, K).double()], dim=1)
        for hard, weights in ((z, whole(soft, K)), (z_dense, torch.softmax(logits, dim=-1)))
    ]
    assert far(*map(moments, both)) < 5


@ROOTS
@TEMPERATURES
def test_top_k_restricts_the_dense_law(root: float, temperature: float) -> None:
    """The dense law restricted to x0 and the k greatest other coordinates, in the sparse order."""
    size, k, token, n = 30, 3, 7, 50_000
    _, soft = sparse(token, root, size, temperature, k, n)
    _, logits = dense(token, root, size, temperature, n)
    rivals = (
        logits[:, [v for v in range(size) if v != token]].sort(dim=1, descending=True).values[:, :k]
    )
    kept = torch.softmax(torch.cat([logits[:, [token]], rivals], dim=1), dim=1)
    assert far(moments(soft.weights[0].double()), moments(kept)) < 5
    assert bool((soft.weights[0, :, 1:].diff() <= 0).all())


def test_at_duos_temperature_top_k_loses_no_weight() -> None:
    """8 of 1023 other coordinates leave out no weight at tau = 1e-3, and almost all at tau = 1."""
    size, k = 1024, 8
    dropped = {}
    for temperature in (1e-3, 0.03, 1.0):
        _, logits = dense(5, 3.0, size, temperature, n=3000)
        p = torch.softmax(logits, dim=-1)
        p[:, 5] = 0
        dropped[temperature] = float((p.sum(-1) - p.topk(k).values.sum(-1)).mean())
    assert dropped[1e-3] < 1e-9 < dropped[0.03] < 0.02 < 0.5 < dropped[1.0]


@pytest.mark.parametrize("size", [2, 6, 1024, 50257])
def test_the_law_of_z_is_exact_for_any_top_k(size: int) -> None:
    """z is exact for any top_k.

    P(z = x0) is the operator, and the other tokens are equally likely.
    """
    token, k = size // 3, min(2, size - 1)
    for root in (0.5, 2.0, 4.0):
        z, _ = sparse(token, root, size, 1e-3, k, seed=int(10 * root))
        keep = duality_keep(root, size)
        kept = z == token
        assert (
            abs(float(kept.double().mean()) - keep) < 5 * math.sqrt(keep * (1 - keep) / N) + 1e-12
        )
        others = z[~kept] - (z[~kept] > token).long()  # 0 .. size - 2
        bins = min(size - 1, 40)
        edges = [(size - 1) * i // bins for i in range(bins + 1)]
        seen = torch.histc(others.double(), bins=size - 1, min=-0.5, max=size - 1.5)
        counts = [float(seen[a:b].sum()) for a, b in pairwise(edges)]
        due = [len(others) * (b - a) / (size - 1) for a, b in pairwise(edges)]
        assert sum(counts) == len(others)
        if bins > 1 and min(due) > 5:
            assert stats.chisquare(counts, due).pvalue > 1e-4


@given(
    st.integers(0, 10**6),
    st.integers(2, 12),
    st.floats(0, 6),
    st.sampled_from([1.0, 0.05, 1e-3]),
    st.data(),
)
def test_soft_tokens_are_sorted_distinct_and_normalised(
    seed: int, size: int, root: float, temperature: float, data: st.DataObject
) -> None:
    """x0 first, then distinct tokens in decreasing order.

    The weights sum to 1, and z has the largest.
    """
    k = data.draw(st.integers(1, size - 1))
    x0 = torch.randint(size, (3, 5), generator=seeded(seed))
    z, soft = sparse_input(x0, doubles(root, root, 0.1), size, temperature, k, seeded(seed))
    assert soft.tokens.dtype == torch.int64 and soft.weights.dtype == torch.float32
    assert soft.tokens.shape == soft.weights.shape == (3, 5, k + 1) and soft.shape == (
        3,
        5,
    ) == tuple(z.shape)
    assert torch.equal(soft.tokens[..., 0], x0)
    assert all(len({*row}) == k + 1 for row in soft.tokens.flatten(0, 1).tolist())
    assert 0 <= int(soft.tokens.min()) and int(soft.tokens.max()) < size
    assert_close(soft.weights.sum(-1), torch.ones(3, 5))
    assert bool((soft.weights[..., 1:].diff() <= 0).all())
    heaviest = soft.weights.max(-1).values
    of_z = torch.where(soft.tokens == z[..., None], soft.weights, 0).sum(-1)
    assert torch.equal(of_z, heaviest)


def test_at_temperature_zero_the_input_is_the_token() -> None:
    z, soft = sparse(3, 1.5, 50, 1e-12, 4, n=2000)
    assert {*soft.weights.unique().tolist()} == {0.0, 1.0}
    assert torch.equal((soft.tokens * soft.weights.long()).sum(-1)[0], z)
    z, logits = dense(3, 1.5, 50, 1e-12, n=2000)
    assert torch.equal(torch.softmax(logits, -1).argmax(-1), z)


def test_each_sequence_has_its_own_level_and_each_token_its_own_noise() -> None:
    n, roots = 20_000, (0.0, 2.0, 9.0)
    x0 = torch.arange(3).repeat_interleave(n).view(3, n)
    z, soft = sparse_input(x0, doubles(*roots), K, 0.3, K - 1, seeded(2))
    for row, root in enumerate(roots):
        keep = duality_keep(root, K)
        assert float((z[row] == row).double().mean()) == pytest.approx(
            keep, abs=5 * math.sqrt(keep * (1 - keep) / n)
        )
    own = soft.weights[1, :, 0].double()
    neighbours = torch.corrcoef(torch.stack([own[1:], own[:-1]]))[0, 1]
    across = torch.corrcoef(torch.stack([soft.weights[0, :, 0].double(), own]))[0, 1]
    assert max(abs(float(neighbours)), abs(float(across))) < 5 / math.sqrt(n)


def test_dense_input_is_its_definition() -> None:
    """w = alpha~ onehot(x0) + sigma~ eps, token by token (Eq. 2)."""
    x0 = torch.randint(K, (2, 3), generator=seeded())
    eps = torch.randn(2, 3, K, generator=seeded(1), dtype=torch.float64)
    roots = (0.4, 3.0)
    z, logits = dense_input(x0, eps, doubles(*roots), 0.2)
    for b, root in enumerate(roots):
        sigma = 1 / math.sqrt(1 + root**2)
        for i in range(3):
            w = [sigma * (root * (v == int(x0[b, i])) + float(eps[b, i, v])) for v in range(K)]
            assert logits[b, i].tolist() == pytest.approx([value / 0.2 for value in w])
            assert int(z[b, i]) == max(range(K), key=w.__getitem__)


# --- its parts


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_greatest_of_seven_normals(k: int) -> None:
    """Each rank, and each gap between ranks, against sorting."""
    ours = largest_normals(20_000, k, 7, seeded())
    plain = (
        torch.randn(20_000, 7, generator=seeded(1), dtype=torch.float64)
        .sort(dim=1, descending=True)
        .values[:, :k]
    )
    assert (
        ours.shape == (20_000, k)
        and ours.dtype == torch.float64
        and bool((ours.diff(dim=1) < 0).all())
    )
    for one, two in zip(ours.T, plain.T, strict=True):
        assert stats.ks_2samp(one, two).pvalue > 1e-4
    for one, two in zip(-ours.diff(dim=1).T, -plain.diff(dim=1).T, strict=True):
        assert stats.ks_2samp(one, two).pvalue > 1e-4
    assert far(moments(ours), moments(plain)) < 5


@pytest.mark.parametrize("size", [50_256, 10**7])
def test_the_greatest_of_very_many_normals(size: int) -> None:
    """The j-th greatest of n uniform numbers is Beta(n + 1 - j, j), tested in the upper tail."""
    ours = largest_normals(20_000, 4, size, seeded())
    for j, rank in enumerate(ours.T, start=1):
        tail = torch.special.ndtr(-rank).numpy()
        assert stats.kstest(stats.beta.cdf(tail, j, size + 1 - j), "uniform").pvalue > 1e-4
    highest = torch.exp(size * torch.special.log_ndtr(ours[:, 0]))  # Phi^size
    assert stats.kstest(highest.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("size", [1, 2, 50_256])
def test_extreme_uniform_numbers_give_finite_normals(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A uniform number of exactly 0, and the one next to 1."""
    for value in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(
            torch,
            "rand",
            lambda *shape, value=value, **_: torch.full(shape, value, dtype=torch.float64),
        )
        assert bool(torch.isfinite(largest_normals(3, 1, size)).all())


@pytest.mark.parametrize(("size", "k"), [(5, 3), (4, 4), (6, 1), (5, 4)])
def test_all_ordered_choices_are_equally_likely(size: int, k: int) -> None:
    choices = list(permutations(range(size), k))
    drawn = Counter(map(tuple, distinct(400 * len(choices), k, size, seeded(size + k)).tolist()))
    assert {*drawn} <= {*choices}
    assert stats.chisquare([drawn[choice] for choice in choices]).pvalue > 1e-4


def test_tokens_of_a_large_vocabulary_are_distinct_and_not_x0() -> None:
    x0 = torch.tensor([[0, 50_256, 17]]).repeat(1, 500)
    _, soft = sparse_input(x0, doubles(2.0), 50_257, 1e-3, 30, seeded())
    assert all(len({*row}) == 31 for row in soft.tokens[0].tolist())
    rivals = soft.tokens[0, :, 1:].double()
    assert int(rivals.min()) >= 0 and int(rivals.max()) <= 50_256
    assert float(rivals.mean()) == pytest.approx(
        25_128, abs=5 * 50_257 / math.sqrt(12 * rivals.numel())
    )


def test_all_randomness_comes_from_the_generator() -> None:
    before = torch.get_rng_state()
    (z, one), (_, same), (_, other) = (
        sparse(1, 1.0, K, 0.1, 3, n=50, seed=seed) for seed in (4, 4, 5)
    )
    assert torch.equal(one.weights, same.weights) and torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.weights, other.weights) and z.dtype == torch.int64
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_input() -> None:
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(
            ValueError, match=f"temperature .*got {temperature}, want temperature > 0"
        ):
            sparse(0, 1.0, K, temperature, 2, n=3)
    for k in (0, -1, K):
        with pytest.raises(
            ValueError,
            match=f"top_k .*got {k}, want 1 <= top_k < 6",
        ):
            sparse(0, 1.0, K, 0.1, k, n=3)
