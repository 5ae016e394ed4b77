"""A prediction computes the selected rows, normalised, and never predicts MASK."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.testing import assert_close

from reference import loss_table
from unmask import prediction as prediction_module
from unmask.prediction import LOG_ZERO, Prediction

pytestmark = pytest.mark.processor

B, L, D, V, MASK = 3, 5, 4, 7, 6


@dataclass
class Head:
    """A linear map that records how many rows it got."""

    linear: nn.Linear
    rows: list[int] = field(default_factory=list)

    def __call__(self, rows: Tensor, /) -> Tensor:
        self.rows.append(len(rows))
        return self.linear(rows)

    def parameters(self) -> Iterable[Tensor]:
        return self.linear.parameters()


def draw(seed: int = 0, dtype: torch.dtype = torch.float32) -> Prediction:
    """A masked prediction with about half of the tokens visible."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, L, D, generator=generator, dtype=dtype)
    linear = nn.Linear(D, V, dtype=dtype)
    for weight in linear.parameters():
        nn.init.normal_(weight, generator=generator)
    shown = torch.randint(V - 1, (B, L), generator=generator)
    shown[torch.rand(B, L, generator=generator) < 0.5] = MASK
    return Prediction(hidden, Head(linear), V, MASK, shown)


@given(st.integers(0, 10**6), st.sampled_from([1.0, 0.5, 2.0]), st.booleans(), st.booleans())
def test_the_table_is_the_plain_formula(seed: int, tau: float, masked: bool, carried: bool) -> None:
    full = draw(seed, torch.float64)
    mask_id, shown = MASK if masked else None, full.z if carried else None
    prediction = Prediction(full.hidden, full.head, V, mask_id, shown)
    log_p, want = (
        prediction.log_p(temperature=tau),
        loss_table(full.head(full.hidden), mask_id, shown, tau),
    )
    assert_close(log_p.exp(), want.exp())
    assert_close(log_p.clamp(min=-1e3), want.clamp(min=-1e3))
    assert_close(log_p.exp().sum(-1), torch.ones(B, L, dtype=torch.float64))


def test_probability_zero_is_a_finite_log() -> None:
    """Reverse KL multiplies it by 0."""
    prediction = draw()
    log_p = prediction.log_p()
    free = prediction.z == MASK
    assert (
        bool(torch.isfinite(log_p).all())
        and bool((log_p[..., MASK] == LOG_ZERO).all())
        and LOG_ZERO == -1e6
    )
    assert bool((log_p[~free].sort(-1).values[:, :-1] == LOG_ZERO).all())
    table = torch.tensor([[[0.0, -torch.inf]]])
    assert Prediction.from_log_p(table).log_p().tolist() == [[[0.0, LOG_ZERO]]]


@given(st.integers(0, 10**6), st.integers(0, 2 ** (B * L) - 1))
def test_rows_are_those_of_the_table_in_row_major_order(seed: int, bits: int) -> None:
    prediction = draw(seed)
    where = torch.tensor([bits >> i & 1 for i in range(B * L)], dtype=torch.bool).view(B, L)
    index = where.flatten().nonzero().squeeze(-1)
    table = prediction.log_p()
    assert table.shape == (B, L, V)
    assert_close(prediction.log_p(where), table[where], atol=1e-6, rtol=1e-6)
    assert_close(prediction.log_p(index), table[where], atol=1e-6, rtol=1e-6)
    assert torch.equal(prediction.rows(where), index)
    assert torch.equal(prediction.hidden_rows(index), prediction.hidden[where])
    assert torch.equal(prediction.is_unknown(index), (prediction.z == MASK)[where])


def test_flat_rows_may_come_in_any_order_and_twice() -> None:
    prediction = draw()
    index = torch.tensor([7, 0, 7, 14])
    assert_close(
        prediction.log_p(index), prediction.log_p().flatten(0, 1)[index], atol=1e-6, rtol=1e-6
    )


def test_the_head_runs_on_the_selected_rows_only() -> None:
    prediction = draw()
    where = torch.zeros(B, L, dtype=torch.bool)
    where[0, 1] = where[2, 3] = True
    prediction.log_p(where, temperature=0.7)
    prediction.sample(where, 100)
    assert prediction.head.rows == [2, 2], "one pass, whatever the number of draws"


@pytest.mark.parametrize(
    ("dtype", "out"), [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]
)
def test_float32_out_unless_float64_came_in(dtype: torch.dtype, out: torch.dtype) -> None:
    where = torch.ones(B, L, dtype=torch.bool)
    assert draw(dtype=dtype).log_p(where).dtype == out
    assert draw(dtype=dtype).log_p(~where).shape == (0, V)
    low = Prediction.from_log_p(torch.randn(2, 3, V, dtype=dtype)).log_p()
    assert low.dtype == out
    # Normalised in `out`, not in bfloat16.
    assert_close(low.exp().sum(-1), torch.ones(2, 3, dtype=out))


@given(st.floats(0.2, 5.0))
def test_temperature_divides_log_p_and_renormalises(tau: float) -> None:
    prediction = draw(3, torch.float64)
    free = prediction.z == MASK
    scaled = torch.softmax(prediction.log_p(free)[:, :MASK] / tau, dim=-1)
    assert_close(prediction.log_p(free, temperature=tau)[:, :MASK].exp(), scaled)
    assert torch.equal(prediction.log_p(~free, temperature=tau), prediction.log_p(~free)), (
        "a point mass stays one"
    )


def test_a_table_is_wrapped_with_its_gradient_and_normalised_once_more() -> None:
    logits = torch.randn(2, 3, V, dtype=torch.float64, requires_grad=True)
    wrapped = Prediction.from_log_p(logits)
    assert wrapped.vocab_size == V and wrapped.shape == (2, 3)
    table = torch.log_softmax(logits, dim=-1)
    assert_close(wrapped.log_p(), table)
    assert_close(Prediction.from_log_p(table).log_p(), table)
    got, want = (
        torch.autograd.grad((t[..., 2] ** 2).sum(), logits)[0] for t in (wrapped.log_p(), table)
    )
    assert_close(got, want)


def test_chunks_are_the_table_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_module, "CPU_CHUNK_ELEMENTS", 4 * V + 1)
    prediction = draw()
    where = prediction.z == MASK
    parts = list(prediction.chunks(where, temperature=0.5))
    assert [len(index) for index, _ in parts] == [4] * (int(where.sum()) // 4) + [
        int(where.sum()) % 4
    ]
    assert torch.equal(torch.cat([index for index, _ in parts]), prediction.rows(where))
    assert_close(
        torch.cat([log_p for _, log_p in parts]), prediction.log_p(where, 0.5), atol=1e-6, rtol=1e-6
    )
    assert list(prediction.chunks(~where & where)) == []
    monkeypatch.setattr(prediction_module, "CPU_CHUNK_ELEMENTS", 1)
    assert len(list(prediction.chunks(where))) == int(where.sum()), "at least a row at a time"


def test_samples_follow_the_law_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_module, "CPU_CHUNK_ELEMENTS", 3 * V)
    prediction = draw(1)
    free = prediction.z == MASK
    n = 4000
    drawn = prediction.sample(free, n, torch.Generator().manual_seed(0))
    assert drawn.shape == (n, int(free.sum())) and drawn.dtype == torch.int64
    assert int(drawn.max()) < MASK
    for column, p in zip(drawn.T, prediction.log_p(free).detach().double().exp(), strict=True):
        seen = torch.bincount(column, minlength=V)[:MASK].double()
        assert chisquare(seen.numpy(), (n * p[:MASK] / p[:MASK].sum()).numpy()).pvalue > 1e-4
    one, two = (drawn[:, i].double() for i in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 4 / n**0.5, (
        "rows are independent"
    )
    ahead, behind = drawn[1:, 0].double(), drawn[:-1, 0].double()
    assert abs(float(torch.corrcoef(torch.stack([ahead, behind]))[0, 1])) < 4 / n**0.5, (
        "and so are draws"
    )


def test_samples_are_a_function_of_the_generator_and_visible_tokens_stay() -> None:
    prediction = draw()
    draws = [prediction.sample(None, 3, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    shown = (prediction.z != MASK).flatten()
    assert bool((draws[0][:, shown] == prediction.z.flatten()[shown]).all())
    assert prediction.sample(torch.zeros(B, L, dtype=torch.bool), 3).shape == (3, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_draws_are_made_in_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any precision of the network: float32 would lose the tail of a large vocabulary."""
    seen: list[torch.dtype] = []
    rand, searchsorted = torch.rand, torch.searchsorted

    def spy_rand(*shape: int, dtype: torch.dtype, **options: object) -> Tensor:
        seen.append(dtype)
        return rand(*shape, dtype=dtype, **options)

    def spy_search(table: Tensor, values: Tensor) -> Tensor:
        seen.extend([table.dtype, values.dtype])
        return searchsorted(table, values)

    prediction = draw(dtype=dtype)
    monkeypatch.setattr(torch, "rand", spy_rand)
    monkeypatch.setattr(torch, "searchsorted", spy_search)
    prediction.sample(None, 3)
    assert seen == [torch.float64] * 3


def test_wrong_use() -> None:
    prediction = draw()
    with pytest.raises(ValueError, match=r"where .*got \(5, 3\), want .*\(3, 5\)"):
        prediction.log_p(torch.ones(L, B, dtype=torch.bool))
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"temperature .*got {temperature}, want"):
            prediction.log_p(temperature=temperature)
    with pytest.raises(ValueError, match=r"log_p .*got \(3, 5\), want"):
        Prediction.from_log_p(torch.zeros(3, 5))
