"""What a cache costs and gains: windows beside kept keys and values (`unmask.samplers.cached_forward`) against whole passes.

    python benchmarks/cached.py               all parts, some ten minutes of one core
    python benchmarks/cached.py --parts error --n 8 --steps 32

error   the demo's teacher, half of a held-out text as the prompt, or none. Along the cached run, at each position that
        is read: KL of the exact law at the same canvas || the cached law, nats, and how often the likeliest token is
        the same. Of the continuations: perplexity under the demo's judge, which has read the prompt; difference to the
        exact run of the same latents, nats a token with its standard error; unigram entropy. Seconds of this process a
        sample (not the wall clock) and the ratio to the exact run, medians of runs in turns
order   random positions against blocks from left to right, on a source whose law is known and with its exact denoiser,
        no cache: KL(sampler || source), nats a token
large   169M random weights, L = 256, a prompt of half of it: seconds only
room    an autoregressive network of the teacher's sizes, random weights, 512 tokens one at a time: a cache that copies
        all it holds for each token, as ours did before, against ours, which has room for more
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
from unmask.models.denoiser import FrozenDenoiser, NetworkDenoiser
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
    """A denoiser that remembers the last call: its canvas, what it was told, and what it answered."""

    denoiser: FrozenDenoiser
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
        asked: Tensor | None,
        cache: Cache | None,
        window: Tensor | None,
    ) -> Prediction:
        self.last = z, alpha, self.denoiser.forward_window(z, alpha, asked, cache, window)
        return self.last[2]


def errors(model: Model, **how: object) -> tuple[Tensor, float, Tensor, Tensor]:
    """Texts [n, L] of a run, mean nfe, and at each position read KL(exact || cached), nats, and same arg max."""
    traced = Traced(model.denoiser.frozen())
    view = SimpleNamespace(
        denoiser=traced, process=model.process, schedule=model.schedule, tokenizer=None
    )
    kl, same, calls = [], [], 0
    for frame in watch(view, SampleOptions(**how)):
        calls += len(frame.rows)
        where = frame.changed[frame.rows].flatten().nonzero().squeeze(-1)
        if len(where) and traced.last is not None:
            z, alpha, answer = traced.last
            if len(z) == 1:  # one for all, while they are alike
                where = where % z.shape[1]
            right, ours = (
                each.log_p(where).double() for each in (traced.denoiser(z, alpha), answer)
            )
            kl.append((right.exp() * (right - ours)).sum(-1))
            same.append((right.argmax(-1) == ours.argmax(-1)).double())
    return frame.z, calls / len(frame.z), torch.cat(kl), torch.cat(same)


def in_turns(runs: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of this process for each run, `repeats` times."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seconds in zip(runs, found, strict=True):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
    return found


def timing(found: list[list[float]], n: int) -> Iterator[tuple[float, float]]:
    """Median seconds a sample, and median ratio of the first run's to them."""
    for seconds in found:
        yield median(seconds) / n, median(a / b for a, b in zip(found[0], seconds, strict=True))


def error(n: int, repeats: int, counts: Sequence[int]) -> None:
    model, judge = unmask.load("unmask:teacher"), unmask.load("unmask:judge")
    plan = recipe("demo-teacher")
    real = training_data(
        replace(plan, data=replace(plan.data, tokenizer="unmask:teacher"))
    ).held_out[:n]
    print(
        "| prompt | sampler | steps | cache | KL | arg max | gen PPL | nats to exact | entropy | nfe | s | ratio |"
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
                        f"| {given} | {sampler} | {steps} | {'once' if r == steps else r} | {kl.mean():.4f} "
                        f"| {same.mean():.3f} | {nats.mean().exp():.1f} | {gap.mean():+.3f} ± "
                        f"{gap.std() / math.sqrt(n):.3f} | {entropy(tokens[:, given:]).mean():.3f} | {nfe:.1f} "
                        f"| {seconds:.3f} | {ratio:.2f} |",
                        flush=True,
                    )


def order(n: int = 500, length: int = 64) -> None:
    model = masked_model(random_chain(8, seed=0))
    print(
        f"| sampler | steps | nfe | KL, nats a token, chain of 8 tokens, L = {length} |\n|---|---|---|---|",
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
    found = in_turns([lambda cell=cell: draw(*cell) for cell in cells], repeats)
    print(
        f"| 169M weights, L = {length}, prompt of half, {steps} steps | cache | s | ratio |\n|---|---|---|---|"
    )
    for (sampler, r), (seconds, ratio) in zip(cells, timing(found, 1), strict=True):
        print(
            f"| {sampler} | {'once' if r == steps else r} | {seconds:.2f} | {ratio:.2f} |",
            flush=True,
        )


class Copying(Cache):
    """A cache without room."""

    def write(
        self, block: int, places: int | Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        if block == len(self.pairs):
            self.pairs.append((keys, values))
        else:
            old = self.pairs[block]
            self.pairs[block] = torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2)
        self.length = places + keys.shape[2]
        return self.pairs[block]


@torch.no_grad()
def room(repeats: int, length: int = 512) -> None:
    shape = unmask.load("unmask:teacher").network.shape
    network = random_network(replace(shape, causal=True, length=length)).eval()
    print(
        f"| autoregressive, {length} tokens | texts | s, copying | s, room | ratio |\n|---|---|---|---|---|"
    )
    for n in (1, 16):

        def write(kind: type[Cache], n: int = n) -> None:
            cache, ids = kind(), torch.zeros(n, 1, dtype=torch.int64)
            for _ in range(length):
                network.hidden(ids, cache=cache)

        found = in_turns([lambda: write(Copying), lambda: write(Cache)], repeats)
        (copying, _), (ours, ratio) = timing(found, 1)
        print(
            f"| {shape.blocks} blocks of {shape.width} | {n} | {copying:.2f} | {ours:.2f} | {ratio:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["order", "large", "room", "error"])
    parser.add_argument("--n", type=int, default=8, help="texts a row of the part error")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[16, 32, 64], help="of the part error"
    )
    parser.add_argument("--repeats", type=int, default=2)
    told = parser.parse_args()
    print(f"# {torch.get_num_threads()} threads, torch {torch.__version__}")
    parts = {
        "error": lambda: error(told.n, told.repeats, told.steps),
        "order": order,
        "large": lambda: large(told.repeats),
        "room": lambda: room(told.repeats),
    }
    for part in told.parts:
        parts[part]()


if __name__ == "__main__":
    main()
