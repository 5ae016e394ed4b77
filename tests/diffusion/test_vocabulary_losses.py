"""Losses over the vocabulary: the values and gradients of the plain formulae, in bounded memory."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from reference import loss_cross_entropy, loss_kl, loss_table
from unmask import prediction as prediction_module
from unmask.diffusion import row_losses
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.vocabulary_losses import (
    cross_entropy,
    forward_kl,
    reverse_kl,
    squared_error,
    total_variation,
)
from unmask.models.layers import Linear
from unmask.prediction import Prediction

B, L, D, V, MASK = 3, 7, 5, 11, 4  # MASK in the middle: nothing depends on its being last
TAU = 0.6
HEADS = pytest.mark.parametrize("head", ["linear", "direct", "table"])
CHUNKS = pytest.mark.parametrize(
    "chunk", [2**24, 4 * V + 3, 1], ids=["one chunk", "4 rows", "1 row"]
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def scene(
    head: str, dtype: torch.dtype, seed: int = 0
) -> tuple[Prediction, Prediction, Tensor, Tensor]:
    """(student, teacher, x0, where). A third of the tokens is visible to the student."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 1.5 * torch.randn(*shape, generator=generator, dtype=dtype)

    x0 = torch.randint(V - 1, (B, L), generator=generator)
    x0 = x0 + (x0 >= MASK)
    shown = torch.where(torch.rand(B, L, generator=generator) < 0.33, x0, MASK)
    where = torch.rand(B, L, generator=generator) < 0.7
    if head == "table":
        student = Prediction(normal(B, L, V).requires_grad_(), nn.Identity(), V, MASK, shown)
    else:
        # The second one has its own backward pass.
        linear = (nn.Linear if head == "linear" else Linear)(D, V, dtype=dtype)
        linear.weight.data, linear.bias.data = normal(V, D), normal(V)
        student = Prediction(normal(B, L, D).requires_grad_(), linear, V, MASK, shown)
    teacher = Prediction(normal(B, L, V).requires_grad_(), nn.Identity(), V, MASK, None)
    return student, teacher, x0, where


@dataclass(frozen=True)
class Given:
    """A head whose weights are arguments: (weight, bias), or () for a table."""

    weights: tuple[Tensor, ...]

    def __call__(self, rows: Tensor, /) -> Tensor:
        return nn.functional.linear(rows, *self.weights) if self.weights else rows

    def parameters(self) -> tuple[Tensor, ...]:
        return self.weights


def table(prediction: Prediction, tau: float = 1.0) -> Tensor:
    """The plain log p [B, L, V], differentiable."""
    return loss_table(prediction.head(prediction.hidden), prediction.mask_id, prediction.z, tau)


def leaves(prediction: Prediction) -> list[Tensor]:
    return [prediction.hidden, *prediction.head.parameters()]


Loss = Callable[[Prediction, Prediction, Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, Loss]] = {  # name -> (fast, plain); plain gives [B, L]
    "cross_entropy": (
        lambda student, teacher, x0, where: cross_entropy(student, x0, where),
        lambda student, teacher, x0, where: loss_cross_entropy(table(student), x0),
    ),
    "forward_kl": (
        lambda student, teacher, x0, where: forward_kl(student, teacher, where, TAU),
        lambda student, teacher, x0, where: loss_kl(table(teacher, TAU).detach(), table(student)),
    ),
    "reverse_kl": (
        lambda student, teacher, x0, where: reverse_kl(student, teacher, where, TAU),
        lambda student, teacher, x0, where: loss_kl(table(student), table(teacher, TAU).detach()),
    ),
    "total_variation": (
        lambda student, teacher, x0, where: total_variation(student, teacher, where, TAU),
        lambda student, teacher, x0, where: (
            (table(student).exp() - table(teacher, TAU).detach().exp()).abs().sum(-1) / 2
        ),
    ),
    "squared_error": (
        lambda student, teacher, x0, where: squared_error(student, teacher, where, TAU),
        lambda student, teacher, x0, where: (
            (table(student).exp() - table(teacher, TAU).detach().exp()) ** 2
        ).sum(-1),
    ),
}
DISTANCES = [forward_kl, reverse_kl, total_variation, squared_error]
EACH = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture
def set_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def change(elements: int) -> None:
        monkeypatch.setattr(prediction_module, "CPU_CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(prediction_module, "CPU_BLOCK_ELEMENTS", 3 * V)

    return change


@EACH
@HEADS
@CHUNKS
@DTYPES
def test_values_and_gradients_are_the_plain_ones(
    name: str, head: str, chunk: int, dtype: torch.dtype, set_chunk: Callable[[int], None]
) -> None:
    """Each row is multiplied by its own factor, so a gradient in a wrong row shows."""
    set_chunk(chunk)
    student, teacher, x0, where = scene(head, dtype)
    fast, plain = LOSSES[name]
    factor = torch.randn(int(where.sum()), generator=torch.Generator().manual_seed(9), dtype=dtype)
    got, want = fast(student, teacher, x0, where), plain(student, teacher, x0, where)[where]
    close = (
        {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    )
    assert got.dtype == dtype and got.shape == (int(where.sum()),)
    assert_close(got, want, **close)
    gradients = torch.autograd.grad((got * factor).sum(), leaves(student))
    expected = torch.autograd.grad((want * factor).sum(), leaves(student))
    for mine, theirs in zip(gradients, expected, strict=True):
        assert_close(mine, theirs, **close)


@EACH
@HEADS
def test_gradcheck(name: str, head: str, set_chunk: Callable[[int], None]) -> None:
    set_chunk(3 * V)
    student, teacher, x0, where = scene(head, torch.float64, seed=1)
    rows = torch.zeros_like(where)
    rows[0], rows[2, 1] = where[0], True
    fast, _ = LOSSES[name]

    def loss(hidden: Tensor, *parameters: Tensor) -> Tensor:
        return fast(replace(student, hidden=hidden, head=Given(parameters)), teacher, x0, rows)

    assert torch.autograd.gradcheck(
        loss, [leaf.detach().requires_grad_() for leaf in leaves(student)]
    )


@EACH
@HEADS
def test_visible_rows_and_the_mask_column_have_no_gradient(name: str, head: str) -> None:
    student, teacher, x0, _ = scene(head, torch.float64)
    everywhere = torch.ones(B, L, dtype=torch.bool)
    LOSSES[name][0](student, teacher, x0, everywhere).sum().backward()
    shown = student.z != MASK
    assert shown.any() and not student.hidden.grad[shown].any()
    assert bool(student.hidden.grad[~shown].any(-1).all()), "while every other row does"
    if head == "table":
        assert not student.hidden.grad[..., MASK].any()
    else:
        assert not student.head.weight.grad[MASK].any() and not student.head.bias.grad[MASK].any()
        assert bool(student.head.weight.grad.any(-1).sum() == V - 1)


@EACH
@HEADS
def test_no_rows(name: str, head: str) -> None:
    """A batch without a MASK takes part in the backward pass: all gradients are zero."""
    student, teacher, x0, where = scene(head, torch.float32)
    values = LOSSES[name][0](student, teacher, x0, torch.zeros_like(where))
    assert values.shape == (0,) and values.dtype == torch.float32
    gradients = torch.autograd.grad(values.sum(), leaves(student))
    assert all(not gradient.any() for gradient in gradients)


def test_no_rows_give_the_right_dtype() -> None:
    """bfloat16 hidden states give float32 losses, for no rows too."""
    student = Prediction(torch.zeros(1, 2, V, dtype=torch.bfloat16), nn.Identity(), V)
    some = torch.tensor([[True, False]])
    for where in (some, some & ~some):
        assert (
            cross_entropy(student, torch.zeros(1, 2, dtype=torch.int64), where).dtype
            == torch.float32
        )


@EACH
def test_only_trainable_tensors_get_a_gradient(name: str) -> None:
    """A frozen head or a frozen backbone; the teacher is always frozen."""
    student, teacher, x0, where = scene("linear", torch.float32)
    fast, _ = LOSSES[name]
    student.head.weight.requires_grad_(False)
    fast(student, teacher, x0, where).sum().backward()
    assert (
        student.head.weight.grad is None
        and student.head.bias.grad is not None
        and student.hidden.grad is not None
    )
    assert teacher.hidden.grad is None
    frozen = replace(student, hidden=student.hidden.detach())
    student.head.bias.grad = None
    fast(frozen, teacher, x0, where).sum().backward()
    assert student.head.bias.grad is not None
    student.head.bias.requires_grad_(False)
    assert not fast(frozen, teacher, x0, where).requires_grad


@pytest.mark.parametrize("divergence", DISTANCES)
def test_the_temperature_is_the_teachers(divergence: Callable[..., Tensor]) -> None:
    student, teacher, _, where = scene("linear", torch.float64)
    sharpened = Prediction(teacher.log_p(temperature=TAU).detach(), nn.Identity(), V, MASK)
    assert_close(divergence(student, teacher, where, TAU), divergence(student, sharpened, where))
    assert not torch.allclose(
        divergence(student, teacher, where, TAU), divergence(student, teacher, where)
    )


@given(st.integers(0, 10**6))
def test_divergences_are_zero_between_equals_only(seed: int) -> None:
    student, teacher, _, where = scene("table", torch.float64, seed)
    free = where & (student.z == MASK)
    for divergence in DISTANCES:
        assert bool((divergence(student, teacher, free) > 0).all())
        same = divergence(student, student, free)
        assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)
        (gradient,) = torch.autograd.grad(same.sum(), student.hidden)
        assert float(gradient.abs().max()) < 1e-12 if len(same) else True
    assert_close(forward_kl(teacher, student, free), reverse_kl(student, teacher, free))
    for symmetric in (total_variation, squared_error):
        assert_close(symmetric(teacher, student, free), symmetric(student, teacher, free))


@given(st.integers(0, 10**6))
def test_how_the_distances_bound_each_other(seed: int) -> None:
    """Pinsker: TV^2 <= KL / 2. Also TV <= 1, and the squared distance is at most 2 TV^2."""
    student, teacher, _, where = scene("table", torch.float64, seed)
    free = where & (student.z == MASK)
    far, square = total_variation(student, teacher, free), squared_error(student, teacher, free)
    for kl in (forward_kl, reverse_kl):
        assert bool((far**2 <= kl(student, teacher, free) / 2 + 1e-12).all())
    assert bool((far <= 1 + 1e-12).all()) and bool((square <= 2 * far**2 + 1e-12).all())


def test_divergences_of_disjoint_laws() -> None:
    """Point masses on two tokens: total variation 1, squared distance 2. The KLs are huge."""
    points = torch.full((1, 2, V), -1e6, dtype=torch.float64)
    points[0, 0, 1] = points[0, 1, 2] = 0.0
    one, two = Prediction.from_log_p(points), Prediction.from_log_p(points.flip(1))
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    assert total_variation(one, two, everywhere).tolist() == [1, 1]
    assert squared_error(one, two, everywhere).tolist() == [2, 2]
    assert float(forward_kl(one, two, everywhere).min()) > 1e5


@pytest.mark.parametrize("divergence", DISTANCES)
def test_different_vocabularies_are_refused(divergence: Callable[..., Tensor]) -> None:
    """Also for no rows: the vocabularies differ."""
    one, two = (Prediction.from_log_p(torch.zeros(1, 2, size)) for size in (5, 6))
    for where in (torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"teacher .*got 6 and 5 tokens"):
            divergence(one, two, where)


def test_reverse_kl_to_a_point_mass_is_a_million_and_finite() -> None:
    """Reverse KL is about 1e6 (1 - p) at a token visible to the teacher (the paper's 'KL-Bwd')."""
    student, teacher, x0, _ = scene("linear", torch.float32)
    everywhere = torch.ones(B, L, dtype=torch.bool)
    student, seeing = replace(student, z=None), replace(teacher, z=x0)
    values = reverse_kl(student, seeing, everywhere)
    p = student.log_p().detach().exp().gather(-1, x0[..., None]).flatten()
    assert_close(values, 1e6 * (1 - p), rtol=1e-4, atol=3)
    (gradient,) = torch.autograd.grad(values.sum(), student.hidden)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 1e3
    forward = forward_kl(student, seeing, everywhere)
    assert_close(forward, cross_entropy(student, x0, everywhere), rtol=1e-5, atol=1e-5)


def test_scatter_rows() -> None:
    where = torch.tensor([[True, False, True], [False, False, True]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    placed = scatter_rows(values, where)
    assert placed.tolist() == [[1, 0, 2], [0, 0, 3]]
    (placed * torch.arange(6.0).view(2, 3)).sum().backward()
    assert values.grad.tolist() == [0, 2, 5]


def test_weights_may_not_change_before_the_backward_pass() -> None:
    """The gradient belongs to the weights of the forward pass.

    For unequal factors the head runs again.
    """
    student, teacher, _, where = scene("linear", torch.float32)
    values = reverse_kl(student, teacher, where)
    with torch.no_grad():
        student.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


@EACH
@HEADS
def test_the_head_runs_once_for_a_common_factor(
    name: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A common factor scales the gradient. Unequal factors give a sum of such gradients."""
    student, teacher, x0, where = scene(head, torch.float64)
    calls: list[int] = []
    forward = type(student.head).__call__

    def count(self: object, rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return forward(self, rows)

    def gradients(weigh: Callable[[Tensor], Tensor]) -> list[Tensor]:
        values = LOSSES[name][0](student, teacher, x0, where)
        with monkeypatch.context() as patch:
            patch.setattr(type(student.head), "__call__", count)
            calls.clear()
            return list(torch.autograd.grad(weigh(values), leaves(student)))

    one, three = gradients(torch.sum), gradients(lambda values: 3 * values.sum())
    assert not calls, "the backward pass has no head to run"
    for a, b in zip(one, three, strict=True):
        assert_close(b, 3 * a)
    weight = torch.rand(int(where.sum()), dtype=torch.float64)
    unequal, rest = (
        gradients(lambda values: (weight * values).sum()),
        gradients(lambda v: ((1 - weight) * v).sum()),
    )
    assert calls
    for a, b, c in zip(one, unequal, rest, strict=True):
        assert_close(a, b + c)


@EACH
@HEADS
@DTYPES
def test_values_without_a_graph_are_the_same(name: str, head: str, dtype: torch.dtype) -> None:
    student, teacher, x0, where = scene(head, dtype)
    with_graph = LOSSES[name][0](student, teacher, x0, where)
    with torch.no_grad():
        assert torch.equal(LOSSES[name][0](student, teacher, x0, where), with_graph)


@HEADS
def test_no_gradient_is_computed_without_a_graph(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, x0, where = scene(head, torch.float32)
    with_graph = cross_entropy(student, x0, where).detach()
    monkeypatch.setattr(row_losses, "_values_and_gradients", None)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(cross_entropy(student, x0, where), with_graph)
            assert_close(
                MaskedProcess(V, MASK).nelbo(student, x0, x0, double(0.5, B), double(-1.0, B)),
                torch.zeros(B, L),
            )
    with pytest.raises(TypeError):
        reverse_kl(student, teacher, where)


def double(value: float, n: int) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def test_weights_of_the_masked_bound_need_no_second_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each sequence has its own weight, which is known before the head runs."""
    student, _, x0, _ = scene("direct", torch.float64)
    z = torch.where(student.z == MASK, MASK, x0)
    alpha = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    values = MaskedProcess(V, MASK).nelbo(student, x0, z, alpha, -torch.ones_like(alpha))
    want = torch.where(
        z == MASK, loss_cross_entropy(table(student), x0) / (1 - alpha)[:, None], 0.0
    )
    assert_close(values, want)
    slopes = torch.autograd.grad(want.sum(), leaves(student))
    monkeypatch.setattr(row_losses, "_values_and_gradients", None)
    for a, b in zip(torch.autograd.grad(values.sum(), leaves(student)), slopes, strict=True):
        assert_close(a, b)


def test_a_second_backward_pass_gets_its_own_gradient() -> None:
    student, _, x0, where = scene("direct", torch.float64)
    loss = cross_entropy(student, x0, where).sum()
    first = torch.autograd.grad(loss, leaves(student), retain_graph=True)
    kept = [each.clone() for each in first]
    for each in first:
        each.zero_()
    for a, b in zip(torch.autograd.grad(loss, leaves(student)), kept, strict=True):
        assert_close(a, b)


class Memory(TorchDispatchMode):
    """The peak bytes of tensors made under it, and the bytes of the largest one."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[weakref.ref, int]] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = (weakref.ref(tensor), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self.alive = {place: held for place, held in self.alive.items() if held[0]() is not None}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def test_the_memory_meter_sees_a_plain_loss() -> None:
    with Memory() as memory:
        plain = torch.log_softmax(torch.randn(1000, 100, requires_grad=True), dim=-1).exp()
    assert plain.requires_grad and memory.peak >= 3 * 400_000 and memory.largest == 400_000


@pytest.mark.parametrize("name", [*LOSSES, "uniform nelbo"])
def test_memory_does_not_grow_with_rows_times_vocabulary(
    name: str, set_chunk: Callable[[int], None]
) -> None:
    """Forward and backward over 32 and 256 rows at V = 2000, chunks of 16 rows."""
    size, width = 2000, 4
    set_chunk(16 * size)

    def peak(rows: int) -> Memory:
        generator = torch.Generator().manual_seed(0)
        linear = nn.Linear(width, size)
        hidden = torch.randn(1, rows, width, generator=generator, requires_grad=True)
        student = Prediction(hidden, linear, size)
        teacher = Prediction(
            torch.randn(1, rows, width, generator=generator), nn.Linear(width, size), size
        )
        x0 = torch.randint(size, (1, rows), generator=generator)
        everywhere = torch.ones(1, rows, dtype=torch.bool)
        level = torch.full((1,), 0.5, dtype=torch.float64)
        with Memory() as memory:
            if name == "uniform nelbo":
                loss = UniformProcess(size).nelbo(student, x0, x0.roll(1), level, -level)
            else:
                loss = LOSSES[name][0](student, teacher, x0, everywhere)
            loss.sum().backward()
        assert hidden.grad is not None and linear.weight.grad is not None
        return memory

    few, many = peak(32), peak(256)
    assert many.largest <= 16 * size * 8, "one chunk, in float64 at most"
    assert many.peak - few.peak < 0.05 * (256 - 32) * size * 4, (few.peak, many.peak)
