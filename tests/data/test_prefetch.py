"""Streamed rows: those of the whole text, whichever process writes them, at any time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unmask
import unmask.data.prefetch
from unmask.data.packing import StreamedRows, batch_at, pack
from unmask.data.prefetch import Cursor, read_windows, stream_rows
from unmask.data.streaming import Stream
from unmask.rng import address

EOS, VOCABULARY, W = 0, 30, 16


def lengths(n: int) -> list[int]:
    """Lengths of documents: some are empty, some are longer than a window."""
    return [(i * 7) % 23 if i % 50 != 49 else 400 for i in range(n)]


def documents(n: int = 400) -> list[str]:
    return [
        "".join(chr(97 + (i + place) % 26) for place in range(length))
        for i, length in enumerate(lengths(n))
    ]


def encode(some: Sequence[str]) -> list[list[int]]:
    return [[ord(letter) - 96 for letter in document] for document in some]


def stream(texts: Sequence[str], chosen: range = range(sys.maxsize)) -> Stream:
    table = datasets.Dataset.from_dict({"text": list(texts)}).to_iterable_dataset(
        num_shards=min(3, len(texts))
    )
    return Stream("toy", table, "text", chosen, "toy")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of W rows of 5 tokens, packed in blocks that do not divide a window."""
    monkeypatch.setattr(unmask.data.prefetch, "WINDOW_TOKENS", 5 * W)
    monkeypatch.setattr(
        unmask.data.prefetch, "cut_rows", partial(unmask.data.prefetch.cut_rows, block=33)
    )


def opened(
    folder: Path,
    source: Stream,
    code: Callable[[Sequence[str]], list[list[int]]] = encode,
    **form: object,
):
    return stream_rows(source, code, folder, VOCABULARY, 5, EOS, **form)


# --- batches


def in_windows(rows: torch.Tensor, size: int, ahead: int = 0) -> StreamedRows:
    """Rows that become available as needed, and `ahead` windows more."""
    return StreamedRows(size, lambda n: rows[: (-(-n // size) + ahead) * size], lambda: None)


@given(
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_a_batch_does_not_depend_on_how_many_rows_are_available(
    n: int, size: int, batch_size: int, step: int, seed: int, ahead: int
) -> None:
    """Nor on the number of processes; and the rows of a window come before those of the next."""
    rows = torch.arange(n)[:, None].expand(-1, 2)
    batch = batch_at(in_windows(rows, size), step, 2 * batch_size, seed)
    assert torch.equal(batch, batch_at(in_windows(rows, size, ahead), step, 2 * batch_size, seed))
    parts = [
        batch_at(in_windows(rows, size), step, 2 * batch_size, seed, rank, 2) for rank in range(2)
    ]
    assert torch.equal(torch.cat(parts), batch)
    place = torch.arange(step * 2 * batch_size, (step + 1) * 2 * batch_size)
    assert torch.equal(batch[:, 0] // size, place % n // size)
    epoch = torch.cat([batch_at(in_windows(rows, size), k, n, seed)[:, 0] for k in (0, 1)])
    assert torch.equal(epoch.view(2, n).sort(dim=1).values, torch.arange(n).expand(2, -1))


def test_rows_that_are_not_streamed_are_one_window() -> None:
    """In the order of older versions."""
    rows = torch.arange(13)[:, None]
    for step in range(9):
        place = step * 5 + torch.arange(5)
        order = {e: address(0x5F1E, 3, e, torch.arange(13)).argsort() for e in range(4)}
        expected = [int(order[int(p) // 13][int(p) % 13]) for p in place]
        assert batch_at(rows, step, 5, seed=3)[:, 0].tolist() == expected
        assert batch_at(in_windows(rows, 13), step, 5, seed=3)[:, 0].tolist() == expected


# --- rows


@given(
    st.lists(st.integers(0, 40), max_size=150), st.booleans(), st.integers(0, 3), st.integers(1, 3)
)
@settings(max_examples=15)
def test_windows_together_are_the_rows_of_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], wrap: bool, first: int, every: int
) -> None:
    """For any chosen documents, written at once or a window at a time by several objects."""
    folder, texts = tmp_path_factory.mktemp("windows"), ["ab" * size for size in sizes]
    source = stream(texts or [""], range(first, sys.maxsize, every))
    lists = encode(texts[first::every])
    if sum(map(len, lists)) + max(0, len(lists) - 1) < (3 if wrap else 5):
        with pytest.raises(ValueError, match="does not fill one row"):
            opened(folder, source, wrap=wrap).at_least(1)
        return
    expected = pack(lists, 5, EOS, wrap=wrap)
    opened_rows = opened(folder / "1", source, wrap=wrap)
    assert torch.equal(opened_rows.at_least(10**6)[:], expected)
    for n in range(1, len(expected) + W, W):  # each by a new object
        once = opened(folder / "2", source, wrap=wrap)
        rows = once.at_least(n)  # may be more later, because windows are prefetched
        assert torch.equal(rows[:], expected[: len(rows)])
        assert len(rows) >= min(n, len(expected))
        once.close()


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_each_window_is_full_and_ends_at_its_cursor(sizes: list[int], size: int) -> None:
    """The windows together are the stream; only the last one has fewer tokens, perhaps none."""
    starts, tokens = np.cumsum([0, *sizes]), np.arange(sum(sizes))
    pieces = [(piece, Cursor(i)) for i, piece in enumerate(np.split(tokens, starts[1:])[:-1])]
    windows = [
        (np.concatenate([*window, tokens[:0]]), end) for window, end in read_windows(pieces, size)
    ]
    assert np.concatenate([window for window, _ in windows]).tolist() == tokens.tolist()
    assert [len(window) for window, _ in windows[:-1]] == [size] * (len(windows) - 1)
    assert len(windows[-1][0]) < size and windows[-1][1] == Cursor()
    for number, (_, end) in enumerate(windows[:-1], start=1):
        assert starts[end.documents] + end.tokens == number * size


def test_a_text_is_read_only_as_far_as_needed_and_continued_from_the_last_window(
    tmp_path: Path,
) -> None:
    """And two windows more; a new object starts near the end of the existing windows."""
    texts, seen = [f"{'abc' * 7}{chr(97 + i % 26)}" for i in range(5000)], []

    def watched(rows: Sequence[str]) -> list[list[int]]:
        seen.append(len(rows))
        return encode(rows)

    whole = pack(encode(texts), 5, EOS)
    for n, most in ((1, 384), (W, 128), (40 * W, 2048), (41 * W, 384), (60 * W, 1024)):
        seen.clear()
        streamed = opened(tmp_path, stream(texts), watched)
        assert torch.equal(streamed.at_least(n)[:n], whole[:n])
        wait_for(lambda: not writers())
        assert sum(seen) <= most
        streamed.close()


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "unmask-prefetch" in thread.name]


def wait_for(done: Callable[[], bool], seconds: float = 20) -> None:
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)


def test_windows_are_prefetched_and_read_by_others(tmp_path: Path) -> None:
    streamed = opened(tmp_path, stream(documents()))
    assert len(streamed.at_least(1)) == W
    wait_for(lambda: not writers())
    assert sorted(path.name for path in tmp_path.glob("0*.json")) == [
        f"00000{i}.json" for i in range(3)
    ]

    def refuse(rows: Sequence[str]) -> list[list[int]]:
        raise AssertionError("the windows exist")

    other = opened(tmp_path, stream(documents()), refuse)
    assert len(other.at_least(2 * W + 1)) == 3 * W and torch.equal(
        other.at_least(1)[:W], streamed.at_least(1)[:W]
    )
    assert not writers(), "only the object with a reader prefetches"


def test_an_incomplete_window_is_written_again(tmp_path: Path) -> None:
    whole = pack(encode(documents()), 5, EOS)
    opened(tmp_path, stream(documents())).at_least(1)
    wait_for(lambda: not writers())
    (tmp_path / "000002.json").unlink()  # marks the window as complete
    (tmp_path / "000002.arrow").write_bytes(b"half")
    assert torch.equal(opened(tmp_path, stream(documents())).at_least(3 * W)[:], whole[: 3 * W])


def test_an_error_is_raised_when_its_rows_are_needed_and_can_be_repaired(tmp_path: Path) -> None:
    """Earlier windows are read. An error of the prefetch is raised again by the caller."""
    bad, broken = documents(), [True]

    def code(rows: Sequence[str]) -> list[list[int]]:
        if bad[150] in rows and broken[0]:
            raise ValueError("an unknown letter")
        return encode(rows)

    whole, lines = pack(encode(bad), 5, EOS), []
    streamed = stream_rows(stream(bad), code, tmp_path, VOCABULARY, 5, EOS, log=lines.append)
    read = W
    with pytest.raises(ValueError, match="an unknown letter"):
        while True:
            assert torch.equal(streamed.at_least(read)[:read], whole[:read])
            wait_for(lambda: not writers())
            read += W
    assert W < read < len(whole) and not list(tmp_path.glob(".tmp-*"))
    assert any("prefetch" in line and "unknown letter" in line for line in lines)
    broken[0] = False
    assert torch.equal(streamed.at_least(10**6)[:], whole)


def test_the_error_of_a_reader_names_the_document(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, str]]:
        for i in range(100):
            yield {"text": "abcde" * 5}
            if i == 80:
                raise ConnectionError("the hub is gone")

    table = datasets.IterableDataset.from_generator(
        rows, features=datasets.Features(text=datasets.Value("string"))
    )
    with pytest.raises(
        ValueError, match=r"toy could not be read beyond document \d+: .*the hub is gone"
    ):
        opened(tmp_path, Stream("toy", table, "text", range(sys.maxsize), "toy")).at_least(10**6)


def test_close_ends_the_prefetch(tmp_path: Path) -> None:
    """It continues when rows are requested again."""

    def slow(rows: Sequence[str]) -> list[list[int]]:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.05)
        return encode(rows)

    texts = ["abc" * 90] * 500  # a window is less than 64 of them
    streamed = opened(tmp_path, stream(texts), slow)
    for n in (1, 250 * W):
        streamed.at_least(n)
        streamed.close()
        assert not writers()
    rows = streamed.at_least(250 * W)
    assert torch.equal(rows[:], pack(encode(texts), 5, EOS)[: len(rows)])
    streamed.close()


# --- processes

PROCESSES = """
import os, signal, sys, time
from pathlib import Path
import torch, datasets
from functools import partial
import unmask.data.streaming, unmask.data.prefetch
from unmask.data.packing import cut_rows, pack
from test_prefetch import EOS, VOCABULARY, W, documents, encode, stream
unmask.data.prefetch.WINDOW_TOKENS = 5 * W
unmask.data.prefetch.cut_rows = partial(cut_rows, block=33)
unmask.data.streaming.DOCUMENTS_AT_ONCE = 4  # so that each window takes time
folder, texts = Path(sys.argv[1]), documents(150)
whole, source = pack(encode(texts), 5, EOS), stream(texts)

def begin(last, seconds):
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def slow(rows):
        time.sleep(seconds)
        return encode(rows)
    streamed = unmask.data.prefetch.stream_rows(source, slow, folder, VOCABULARY, 5, EOS)
    for n in range(W, last, W):
        rows = streamed.at_least(n)
    assert torch.equal(rows[:], whole[:len(rows)])
    sys.exit()  # as a script ends: threads and all

killed, interrupted, short = begin(10**4, 0.1), begin(10**4, 0.1), begin(2 * W + 1, 0.1)
while len(list(folder.glob("0*.json"))) < 3:
    time.sleep(0.01)
os.kill(killed, signal.SIGKILL)
os.kill(interrupted, signal.SIGINT)
ended = [os.waitpid(child, 0)[1] for child in (killed, interrupted, short)]
print(ended, len(list(folder.glob("0*.json"))), flush=True)
print([os.waitpid(child, 0)[1] for child in [begin(10**4, 0.0), begin(10**4, 0.001)]], flush=True)
print(len(list(folder.glob("0*.json"))), -(-len(whole) // W))
"""


@pytest.mark.slow
def test_processes_share_windows_and_survive_one_another(tmp_path: Path) -> None:
    """One is killed, one is interrupted, one exits during its prefetch; others continue."""
    paths = [str(Path(unmask.__file__).parents[1]), str(Path(__file__).parent)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESSES, str(tmp_path)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    first, second, third = ran.stdout.splitlines()
    assert first.startswith(f"[{int(signal.SIGKILL)}, {int(signal.SIGINT)}, 0] "), ran.stderr
    assert 3 <= int(first.split()[-1]) < 20
    assert second == "[0, 0]" and len(set(third.split())) == 1, ran.stderr
    assert "KeyboardInterrupt" in ran.stderr
