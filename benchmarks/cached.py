"""Error and speed of a cache (`unmask.samplers.cached_forward`), against full forward passes.

    python benchmarks/cached.py               all parts, about ten minutes of one core
    python benchmarks/cached.py --parts error --n 8 --steps 32

error   The demo's teacher, with half of a held-out text as the prompt, or without a prompt. At each
        position that a step of the cached run uses: KL(exact || cached) for the same text z, in
        nats, and how often the most probable token is the same. The continuations have three
        columns: perplexity under the demo's judge given the prompt, difference from the exact run
        with the same latents (nats a token, with its standard error), and unigram entropy. The last
        columns are processor seconds a sample, and their ratio to the exact run: medians of runs in
        turns.
order   Random positions against blocks from left to right, without a cache. The source has known
        probabilities and an exact denoiser. KL(sampler || source), in nats a token.
large   169M random weights, L = 256, a prompt of half that length: seconds only.
append  An autoregressive network with the teacher's sizes and random weights, 512 tokens one at a
        time. Compares a cache that copies its content for each token with the library's cache,
        which allocates memory in advance.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from types import SimpleNamespace

import torch
from torch import Tensor

import unmask
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear
from unmask.evaluation.judges import predictor_nats
from unmask.evaluation.metrics import entropy
from unmask.experiments.bench.ar_speedup import random_network
from unmask.experiments.exact import factorization_gap as exact
from unmask.experiments.exact.oracle import masked_model
from unmask.experiments.exact.synthetic_sources import random_chain
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import small
from unmask.models.kv_cache import Cache
from unmask.models.model import Model
from unmask.prediction import Prediction
from unmask.recipes.catalog import recipe
from unmask.recipes.data import training_data
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import watch

LENGTH, V = 128, 50258
SAMPLERS = "reveal", "blockwise:16", "blockwise:32"
PERIODS = 1, 2, 4, 8


@dataclass
class Traced:
    """A denoiser that keeps its last call.

    last  z, alpha, and the prediction
    """

    denoiser: NetworkDenoiser
    last: tuple[Tensor, Tensor, Prediction] | None = field(default=None)

    @property
    def vocab_size(self) -> int:
        return self.denoiser.vocab_size

    @property
    def sees_alpha(self) -> bool:
        return self.denoiser.sees_alpha

    def __call__(self, z: Tensor, alpha: Tensor) -> Prediction:
        return self.forward_window(z, alpha, None, None, None)

    def forward_window(
        self,
        z: Tensor,
        alpha: Tensor,
        queries: Tensor | None,
        cache: Cache | None,
        window: Tensor | None,
    ) -> Prediction:
        self.last = z, alpha, self.denoiser.forward_window(z, alpha, queries, cache, window)
        return self.last[2]


def errors(model: Model, **how: object) -> tuple[Tensor, float, Tensor, Tensor]:
    """Errors of a cached run.

    Returns:
        Texts [n, L] and mean nfe. For each position that a step uses: KL(exact || cached) in nats,
        and 1 if the arg max is the same.
    """
    traced = Traced(model.denoiser.frozen())
    view = SimpleNamespace(
        denoiser=traced, process=model.process, schedule=model.schedule, tokenizer=None
    )
    kl, same, calls = [], [], 0
    for frame in watch(view, SampleOptions(**how)):
        calls += len(frame.rows)
        where = frame.changed[frame.rows].flatten().nonzero().squeeze(-1)
        if len(where) and traced.last is not None:
            z, alpha, prediction = traced.last
            if len(z) == 1:  # one row is computed while all samples are equal
                where = where % z.shape[1]
            right, ours = (
                each.log_p(where).double() for each in (traced.denoiser(z, alpha), prediction)
            )
            kl.append((right.exp() * (right - ours)).sum(-1))
            same.append((right.argmax(-1) == ours.argmax(-1)).double())
    return frame.z, calls / len(frame.z), torch.cat(kl), torch.cat(same)


def in_turns(runs: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Processor seconds of each run, `repeats` times."""
    clocks: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seconds in zip(runs, clocks, strict=True):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
    return clocks


def timing(clocks: list[list[float]], n: int) -> Iterator[tuple[float, float]]:
    """Median seconds a sample, and the median ratio of the first run's seconds to them."""
    for seconds in clocks:
        yield median(seconds) / n, median(a / b for a, b in zip(clocks[0], seconds, strict=True))


def error(n: int, repeats: int, counts: Sequence[int]) -> None:
    """Print the table of the part `error`."""
    model, judge = unmask.load("unmask:teacher"), unmask.load("unmask:judge")
    plan = recipe("demo-teacher")
    real = training_data(
        replace(plan, data=replace(plan.data, tokenizer="unmask:teacher"))
    ).held_out[:n]
    print(
        "| prompt | sampler | steps | cache | KL | arg max | gen PPL | nats to exact | entropy "
        "| nfe | s | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for given in (LENGTH // 2, 0):
        pinned = torch.as_tensor(real).long().where(torch.arange(LENGTH) < given, -1)
        for sampler in SAMPLERS:
            for steps in counts if given else [count for count in counts if count == 32]:
                how = {
                    "n": n,
                    "length": LENGTH,
                    "steps": steps,
                    "sampler": sampler,
                    "pinned": pinned,
                }
                periods = [*(r for r in PERIODS if r < steps), steps]
                runs = [lambda r=r, how=how: unmask.sample(model, **how, cache=r) for r in periods]
                clock = timing(in_turns(runs, repeats), n)
                exact_nats = None
                for r, (seconds, ratio) in zip(periods, clock, strict=True):
                    tokens, nfe, kl, same = errors(model, **how, cache=r)
                    nats = (
                        predictor_nats(judge.predictor, tokens)[:, max(given - 1, 0) :]
                        .double()
                        .mean(1)
                    )
                    exact_nats = nats if exact_nats is None else exact_nats
                    gap = nats - exact_nats
                    print(
                        f"| {given} | {sampler} | {steps} | {'once' if r == steps else r} "
                        f"| {kl.mean():.4f} | {same.mean():.3f} | {nats.mean().exp():.1f} "
                        f"| {gap.mean():+.3f} ± {gap.std() / math.sqrt(n):.3f} "
                        f"| {entropy(tokens[:, given:]).mean():.3f} | {nfe:.1f} "
                        f"| {seconds:.3f} | {ratio:.2f} |",
                        flush=True,
                    )


def order(n: int = 500, length: int = 64) -> None:
    """Print the table of the part `order`."""
    model = masked_model(random_chain(8, seed=0))
    print(
        f"| sampler | steps | nfe | KL, nats a token, chain of 8 tokens, L = {length} |",
        "|---|---|---|---|",
        sep="\n",
        flush=True,
    )
    for steps in (8, 16, 32, 64):
        for sampler in ("reveal", "blockwise:32", "blockwise:16", "blockwise:8"):
            [row] = exact.gap_rows(model, sampler, sampler, [steps], n, length, 0, traced=True)
            print(
                f"| {sampler} | {steps} | {row.nfe:.1f} | {row.kl.value:.4f} ± {row.kl.sem:.4f} |",
                flush=True,
            )


def large(repeats: int, length: int = 256, steps: int = 16) -> None:
    """Print the table of the part `large`."""
    network = random_network(small(V, length)).eval()
    denoiser = NetworkDenoiser(network, V - 1, sees_alpha=False)
    model = Model(denoiser, MaskedProcess(V, V - 1), LogLinear(), None)
    prompt = torch.randint(V - 1, (length // 2,), generator=torch.Generator().manual_seed(0))
    cells = [
        ("reveal", 1),
        ("reveal", 4),
        ("reveal", steps),
        ("blockwise:32", 4),
        ("blockwise:16", 2),
    ]

    def draw(sampler: str, r: int, count: int = steps) -> None:
        unmask.sample(model, 1, length, count, prompt=prompt, sampler=sampler, cache=r)

    draw("reveal", 1, 1)
    clocks = in_turns([lambda cell=cell: draw(*cell) for cell in cells], repeats)
    print(f"| 169M weights, L = {length}, prompt of half, {steps} steps | cache | s | ratio |")
    print("|---|---|---|---|")
    for (sampler, r), (seconds, ratio) in zip(cells, timing(clocks, 1), strict=True):
        print(
            f"| {sampler} | {'once' if r == steps else r} | {seconds:.2f} | {ratio:.2f} |",
            flush=True,
        )


class Copying(Cache):
    """A cache that copies its content at every write."""

    def write(
        self, block: int, columns: int | Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        if block == len(self.pairs):
            self.pairs.append((keys, values))
        else:
            old = self.pairs[block]
            self.pairs[block] = torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2)
        self.length = columns + keys.shape[2]
        return self.pairs[block]


@torch.no_grad()
def append(repeats: int, length: int = 512) -> None:
    """Print the table of the part `append`."""
    shape = unmask.load("unmask:teacher").network.shape
    network = random_network(replace(shape, causal=True, length=length)).eval()
    print(
        f"| autoregressive, {length} tokens | texts | s, copying | s, library | ratio |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    for n in (1, 16):

        def write(kind: type[Cache], n: int = n) -> None:
            cache, ids = kind(), torch.zeros(n, 1, dtype=torch.int64)
            for _ in range(length):
                network.hidden(ids, cache=cache)

        clocks = in_turns([lambda: write(Copying), lambda: write(Cache)], repeats)
        (copying, _), (ours, ratio) = timing(clocks, 1)
        print(
            f"| {shape.blocks} blocks of {shape.width} | {n} | {copying:.2f} | {ours:.2f} "
            f"| {ratio:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["order", "large", "append", "error"])
    parser.add_argument("--n", type=int, default=8, help="texts in a row of the part error")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[16, 32, 64], help="steps of the part error"
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each case")
    args = parser.parse_args()
    print(f"# {torch.get_num_threads()} threads, torch {torch.__version__}")
    parts = {
        "error": lambda: error(args.n, args.repeats, args.steps),
        "order": order,
        "large": lambda: large(args.repeats),
        "append": lambda: append(args.repeats),
    }
    for part in args.parts:
        parts[part]()


if __name__ == "__main__":
    main()
