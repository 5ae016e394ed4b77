"""Network calls without needless work; cached windows: exactness, cost and refusals."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from reference import in_float64, network_random
from toy_sampling import masked, run_frames, uniform
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import Shape
from unmask.models.kv_cache import Cache
from unmask.samplers.cached_forward import window_of
from unmask.samplers.sample import sample
from unmask.samplers.steps import LogProbs, Query, SamplingProblem

V, L = 9, 14
MASK = V - 1
SAMPLERS = [
    "reveal",
    "blockwise:4",
    "greedy_tail",
    "ancestral",
    "psi:1",
    "confidence",
    "entropy_bounded:2",
]


def model(
    blocks: int = 2, sees_alpha: bool = False, dtype: torch.dtype | None = None
) -> SimpleNamespace:
    """A masked model with a network in float64, or with products in `dtype`.

    Products of other shapes are compared: float32 would round them differently.
    """
    network = network_random(Shape(V, L, width=16, blocks=blocks, heads=2, cond_dim=4))
    if dtype is None:
        in_float64(network)
    else:
        network.compute_dtype = dtype
    denoiser = NetworkDenoiser(network, MASK, sees_alpha)
    return SimpleNamespace(
        denoiser=denoiser, process=MaskedProcess(V, MASK), schedule=LogLinear(), tokenizer=None
    )


def pins() -> Tensor:
    """Prompts of different lengths, and one infilling. All tokens of the last sample are given."""
    pinned = torch.full((6, L), -1)
    for row, given in enumerate((0, 3, 7, 1)):
        pinned[row, :given] = row
    pinned[4, ::3] = 1
    pinned[5] = 2
    return pinned


def draw(model: SimpleNamespace, **how: object) -> SimpleNamespace:
    return sample(model, **({"n": 6, "length": L, "steps": 8, "seed": 3, "pinned": pins()} | how))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_period_of_one_equals_no_cache(sampler: str) -> None:
    exact, one = (draw(model(), sampler=sampler, cache=cache) for cache in (None, 1))
    assert (
        torch.equal(exact.tokens, one.tokens)
        and torch.equal(exact.nfe, one.nfe)
        and exact.calls == one.calls
    )


@pytest.mark.processor
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cache", [2, 3, 100])
def test_a_cache_is_exact_for_a_network_of_one_block(sampler: str, cache: int) -> None:
    """Keys and values of the first block depend on the tokens only."""
    assert torch.equal(
        draw(model(1), sampler=sampler).tokens, draw(model(1), sampler=sampler, cache=cache).tokens
    )


def test_a_cache_changes_the_texts_of_a_deeper_network() -> None:
    """This shows that the tests above can fail."""
    exact, cached = (
        draw(model(4), steps=L, sampler="blockwise:4", cache=cache).tokens for cache in (1, 100)
    )
    assert not torch.equal(exact, cached)


@pytest.mark.processor
def test_a_window_of_the_whole_text_is_exact() -> None:
    """Without given tokens and with one period, every window is a full forward pass."""
    exact, once = (draw(model(), pinned=None, cache=cache) for cache in (None, 100))
    assert torch.equal(exact.tokens, once.tokens)


@pytest.mark.processor
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("sees_alpha", [False, True])
def test_batches_make_no_difference(sampler: str, sees_alpha: bool) -> None:
    """The window of a sample does not depend on the other samples of its batch."""
    network = model(sees_alpha=sees_alpha)
    whole = draw(network, sampler=sampler, cache=3)
    for batch_size in (1, 4):
        parts = draw(network, sampler=sampler, cache=3, batch_size=batch_size)
        assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.nfe, parts.nfe)
    tail = draw(network, sampler=sampler, cache=3, n=4, first=2, pinned=pins()[2:])
    assert torch.equal(tail.tokens, whole.tokens[2:]) and torch.equal(tail.nfe, whole.nfe[2:])
    assert whole.nfe[5] == 0


def test_given_tokens_stay_and_all_are_drawn_in_any_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        drawn = draw(model(dtype=dtype), cache=4).tokens
        assert torch.equal(drawn[pins() >= 0], pins()[pins() >= 0]) and bool((drawn < MASK).all())


def test_a_window_is_the_smallest_span_of_each_sample() -> None:
    def step(*positions: tuple[int, int]) -> SimpleNamespace:
        mask = torch.zeros(4, L, dtype=torch.bool)
        for row, column in positions:
            mask[row, column] = True
        return SimpleNamespace(query=lambda z: Query.of(mask))

    z = torch.zeros(4, L, dtype=torch.int64)
    window = window_of([step((0, 9), (3, 2)), step(), step((0, 7), (3, 3))], z)
    assert window.rows.tolist() == [0, 3] and window.columns.tolist() == [[7, 8, 9], [2, 3, 3]]
    assert window_of([step()], z).columns.shape == (0, 0)


def test_every_call_is_counted_and_a_full_pass_has_all_samples_of_its_period() -> None:
    """nfe of a sample counts the full passes of the periods that query it, and its windows."""
    exact, cached = (
        list(run_frames(model(), 6, L, 12, 3, pinned=pins(), cache=cache)) for cache in (None, 4)
    )
    for k, (plain, other) in enumerate(zip(exact[1:], cached[1:], strict=True)):
        period = [
            row for frame in exact[1 + k - k % 4 : 1 + k - k % 4 + 4] for row in frame.rows.tolist()
        ]
        assert other.rows.tolist() == (sorted({*period}) if k % 4 == 0 else plain.rows.tolist())


class Picking:
    """A denoiser that records the number of samples of a call, and their columns."""

    vocab_size, sees_alpha = V, False

    def __init__(self) -> None:
        self.denoiser, self.calls = model().denoiser.frozen(), []

    def __call__(self, z: Tensor, alpha: Tensor) -> object:
        self.calls.append((len(z), None))
        return self.denoiser(z, alpha)

    def forward_window(
        self, z: Tensor, alpha: Tensor, queries: Tensor, cache: object, window: object
    ) -> object:
        self.calls.append((len(z), [sorted({*row}) for row in queries.tolist()]))
        return self.denoiser.forward_window(z, alpha, queries, cache, window)


@pytest.mark.processor
@pytest.mark.parametrize("sampler", ["reveal", "blockwise:4"])
def test_a_planned_call_computes_the_needed_columns(sampler: str) -> None:
    """The samples start from different texts. A call computes the columns that change in it."""
    whole, part = model(), model()
    whole.denoiser, part.denoiser = Foreign(), Picking()
    frames = list(run_frames(part, 6, L, 8, 3, pinned=pins(), sampler=sampler))
    assert torch.equal(frames[-1].z, draw(whole, sampler=sampler).tokens)
    changed = [
        [row.nonzero().squeeze(-1).tolist() for row in frame.changed if row.any()]
        for frame in frames
    ]
    assert part.denoiser.calls == [(len(places), places) for places in changed if places]


@pytest.mark.processor
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_samples_are_one_row_for_the_network(sampler: str) -> None:
    """Also with one prompt for all samples. The texts equal those of samples drawn one by one."""
    picking = model()
    picking.denoiser = Picking()
    how = {"sampler": sampler, "pinned": None, "prompt": torch.tensor([1, 2])}
    together = draw(picking, **how)
    assert picking.denoiser.calls[0] == (1, None) and together.nfe[0] >= 1
    assert torch.equal(together.tokens, draw(model(), batch_size=1, **how).tokens)


def test_samples_of_different_prompts_are_different_rows() -> None:
    picking = model()
    picking.denoiser = Picking()
    draw(picking, sampler="confidence")
    assert picking.denoiser.calls[0] == (5, None), "one of six is given whole"


@pytest.mark.parametrize(("levels", "rows"), [([0.5, 0.5], 1), ([0.2, 0.5], 2)])
def test_samples_of_different_alphas_are_different_rows(levels: list[float], rows: int) -> None:
    picking = model()
    picking.denoiser = Picking()

    def sampler(problem: SamplingProblem) -> list[Moving]:
        first = Query.at(
            torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor(levels, dtype=torch.float64)
        )
        nothing = torch.zeros(2, L, dtype=torch.bool)
        return [Moving(lambda z: first), Moving(lambda z: Query.of(nothing))]

    draw(picking, n=2, steps=2, pinned=None, sampler=sampler)
    assert picking.denoiser.calls == [(rows, None)]


class Moving:
    """A step with a given query, which puts token 0 at all MASKs."""

    def __init__(self, query: Callable[[Tensor], Query]) -> None:
        self.query = query

    def __call__(self, z: Tensor, log_probs: LogProbs) -> Tensor:
        for _ in log_probs:
            pass
        return z.masked_fill(z == MASK, 0)


class Foreign:
    """A denoiser of another library."""

    vocab_size, sees_alpha = V, False

    def __init__(self) -> None:
        self.denoiser = model().denoiser

    def __call__(self, z: Tensor, alpha: Tensor) -> object:
        return self.denoiser(z, alpha)


class Keeping(Foreign):
    """A denoiser with a cache that records the size of each window, None for a full pass."""

    def __init__(self) -> None:
        self.denoiser, self.windows = model().denoiser.frozen(), []

    def forward_window(
        self,
        z: Tensor,
        alpha: Tensor,
        queries: Tensor | None,
        cache: Cache | None,
        window: Tensor | None,
    ) -> object:
        if cache is not None:
            self.windows.append(None if window is None else window.shape[1])
        return self.denoiser.forward_window(z, alpha, queries, cache, window)


def test_a_foreign_denoiser_has_a_cache_or_is_refused() -> None:
    ours, theirs = model(), model()
    theirs.denoiser = Keeping()
    how = {"sampler": "blockwise:4", "pinned": None, "steps": 12, "cache": 3}
    assert torch.equal(draw(ours, **how).tokens, draw(theirs, **how).tokens)
    assert (
        theirs.denoiser.windows.count(None) == 4
        and max(size or 0 for size in theirs.denoiser.windows) <= 8
    )
    theirs.denoiser = Foreign()
    draw(theirs)
    with pytest.raises(
        ValueError, match=r"cache .* denoiser: got Foreign.*, want .* forward_window"
    ):
        draw(theirs, cache=2)


@pytest.mark.parametrize("sampler", ["psi:0.5", "remdm_cap:0.1", "remdm_loop:0.1"])
def test_samplers_that_write_noise_are_refused(sampler: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"cache .* got 2, want None or 1.*use a sampler",
    ):
        draw(model(), sampler=sampler, grid="loop", cache=2)


def test_uniform_noise_is_refused() -> None:
    other = uniform(3, 4)
    other.denoiser = NetworkDenoiser(
        network_random(Shape(3, 4, width=8, blocks=1, heads=2)), None, sees_alpha=True
    )
    with pytest.raises(ValueError, match=r"cache .*uniform noise.* any token can change"):
        sample(other, n=1, length=4, cache=2)


@pytest.mark.parametrize("wrong", [0, -2, 1.5, True, "2"])
def test_wrong_periods(wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"cache is .*got {wrong!r}, want a whole number 1 .. "):
        sample(masked(4, 3), n=1, length=3, cache=wrong)


class Reader:
    """A step that writes the most probable token at one position. A late one queries it later."""

    def __init__(self, row: int, column: int, late: bool) -> None:
        self.row, self.column, self.late = row, column, late

    def query(self, z: Tensor) -> Query:
        mask = torch.zeros(2, L, dtype=torch.bool)
        mask[self.row, self.column] = not (self.late and bool((z == MASK).all()))
        return Query.of(mask)

    def __call__(self, z: Tensor, log_probs: LogProbs) -> Tensor:
        for at, log_p in log_probs:
            z = z.index_put(at, log_p.argmax(-1))
        return z


@pytest.mark.parametrize(
    ("row", "match"),
    [(0, "not a number"), (1, r"cache .* got samples \[1\], want a subset of \[0\]")],
)
def test_a_later_query_outside_the_window_is_an_error(row: int, match: str) -> None:
    def sampler(problem: SamplingProblem) -> list[Reader]:
        return [Reader(0, 0, False), Reader(row, 3, True)]

    with pytest.raises(ValueError, match=match):
        draw(model(), n=2, steps=2, pinned=None, sampler=sampler, cache=2)


def test_a_cache_is_refused_if_the_end_of_a_block_depends_on_the_text() -> None:
    for count in ("threshold:0.5", "bound:0.1"):
        with pytest.raises(ValueError, match=r"cache .* got 2, want None or 1.*block"):
            draw(model(), sampler=f"order=confidence,blocks=4,count={count}", cache=2)
    draw(model(), sampler=f"order=confidence,count={count}", cache=2)
