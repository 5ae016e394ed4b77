"""Orders and counts combine freely: each law is that of all paths, each cost is as stated."""

import math
from collections.abc import Callable
from itertools import pairwise, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import sampler_p_value
from toy_sampling import MASK, L, V, draw, filtered, masked, run_frames, start, uniform
from unmask.diffusion.levels import spread_order
from unmask.experiments.exact import factorization_gap as exact
from unmask.experiments.exact.oracle import masked_model
from unmask.experiments.exact.synthetic_sources import random_chain
from unmask.samplers.counts import CountRule, threshold
from unmask.samplers.latent import draw_latent
from unmask.samplers.options import sampler_of
from unmask.samplers.orders import ENTROPY, MARGIN, block_starts
from unmask.samplers.sample import sample
from unmask.samplers.unmasking import Unmasking

LONG = 11


def test_no_block_begins_before_the_one_on_its_left_is_full() -> None:
    """Blocks count free tokens: of 9 around two pins, in blocks of 4, the last has one."""
    model = masked(2, LONG)
    pinned = torch.full((6, LONG), -1)
    pinned[:, [0, 5]] = 0
    blocks = torch.tensor([1, 2, 3, 4]), torch.tensor([6, 7, 8, 9]), torch.tensor([10])
    whole = 0
    for frame in run_frames(model, 6, LONG, steps=40, pinned=pinned, sampler="blockwise:4"):
        shown = frame.z != 1
        for left, right in pairwise(blocks):
            begun = shown[:, right].any(1)
            assert bool(shown[begun][:, left].all())
            whole += int(begun.sum())
    assert whole


def test_one_block_is_reveal() -> None:
    model = masked(V, L)
    for size in (L, 10 * L):
        ours, theirs = (
            sample(model, n=20, length=L, steps=3, sampler=name)
            for name in (f"blockwise:{size}", "reveal")
        )
        assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.nfe, theirs.nfe)


def test_the_share_of_visible_tokens_is_the_alpha_of_the_network() -> None:
    """On average a share alpha of the free tokens is visible at alpha, for any block size."""
    n, length = 2000, 8
    for frame in run_frames(masked(2, length), n, length, steps=5, sampler="blockwise:3"):
        shown = (frame.z != 1).double().mean()
        assert abs(float(shown) - frame.alpha) < 0.01


def test_one_token_a_call_is_the_law_of_the_source() -> None:
    """log q = log p for texts drawn one token a call, in an order that ignores the text."""
    source, length = random_chain(4, seed=1), 6
    drawn = exact.draw(
        masked_model(source), Unmasking(blocks=3), 1000, 200, length, seed=0, traced=True
    )
    alone = drawn.nfe == length
    assert alone.double().mean() > 0.9 and drawn.log_q is not None
    torch.testing.assert_close(
        drawn.log_q[alone], source.log_prob(drawn.tokens[alone]), atol=1e-9, rtol=0
    )


def test_wrong_blocks_are_refused() -> None:
    for wrong in (0, -1, 2.5, float("nan"), float("inf"), "4", True):
        with pytest.raises(
            ValueError, match=r"blocks is .*got .*, want a whole number 1 \.\. 2\^63 - 1"
        ):
            Unmasking(blocks=wrong)
    with pytest.raises(
        ValueError, match=r"want blockwise:NUMBER; blocks is .* whole number: got 1\.5"
    ):
        draw(masked(V, L), 2, sampler="blockwise:1.5")
    with pytest.raises(ValueError, match="sampler needs MaskedProcess, got UniformProcess"):
        sample(uniform(V, L), n=1, length=L, sampler="blockwise:2")


ORDER_NAMES = ["random", "spread", "confidence", "entropy", "margin"]
COUNT_NAMES = ["grid", "equal", "threshold:0.4", "bound:0.9"]
COMBINATIONS = [
    (order, blocks, count) for order in ORDER_NAMES for blocks in (None, 2) for count in COUNT_NAMES
]


def spelled(order: str, blocks: int | None, count: str) -> str:
    return f"order={order},count={count}" + ("" if blocks is None else f",blocks={blocks}")


@pytest.mark.parametrize(("order", "blocks", "count"), COMBINATIONS)
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_every_order_combines_with_every_count(
    order: str, blocks: int | None, count: str, steps: int
) -> None:
    """All tokens are drawn, pins stay, and the number of calls is the stated one."""
    model, pinned = masked(3, 6), torch.full((5, 6), -1)
    pinned[1, :4], pinned[2, ::2], pinned[3] = 1, 0, 1
    model.denoiser.one_level = False
    free = (pinned < 0).sum(1)
    sampler = spelled(order, blocks, count)
    done = sample(model, n=5, length=6, steps=steps, pinned=pinned, sampler=sampler)
    assert bool((done.tokens < 2).all()) and torch.equal(
        done.tokens[pinned >= 0], pinned[pinned >= 0]
    )
    assert done.calls == len(model.denoiser.batches)
    if count not in ("grid", "equal"):
        least = (free / (blocks or 6)).ceil()
        assert bool((done.nfe >= least).all()) and bool((done.nfe <= free).all())
    elif count == "grid" and order in ("random", "spread"):
        assert bool((done.nfe <= free.clamp(max=steps)).all())
    else:
        # Of F tokens F k / N are visible after step k, rounded, halves up.
        share = free[:, None] * torch.arange(steps + 1) / steps
        visible = (share + 0.5).floor()
        assert done.nfe.tolist() == (visible.diff(dim=1) > 0).sum(1).tolist()
        assert (visible.diff(dim=1) > 0).sum(1).tolist() == free.clamp(max=steps).tolist()


@pytest.mark.parametrize("order", ORDER_NAMES)
@pytest.mark.parametrize(
    ("count", "one_block", "two_blocks"),
    [("threshold:0", 1, 2), ("bound:inf", 1, 2), ("threshold:1", 6, 6), ("bound:0", 6, 6)],
)
def test_the_ends_of_a_count(order: str, count: str, one_block: int, two_blocks: int) -> None:
    """All MASKs of the current block at once, or one token a call."""
    for blocks, nfe in ((None, one_block), (3, two_blocks)):
        model = masked(3, 6)
        drawn = sample(model, n=3, length=6, steps=2, sampler=spelled(order, blocks, count))
        assert drawn.nfe.tolist() == [nfe] * 3


def prefix_law(
    law: Callable[[tuple[int, ...], float], np.ndarray],
    pins: tuple[int, ...],
    key: tuple[float, ...] | None,
    sampler: tuple[str, int | None, str],
    steps: int,
) -> dict[tuple[int, ...], float]:
    """The law of texts by an enumeration of all paths; `key`: the levels of a latent order."""
    order, blocks, count = sampler
    free = [i for i, token in enumerate(pins) if token < 0]
    first = {i: 0 if blocks is None else rank // blocks * blocks for rank, i in enumerate(free)}
    by_rank = count == "equal" or (count == "grid" and key is None)

    def level(i: int) -> float:
        size = min(blocks or len(free), len(free) - first[i])
        return (first[i] + size * key[i]) / len(free)

    def visible_after(visible: int, k: int) -> int:
        if by_rank:
            return math.floor(len(free) * (k + 1) / steps + 0.5)
        if count == "grid":
            return sum(level(i) < (k + 1) / steps for i in free)
        return visible + 1

    texts: dict[tuple[int, ...], float] = {}

    def statistic(name: str, p: np.ndarray, token: int) -> float:
        if name == "confidence":
            return -math.log(p[token])
        if name == "entropy":
            return -sum(x * math.log(x) for x in p if x > 0)
        return sorted(p)[-2] - sorted(p)[-1]

    def length_of_prefix(ranked: list[int], p: np.ndarray, tokens: dict[int, int]) -> int:
        name, _, number = count.partition(":")
        for size in range(len(ranked), 1, -1):
            chosen = ranked[:size]
            if name == "threshold":
                fits = all(p[i, tokens[i]] >= float(number) for i in chosen)
            else:
                entropies = [statistic("entropy", p[i], 0) for i in chosen]
                fits = sum(entropies) - max(entropies) <= float(number)
            if fits:
                return size
        return 1

    def walk(z: tuple[int, ...], k: int, weight: float) -> None:
        masks = [i for i in free if z[i] == MASK]
        if not masks:
            texts[z] = texts.get(z, 0.0) + weight
            return
        visible = len(free) - len(masks)
        after = visible_after(visible, k)
        if after == visible:
            return walk(z, k + 1, weight)
        reachable, p = [i for i in masks if first[i] < after], law(z, 0.0)
        for drawn in product(range(MASK), repeat=len(reachable)):
            tokens = dict(zip(reachable, drawn, strict=True))
            chance = math.prod(float(p[i, token]) for i, token in tokens.items())
            value = {
                i: round(statistic(order, p[i], token) * 2**10) if key is None else key[i]
                for i, token in tokens.items()
            }
            ranked = sorted(reachable, key=lambda i: (first[i], value[i], i))
            size = (
                after - visible
                if count in ("grid", "equal")
                else length_of_prefix(ranked, p, tokens)
            )
            kept = {i: tokens[i] for i in ranked[:size]}
            walk(tuple(kept.get(i, token) for i, token in enumerate(z)), k + 1, weight * chance)

    walk(start(pins), 0, 1.0)
    return texts


def keys_of(order: str, steps: int) -> list[tuple[float, ...] | None]:
    """Equally likely levels of a text of 3 tokens: permutations, or shifts of the reversed bits.

    In spread order the step of a token changes only at multiples of 1 / steps of v.
    """
    if order == "random":
        return list(permutations((0, 1, 2)))
    reversed_bits = (0, 2, 1, 3)
    shifts = [
        tuple((reversed_bits[(i + s) % 4] + (j + 0.5) / steps) / 4 for i in range(L))
        for s in range(4)
        for j in range(steps)
    ]
    return shifts if order == "spread" else [None]


@pytest.mark.parametrize(
    "sampler", [each for each in COMBINATIONS if each[0] != "random" or each[2] != "grid"], ids=str
)
@pytest.mark.parametrize("pins", [(-1, -1, -1), (-1, 2, -1)])
def test_law(sampler: tuple[str, int | None, str], pins: tuple[int, ...]) -> None:
    """Random levels by the grid are `reveal`, in test_steps.py."""
    model = masked(V, L, seed=6, one_level=False)
    steps = 2 if sum(pin < 0 for pin in pins) == 2 else 5  # no halves: F k / N is rounded
    keys = keys_of(sampler[0], steps)
    exact: dict[tuple[int, ...], float] = {}
    for key in keys:
        for text, p in prefix_law(filtered(model), pins, key, sampler, steps).items():
            exact[text] = exact.get(text, 0.0) + p / len(keys)
    tokens = draw(model, steps, pins, sampler=spelled(*sampler)).tokens
    assert sampler_p_value(tokens, exact) > 1e-3


def test_the_test_of_laws_can_fail() -> None:
    """Orders, counts and blocks change the law, and N samples show it."""
    model, pins = masked(V, L, seed=6, one_level=False), (-1,) * L
    tokens = draw(model, 5, sampler="order=confidence,count=threshold:0.4").tokens
    for other in (
        ("entropy", None, "threshold:0.4"),
        ("confidence", None, "bound:0.9"),
        ("confidence", None, "threshold:0.9"),
        ("confidence", 1, "threshold:0.4"),
    ):
        assert sampler_p_value(tokens, prefix_law(filtered(model), pins, None, other, 5)) < 1e-6


@pytest.mark.parametrize("count", ["grid", "threshold:0.5"])
def test_confidence_in_blocks_stays_in_the_current_block(count: str) -> None:
    """In the order of probability; with top_k = 1 the drawn token is the most probable one."""
    n, length, size = 6, 8, 4
    model = masked(3, length, contrast=3.0)
    sampler = f"order=confidence,blocks={size},count={count}"
    frames = list(run_frames(model, n, length, steps=8, sampler=sampler, top_k=1))
    crossings = 0
    for before, after in pairwise(frames):
        for z, changed in zip(before.z.tolist(), after.changed, strict=True):
            chosen = changed.nonzero().squeeze(-1).tolist()
            masks = [i for i in range(length) if z[i] == 2]
            if not chosen:
                continue
            current = [i for i in masks if i // size == masks[0] // size]
            best = model.denoiser.law(tuple(z)).max(-1)
            others = [i for i in current if i not in chosen]
            assert set(chosen) <= set(current)
            assert all(best[i] >= best[j] - 2**-9 for i in chosen for j in others)
            crossings += len(current) < len(masks) and len(others) > 0
            assert count == "grid" or len(chosen) == max(1, sum(best[i] >= 0.5 for i in current))
    assert bool((frames[-1].z < 2).all()) and (count != "grid" or crossings > 0)


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 99), st.sampled_from([None, 1, 3]))
def test_equal_counts_are_equal_for_any_pins(
    length: int, n: int, seed: int, blocks: int | None
) -> None:
    """The F free tokens have the levels (rank + 1/2) / F, whatever the batch."""
    latent = draw_latent(n, length, seed)
    free = draw_latent(n, length, seed + 100).u < 0.7
    sampler = Unmasking(spread_order, "equal", blocks)
    levels = sampler.levels(latent.u, free)
    starts = block_starts(free, blocks)
    for row in range(n):
        mine, count = levels[row][free[row]], int(free[row].sum())
        assert torch.allclose(
            mine.sort().values, (torch.arange(count) + 0.5).double() / max(count, 1)
        )
        by_level = starts[row][free[row]][mine.argsort()]
        assert torch.equal(by_level, by_level.sort().values), "blocks come from left to right"
        part = slice(row, row + 1)
        alone = sampler.levels(latent[part].u, free[part])
        assert torch.equal(alone[0][free[row]], levels[row][free[row]])


@pytest.mark.parametrize("sampler", [spelled(*each) for each in COMBINATIONS])
def test_batches_make_no_difference(sampler: str) -> None:
    model = masked(3, 5, sees_alpha=True, one_level=False)
    whole, parts = (
        sample(model, n=7, length=5, steps=4, seed=2, sampler=sampler, batch_size=size)
        for size in (None, 3)
    )
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.nfe, parts.nfe)


def test_a_custom_count_rule_is_a_value() -> None:
    """A rule of two tokens a step: of 5 free tokens, 3 calls unmask 2, 2 and 1."""

    def first(values: torch.Tensor, limit: float) -> torch.Tensor:
        return (torch.arange(values.shape[1]) < limit).expand(values.shape)

    sampler = Unmasking(spread_order, CountRule(ENTROPY, first, 2))
    model = masked(3, 5, one_level=False)
    visible = [
        int((frame.z != model.process.mask_id).sum())
        for frame in run_frames(model, 4, 5, sampler=sampler)
        if len(frame.rows) or frame.step == 0
    ]
    assert visible == [0, 8, 16, 20]


def test_old_names_are_orders_with_counts() -> None:
    for name, sampler in (
        ("reveal", "order=random,count=grid"),
        ("confidence", "order=confidence"),
        ("blockwise:16", "blocks=16"),
        ("entropy_bounded:0.3", "count=bound:0.3,order=entropy"),
    ):
        assert sampler_of(name) == sampler_of(sampler)
    assert sampler_of("order=margin,blocks=4,count=threshold:0.9") == Unmasking(
        MARGIN, threshold(0.9), 4
    )


@pytest.mark.parametrize(
    ("sampler", "match"),
    [
        ("order=confidense", "order is unknown: got 'confidense'.*'confidence'"),
        ("count=grib", "count is unknown: got 'grib'.*'grid'"),
        ("count=threshold", "threshold .* got nan, want 0 <= threshold <= 1"),
        ("count=threshold:1.5", "threshold .* got 1.5"),
        ("count=bound:-1", "bound .* got -1.0, want bound >= 0"),
        ("blocks=0", "blocks is too small: got 0"),
        ("blocks=1.5", "blocks is .* whole number: got 1.5"),
        ("blocks=x", "blocks is .* whole number: got nan"),
        ("ordr=random", "part is unknown: got 'ordr'.*'order'"),
        ("order=random,order=spread", "part 'order'.*twice"),
    ],
)
def test_wrong_orders_and_counts_are_refused(sampler: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sampler_of(sampler)
