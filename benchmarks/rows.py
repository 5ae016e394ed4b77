"""Rows in memory against rows on disk: memory, tokens a second, and seconds of a batch.

    python benchmarks/rows.py                          32 and 128 MB of text, four ways: minutes
    python benchmarks/rows.py --megabytes 400 --ways disk

The text is random words, in a data set on disk that is mapped into memory. Each way runs in its own
process. It makes the rows and then reads batches of 512 rows from them:

    lists     all documents are tokenized, then packed (for comparison)
    memory    documents are tokenized a few at a time, packed in blocks, and joined (small corpora)
    disk      the blocks are written to a file, which is mapped (data sets)
    streamed  the blocks are written in windows of 2^22 tokens while the text is read, two windows
              ahead (data.streaming, with larger windows). A line for each window on stderr gives
              the anonymous memory of the process.

Prints a JSON line for each size and way. `anonymous_mib` is the peak of memory that belongs to no
file, minus the memory before, sampled every 5 ms: a machine must have this much. `resident_mib` is
the peak of resident memory (VmHWM), with the pages of mapped files. The system can reclaim those
pages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np

import unmask.data.prefetch
from unmask.data.corpora import Corpus, load_corpus
from unmask.data.hf_datasets import TEXT_COLUMN, open_splits
from unmask.data.packing import Rows, batch_at, pack, row_blocks, to_tensor
from unmask.data.rows_on_disk import cached_rows
from unmask.data.streaming import Stream
from unmask.data.tokenizers import Tokenizer, train_bpe
from unmask.recipes.data import iter_encoded

WAYS = "lists", "memory", "disk", "streamed"
BATCH, STEPS, VOCABULARY = 512, 20, 4096
WORDS = 20_000


def documents(megabytes: float) -> Iterator[dict[str, str]]:
    """Yield documents of about 5 kB: words of random letters, drawn by Zipf's law."""
    random = np.random.default_rng(0)
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 10, WORDS)]
    law = 1 / np.arange(1, WORDS + 1)
    written = 0
    while written < megabytes * 1e6:
        text = " ".join(
            words[i] for i in random.choice(WORDS, random.integers(200, 1400), p=law / law.sum())
        )
        written += len(text)
        yield {"text": text}


def prepare(folder: Path, megabytes: float) -> None:
    """Write the text and its tokenizer."""
    made = datasets.Dataset.from_generator(
        documents,
        gen_kwargs={"megabytes": megabytes},
        cache_dir=str(folder / "hf"),
        writer_batch_size=100,
    )
    made.save_to_disk(folder / "text")
    train_bpe(made[:400]["text"], VOCABULARY).save(folder / "tokens")


def rows_of(way: str, corpus: Corpus, tokenizer: Tokenizer, length: int, folder: Path) -> Rows:
    """The rows [n, L] of a corpus, made in one of the ways."""
    eos = tokenizer.eos_id
    if way == "lists":
        return pack(tokenizer.encode_batch(list(corpus.texts)), length, eos)
    if way == "memory":
        return to_tensor(row_blocks(iter_encoded(corpus, tokenizer), length, eos))
    if way == "streamed":
        return streamed_rows(tokenizer, length, folder)
    blocks = row_blocks(iter_encoded(corpus, tokenizer), length, eos)
    return cached_rows(folder / "rows.arrow", lambda: blocks, length, tokenizer.vocab_size)


def streamed_rows(tokenizer: Tokenizer, length: int, folder: Path) -> Rows:
    """All rows of a stream. They are requested as in a training, one more batch each time."""
    unmask.data.prefetch.WINDOW_TOKENS = 2**22
    table = open_splits(folder / "text", streaming=True)[0]["train"]
    stream = Stream("text", table, TEXT_COLUMN, range(sys.maxsize), "text")
    streamed = unmask.data.prefetch.stream_rows(
        stream,
        tokenizer.encode_batch,
        folder / "windows",
        tokenizer.vocab_size,
        length,
        tokenizer.eos_id,
    )
    wanted_rows = window_end = 0
    while len(rows := streamed.at_least(wanted_rows + BATCH)) >= wanted_rows + BATCH:
        wanted_rows += BATCH
        if len(rows) > window_end:
            window_end = len(rows)
            print(
                json.dumps({"rows": window_end, "anonymous_mib": status("RssAnon") >> 20}),
                file=sys.stderr,
                flush=True,
            )
    return rows


def measure(way: str, folder: Path, length: int) -> dict[str, float]:
    """Measure one way in this process."""
    corpus, tokenizer = load_corpus(folder / "text"), Tokenizer.load(folder / "tokens")
    # A warm-up for imports and threads.
    rows_of("disk", Corpus("warm", corpus.texts[:100]), tokenizer, length, folder / "warm")
    resident = status("VmRSS")
    with watched() as peak:
        started = time.perf_counter()
        rows = rows_of(way, corpus, tokenizer, length, folder)
        seconds = time.perf_counter() - started
    tokens = len(rows) * length
    started = time.perf_counter()
    batch_at(rows, 0, BATCH, seed=1)
    first = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(1, STEPS + 1):
        batch_at(rows, step, BATCH, seed=1)
    batch = (time.perf_counter() - started) / STEPS
    return {
        "tokens": tokens,
        "anonymous_mib": peak[0] >> 20,
        "resident_mib": (status("VmHWM") - resident) >> 20,
        "tokens_per_s": round(tokens / seconds),
        "first_batch_s": round(first, 4),
        "batch_s": round(batch, 4),
    }


@contextmanager
def watched() -> Iterator[list[int]]:
    """The peak of anonymous memory minus that at the start, in bytes, in a list of one."""
    before, peak, done = status("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], status("RssAnon") - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", nargs="+", type=float, default=[32, 128])
    parser.add_argument("--length", type=int, default=1024, help="tokens in a row")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=WAYS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        print(json.dumps(measure(args.ways[0], args.folder, args.length)))
        return
    datasets.disable_progress_bars()
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), megabytes)
            for way in args.ways:
                command = [
                    sys.executable,
                    __file__,
                    "--ways",
                    way,
                    "--folder",
                    folder,
                    "--length",
                    str(args.length),
                ]
                process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                measured = json.loads(process.stdout)
                print(json.dumps({"megabytes": megabytes, "way": way, **measured}), flush=True)


if __name__ == "__main__":
    main()
