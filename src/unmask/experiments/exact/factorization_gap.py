"""What few steps cost when nothing else is wrong: samplers on a source whose law is known, with its exact denoiser.

No judge and no training error is in the way, so what is left is the error of drawing several tokens at once as if they
were independent. Three numbers of a set of drawn texts x ~ q against the source p, all in nats a token:

    nll   E_q[-log p(x)] / L; the entropy of p where q = p. It is *not* a distance: a sampler that repeats the likeliest
          text has the lowest
    kl    E_r KL(q(x | r) || p) / L, r the randomness of the order: >= KL(q || p) >= 0, and 0 only where q = p. Known
          where the order does not look at the tokens it draws, because log q then is a sum over steps
    pair_distance   total variation between the counts of adjacent pairs and their law under p; `floor` is what chance
          alone gives at the same n
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from unmask.evaluation.measure import Measure, mean
from unmask.evaluation.metrics import entropy
from unmask.experiments.exact.duality_checks import SIGNIFICANCE, Check
from unmask.experiments.exact.oracle import ExactModel
from unmask.experiments.exact.synthetic_sources import SyntheticSource
from unmask.rng import generator
from unmask.samplers.entropy_bounded import entropy_bounded
from unmask.samplers.sample import watch
from unmask.samplers.steps import RevealStep, Sampler, Step, Task, confidence, reveal
from unmask.samplers.unmasking_schedule import Reads
from unmask.types import Tokens

BATCH = 1000  # texts a call
REPLICATES = 32  # exact sets of n texts behind the floor of `pair_distance`
UNIT = "nats a token"
ROUNDING = 1e-9  # nats, of a claim without exceptions
_DEVIATIONS = (
    6  # above the mean of `Floor`, whose law is skewed and known from REPLICATES sets only
)
_HALVINGS = 16


@dataclass(frozen=True)
class DrawnSamples:
    """tokens [n, L], calls nfe [n], and log q(tokens | order) [n] nats where it is known."""

    tokens: Tokens
    nfe: Tensor
    log_q: Tensor | None


@dataclass(frozen=True)
class GapRow:
    """A set of n texts against the law of the source.

    nfe            measured: mean network calls a text
    nll, kl        see above; kl None where the order looks at the tokens drawn
    excess         nll - entropy of the source
    pair_distance  total variation of adjacent pairs, >= the floor of chance
    entropy        unigram entropy inside a text, as the field measures it, nats
    pair_entropy   of the adjacent pairs of all texts, nats
    """

    sampler: str
    steps: int
    nfe: float
    nll: Measure
    excess: float
    kl: Measure | None
    pair_distance: float
    entropy: Measure
    pair_entropy: float


@dataclass(frozen=True)
class Floor:
    """`pair_distance` of n texts of the source itself: mean and standard deviation over REPLICATES sets."""

    mean: float
    deviation: float


def even(task: Task) -> Sequence[Step]:
    """Masked tokens in random order (that of u), equally many a step: F k / N of F shown after step k, rounded.

    `reveal` draws how many tokens a step shows, and some steps show none: at N = L it makes about 0.64 L calls, and is
    not exact. This makes N calls, as `confidence` does, and at N = L it draws one token a call: exactly p.
    """
    return _ranked(task, task.latent.u)


def spread(task: Task) -> Sequence[Step]:
    """As `even`, in one fixed order that keeps the tokens of a step far apart: the bits of the position, reversed.

    Where neighbours tell most about each other, as in a Markov chain, this is what an order can gain at all.
    """
    length = task.pins.shape[1]
    bits = (length - 1).bit_length()
    key = sum((torch.arange(length) >> b & 1) << (bits - 1 - b) for b in range(bits)) + torch.zeros(
        length
    )
    return _ranked(task, key.double().expand(task.pins.shape))


def _ranked(task: Task, key: Tensor) -> Sequence[Step]:
    """Free tokens in rising order of key [n, L], equally many a step."""
    steps = len(task.alphas) - 1
    free = task.free.sum(1, keepdim=True)
    rank = key.masked_fill(~task.free, math.inf).argsort(1).argsort(1)
    bounds = (free * torch.arange(steps + 1) / steps + 0.5 + 1e-9).long()[:, None]  # [n, 1, N + 1]
    due = [task.free & (rank >= low) & (rank < high) for low, high in pairwise(bounds.unbind(-1))]
    return [
        RevealStep(task, Reads.of(each.flatten().nonzero().squeeze(-1), rank.shape[1]))
        for each in due
    ]


def draw(
    model: ExactModel,
    sampler: str | Sampler,
    steps: int,
    n: int,
    length: int,
    seed: int,
    *,
    traced: bool = False,
    first: int = 0,
) -> DrawnSamples:
    """n texts of `sampler`, in batches; sample i is that of `unmask.sample` with this seed, from `first` on.

    traced  also log q: right only for samplers of masked diffusion that choose *where* without looking at *what* they
            draw, and then at twice the price
    """
    tokens, log_q = [], []
    nfe = torch.zeros(n, dtype=torch.int64)
    for low in range(0, n, BATCH):
        size = min(BATCH, n - low)
        total = torch.zeros(size, dtype=torch.float64)
        frames = watch(model, size, length, steps, seed, sampler=sampler, first=first + low)
        before = next(frames)
        for frame in frames:
            nfe[low : low + size].index_add_(0, frame.rows, torch.ones_like(frame.rows))
            if traced and len(frame.rows):
                z, changed = before.z[frame.rows], frame.changed[frame.rows]
                table = model.denoiser(z, torch.full((len(z),), before.alpha, dtype=torch.float64))
                log_p = table.log_p(changed).gather(-1, frame.z[frame.changed][:, None]).squeeze(-1)
                total.index_add_(0, frame.changed.nonzero()[:, 0], log_p)
            before = frame
        tokens.append(before.z)
        log_q.append(total)
    return DrawnSamples(torch.cat(tokens), nfe, torch.cat(log_q) if traced else None)


def measure(source: SyntheticSource, name: str, steps: int, drawn: DrawnSamples) -> GapRow:
    """The numbers of a set of texts."""
    length = drawn.tokens.shape[1]
    log_p = source.log_prob(drawn.tokens)
    nll = mean(-log_p / length, UNIT)
    kl = None if drawn.log_q is None else mean((drawn.log_q - log_p) / length, UNIT)
    pairs = pair_counts(source, drawn.tokens)
    return GapRow(
        sampler=name,
        steps=steps,
        nfe=float(drawn.nfe.double().mean()),
        nll=nll,
        excess=nll.value - source.entropy(length),
        kl=kl,
        pair_distance=_total_variation(pairs, source.pairs(length)),
        entropy=mean(entropy(drawn.tokens), "nats"),
        pair_entropy=float(-torch.xlogy(pairs, pairs).sum()),
    )


def pair_counts(source: SyntheticSource, tokens: Tokens) -> Tensor:
    """The shares of adjacent pairs in texts [n, L], over all texts and places: [V, V]."""
    size = source.vocab_size
    codes = (tokens[:, :-1] * size + tokens[:, 1:]).flatten()
    return torch.bincount(codes, minlength=size**2).double().view(size, size) / len(codes)


def own_row(source: SyntheticSource, n: int, length: int, seed: int) -> GapRow:
    """n texts of the source itself: what a perfect sampler would show."""
    tokens = source.sample(n, length, generator(seed))
    return measure(
        source,
        "source",
        0,
        DrawnSamples(tokens, torch.zeros(n, dtype=torch.int64), source.log_prob(tokens)),
    )


def floor(source: SyntheticSource, n: int, length: int, seed: int) -> Floor:
    """What chance alone gives `pair_distance` at n texts."""
    dice, law = generator(seed), source.pairs(length)
    found = [
        _total_variation(pair_counts(source, source.sample(n, length, dice)), law)
        for _ in range(REPLICATES)
    ]  # fmt: skip
    values = torch.tensor(found, dtype=torch.float64)
    return Floor(float(values.mean()), float(values.std()))


def powers(length: int) -> list[int]:
    """1, 2, 4, .. below `length`, and `length`."""
    return [*(2**k for k in range(length.bit_length()) if 2**k < length), length]


def gap(
    model: ExactModel, name: str, sampler: str | Sampler, steps: Sequence[int], n: int, length: int, seed: int, *,
    traced: bool = False,
) -> Iterator[GapRow]:  # fmt: skip
    """A row for each number of steps."""
    for count in steps:
        yield measure(
            model.source, name, count, draw(model, sampler, count, n, length, seed, traced=traced)
        )


def reveal_steps(nfe: float, length: int) -> int:
    """The number of steps N at which `reveal` makes `nfe` < length calls a text, as near as it can be.

    On the uniform grid each of the L tokens falls in one of N steps at random: nfe = N (1 - (1 - 1/N)^L).
    """
    if not 0 < nfe < length:
        raise ValueError(
            f"nfe is the calls of `reveal` that are asked for: want 0 < nfe < {length}, got {nfe}"
        )
    return min(
        range(1, length**2 + 1),
        key=lambda count: abs(count * (1 - (1 - 1 / count) ** length) - nfe),
    )


def bounds(
    model: ExactModel, nfe: float, n: int, length: int, seed: int
) -> tuple[float, float, float]:
    """(low, high, share): `entropy_bounded` at `low` for that share of the texts, at `high` for the rest: `nfe` calls.

    By bisection, nats, over n latents. The calls a text can jump where a bound lets in one more token of *every* text,
    as in a stationary source, in which all tokens have one entropy at first: so two bounds, on both sides of the jump.
    """
    if not 1 <= nfe <= length:
        raise ValueError(
            f"nfe is the calls a text that are asked for: want 1 <= nfe <= {length}, got {nfe}"
        )

    def calls(bound: float) -> float:
        return float(
            draw(model, entropy_bounded(bound), length, n, length, seed).nfe.double().mean()
        )

    low, high = 0.0, length * math.log(model.source.vocab_size) + 1  # a token a call; all in one
    most, least = calls(low), 1.0
    if most <= nfe:
        return low, low, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = calls(middle)
        if found > nfe:
            low, most = middle, found
        else:
            high, least = middle, found
    return low, high, (nfe - least) / (most - least)


def orders(model: ExactModel, nfe: int, n: int, length: int, seed: int) -> Iterator[GapRow]:
    """The reveal orders of masked diffusion at (nearly) equal measured calls a text, 1 <= nfe < length."""
    for name, sampler, count, traced in (
        ("reveal", reveal, reveal_steps(nfe, length), True),
        ("even", even, nfe, True),
        ("spread", spread, nfe, True),
        ("confidence", confidence, nfe, False),
    ):
        yield measure(
            model.source, name, count, draw(model, sampler, count, n, length, seed, traced=traced)
        )
    low, high, share = bounds(model, nfe, min(n, BATCH // 2), length, seed)
    some = round(share * n)
    parts = [
        draw(model, entropy_bounded(bound), length, size, length, seed, traced=True, first=first)
        for bound, size, first in ((low, some, 0), (high, n - some, some))
        if size
    ]
    both = DrawnSamples(
        *(torch.cat([vars(part)[name] for part in parts]) for name in ("tokens", "nfe", "log_q"))
    )
    yield measure(model.source, f"entropy_bounded:{(low + high) / 2:.3g}", length, both)


def gap_checks(
    source: SyntheticSource,
    rows: Sequence[GapRow],
    even_rows: Sequence[GapRow],
    least: Floor,
    seed: int,
) -> list[Check]:
    """What must hold: `even` at N = L has the source's law, one call the product of the marginals.

    rows, even_rows  of `reveal` and `even` at growing steps, from 1; the last of even at N = L

    That more steps have a lower kl is seen and no theorem: a refined order can have a larger KL(q || p).
    """
    last, n = even_rows[-1], even_rows[-1].nll.n
    length = last.steps
    product = torch.multinomial(source.marginals(length), n, True, generator=generator(seed)).T
    alone = mean(-source.log_prob(product) / length, UNIT)
    same = abs(last.kl.value) + (last.kl.sem or 0.0) if last.kl else math.inf
    limit = least.mean + _DEVIATIONS * least.deviation
    far = last.pair_distance
    checks = [
        normal_check("one token a call: nll = entropy", last.excess, last.nll.sem, n),
        Check(
            "one token a call: q = p, text by text", same, same, ROUNDING, None, n, same < ROUNDING
        ),
        Check("one token a call: pairs near the floor", far, far, limit, None, n, far < limit),
    ]
    for row in (rows[0], even_rows[0]):
        error, sem = row.nll.value - alone.value, math.hypot(row.nll.sem or 0, alone.sem or 0)
        checks.append(
            normal_check(f"one call: product of marginals ({row.sampler})", error, sem, n)
        )
    return checks


def normal_check(name: str, error: float, sem: float | None, n: int) -> Check:
    """A difference that should be 0, in standard errors of its normal law."""
    scale = max(sem or 0.0, 1e-12)
    statistic = abs(error) / scale
    p_value = math.erfc(statistic / math.sqrt(2))
    return Check(name, statistic, abs(error), scale, p_value, n, p_value >= SIGNIFICANCE)


def _total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)
