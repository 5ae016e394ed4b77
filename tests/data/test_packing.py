"""Rows and batches: only the remainder is lost, and a batch is a function of its step."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unmask.data import batch_at, pack, packing
from unmask.data.packing import check_rows, evenly_spaced, row_blocks

EOS, BOS = 99, 98
documents = st.lists(st.lists(st.integers(0, 50), max_size=9), min_size=1, max_size=9)


def rows(n: int, length: int = 3) -> torch.Tensor:
    """n different rows: row i starts with i."""
    return torch.arange(n)[:, None] + 1000 * torch.arange(length)


def joined(token_lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable([*tokens, EOS] for tokens in token_lists))[:-1]


@given(documents, st.integers(1, 5))
@settings(deadline=None)
def test_rows_in_order_are_the_documents_with_eos_between(
    token_lists: list[list[int]], length: int
) -> None:
    stream = joined(token_lists)
    n = len(stream) // length
    if n == 0:
        with pytest.raises(
            ValueError, match=f"the text has {len(stream)} tokens and a row takes {length}"
        ):
            pack(token_lists, length, EOS)
        return
    packed = pack(token_lists, length, EOS)
    assert packed.dtype == torch.int64
    assert tuple(packed.shape) == (n, length)
    assert packed.flatten().tolist() == stream[: n * length]


@given(documents, st.integers(3, 6), st.sampled_from([None, BOS]))
@settings(deadline=None)
def test_wrapped_rows_are_shorter_rows_between_their_ends(
    token_lists: list[list[int]], length: int, bos: int | None
) -> None:
    if len(joined(token_lists)) < length - 2:
        return
    packed = pack(token_lists, length, EOS, wrap=True, bos_id=bos)
    assert torch.equal(packed[:, 1:-1], pack(token_lists, length - 2, EOS))
    assert packed[:, 0].eq(EOS if bos is None else bos).all()
    assert packed[:, -1].eq(EOS).all()


def test_without_eos_nothing_is_between_documents() -> None:
    assert pack([[1, 2], [3], [], [4, 5]], 2, eos_id=None).tolist() == [[1, 2], [3, 4]]


def test_packing_takes_any_iterable_of_documents() -> None:
    assert torch.equal(pack(iter([[1, 2], [3]]), 2, EOS), pack([[1, 2], [3]], 2, EOS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 4, EOS), "the text has 0 tokens and a row takes 4"),
        (([[1, 2]], 0, EOS), "length is 0: want at least 1"),
        (([[1, 2]], 2, EOS, True), "length is 2: want at least 3"),
        (([[1, 2, 3]], 3, None, True), "eos_id is None"),
    ],
)
def test_errors_of_packing_name_the_fault(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(*arguments)  # type: ignore[arg-type]


def test_four_million_tokens_are_packed_in_seconds() -> None:
    token_lists = [list(range(400)) * 40] * 250  # what 12 MB of text gives with a small vocabulary
    start = time.process_time()
    assert len(pack(token_lists, 128, EOS)) == (250 * 16_000 + 249) // 128
    assert time.process_time() - start < 5


@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 12), st.integers(0, 3))
@settings(deadline=None)
def test_after_any_number_of_steps_two_rows_differ_by_at_most_one_sighting(
    n: int, batch_size: int, steps: int, seed: int
) -> None:
    seen = Counter({row: 0 for row in range(n)})
    for step in range(steps):
        batch = batch_at(rows(n), step, batch_size, seed)
        assert len(batch) == batch_size
        seen.update(batch[:, 0].tolist())
    assert seen.total() == steps * batch_size
    assert max(seen.values()) - min(seen.values()) <= 1


def test_whole_epochs_show_every_row_equally_often_and_drop_no_last_batch() -> None:
    seen = Counter(
        torch.cat([batch_at(rows(10), step, 4, seed=1)[:, 0] for step in range(5)]).tolist()
    )
    assert seen == {
        row: 2 for row in range(10)
    }  # 5 steps of 4 are 2 epochs of 10; step 2 straddles them


def test_a_batch_is_a_function_of_the_step() -> None:
    ids = rows(13)
    run = [batch_at(ids, step, 5, seed=3) for step in range(9)]
    resumed = [batch_at(ids.clone(), step, 5, seed=3) for step in range(4, 9)]
    assert all(torch.equal(a, b) for a, b in zip(run[4:], resumed, strict=True))
    assert torch.equal(batch_at(ids, 7, 5, seed=3), run[7])
    assert not torch.equal(batch_at(ids, 7, 5, seed=4), run[7])


@given(st.integers(1, 20), st.sampled_from([1, 2, 3, 4]), st.integers(1, 4), st.integers(0, 9))
@settings(deadline=None)
def test_the_processes_together_see_the_batch_of_one(
    n: int, world: int, share: int, step: int
) -> None:
    whole = batch_at(rows(n), step, world * share, seed=0)
    parts = [
        batch_at(rows(n), step, world * share, seed=0, rank=rank, world=world)
        for rank in range(world)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert all(len(part) == share for part in parts)


def test_every_order_of_an_epoch_is_equally_likely() -> None:
    epochs = 3000
    orders = torch.cat([batch_at(rows(3), step, 3, seed=5)[None, :, 0] for step in range(epochs)])
    counts = Counter(map(tuple, orders.tolist()))
    chi_square = sum((count - epochs / 6) ** 2 / (epochs / 6) for count in counts.values())
    assert len(counts) == 6
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001
    repeats = orders[1:].eq(orders[:-1]).all(dim=1).double().mean().item()
    assert (
        abs(repeats - 1 / 6) < 4 * (5 / 36 / epochs) ** 0.5
    )  # neighbouring epochs are independent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": torch.empty(0, 4)}, r"shape \(0, 4\): want .* n > 0"),
        ({"ids": torch.arange(4)}, r"shape \(4,\): want"),
        ({"step": -1}, "step is -1: want >= 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 5, "world": 2}, "batch_size is 5: want .* multiple of the 2 processes"),
        ({"rank": 2, "world": 2}, "rank is 2: want 0 <= rank < world = 2"),
    ],
)
def test_errors_of_batches_name_the_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_at(**({"ids": rows(4), "step": 0, "batch_size": 2, "seed": 0} | arguments))  # type: ignore[arg-type]


def test_rows_are_text():
    rows = torch.tensor([[0, 1, 2], [3, 4, 5]])
    check_rows(rows, 7, 6)
    check_rows(rows, 6, None)
    with pytest.raises(ValueError, match=r"got 0 to 5, .*vocab_size = 5"):
        check_rows(rows, 5, None)
    with pytest.raises(ValueError, match=r"got -1 to 4"):
        check_rows(rows - 1, 7, 6)
    with pytest.raises(ValueError, match=r"MASK \(id 4\) 1 times"):
        check_rows(rows, 7, 4)


def blocks_of(
    token_lists: list[list[int]], length: int, block: int, **options: object
) -> list[torch.Tensor]:
    return [
        torch.from_numpy(rows)
        for rows in row_blocks(token_lists, length, EOS, block=block, **options)
    ]


@given(documents, st.integers(1, 6), st.integers(1, 12), st.booleans())
# The token that the first block leaves over begins the last row.
@example([[1, 2, 3], [4]], 2, 3, False)
def test_blocks_together_are_the_rows_whatever_their_size(
    token_lists: list[list[int]], length: int, block: int, wrap: bool
) -> None:
    """Compared with a stream that is joined first, then cut."""
    body = length - 2 if wrap else length
    stream = joined(token_lists)
    n = len(stream) // max(body, 1)
    if body < 1 or n == 0:
        with pytest.raises(ValueError, match=r"length is|a row takes"):
            blocks_of(token_lists, length, block, wrap=wrap)
        return
    packed = torch.cat(blocks_of(token_lists, length, block, wrap=wrap, bos_id=BOS))
    crops = [stream[i * body : (i + 1) * body] for i in range(n)]
    assert packed.tolist() == [[BOS, *crop, EOS] if wrap else crop for crop in crops]
    assert torch.equal(packed, pack(token_lists, length, EOS, wrap=wrap, bos_id=BOS))


def test_packing_reads_no_further_than_a_block() -> None:
    """A block of rows comes as soon as its tokens were read; less than a row remains."""
    read = 0

    def endless() -> Iterator[list[int]]:
        nonlocal read
        while True:
            read += 1
            yield [1] * 9

    blocks = row_blocks(endless(), 7, EOS, block=100)
    for number in range(1, 50):
        rows = next(blocks)
        assert 100 - 7 < rows.size < 100 + 10 and 10 * read <= number * 110
        assert rows.base.size <= 110, "a block holds no earlier block"


def test_rows_are_checked_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BLOCK", 6)
    ids = rows(20)
    check_rows(ids, 2020, 2019 + 1)
    with pytest.raises(ValueError, match=r"got 0 to 2019, .*vocab_size = 2019"):
        check_rows(ids, 2019, None)
    ids[3, 1] = ids[17, 0] = 7
    with pytest.raises(ValueError, match=r"MASK \(id 7\) 3 times"):
        check_rows(ids, 2020, 7)


@given(st.integers(1, 5000), st.integers(1, 600))
@settings(deadline=None)
def test_evenly_spaced_rows_cover_the_text(n: int, k: int) -> None:
    """k rows of n: in order, no row twice, equal gaps and equal ends, to rounding."""
    numbers = evenly_spaced(n, k)
    assert numbers.dtype == torch.int64 and len(numbers) == min(n, k)
    gaps = numbers.diff()
    assert len(gaps) == 0 or (int(gaps.min()) >= 1 and int(gaps.max() - gaps.min()) <= 1)
    before, after = int(numbers[0]), n - 1 - int(numbers[-1])
    assert 0 <= after <= before <= after + 1


@pytest.mark.parametrize("n, k", [(0, 3), (3, 0), (3, -1)])
def test_evenly_spaced_needs_rows(n: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n} and k = {k}, want n >= 1 and k >= 1"):
        evenly_spaced(n, k)
