"""The factorisation error of few-step samplers on a synthetic source with its exact denoiser.

There is no judge and no training error. The remaining error comes from drawing several tokens of a
step as if they were independent. Three numbers compare sampled texts x ~ q with the source p:

    nll            E_q[-log p(x)] / L, nats a token; for q = p the entropy of p. It is *not* a
                   distance: a sampler that repeats the most likely text has the lowest
    kl             E_r KL(q(x | r) || p) / L, nats a token, r the randomness of the order: >= KL(q
                   || p) >= 0, and 0 only if q = p. Known if the order does not depend on the drawn
                   tokens, because log q is then a sum over steps
    pair_distance  total variation between the shares of adjacent pairs and their probabilities
                   under p; `chance_distance` gives its value by chance alone for the same n
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.evaluation.measure import Measure, mean
from unmask.evaluation.metrics import entropy
from unmask.experiments.exact.duality_checks import SIGNIFICANCE, Check
from unmask.experiments.exact.equal_steps import bit_reversed_order, equal_count_order
from unmask.experiments.exact.oracle import ExactModel
from unmask.experiments.exact.synthetic_sources import SyntheticSource
from unmask.rng import generator
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import watch
from unmask.samplers.steps import Sampler
from unmask.samplers.unmasking import confidence, reveal
from unmask.types import Tokens

BATCH = 1000  # texts a call
REPLICATES = 32  # sets of n texts that `chance_distance` draws
UNIT = "nats a token"
ROUNDING = 1e-9  # nats, for exact claims
# Limit of a distance in standard deviations above the mean of `ChanceDistance`. Its distribution is
# skewed, and estimated from REPLICATES sets only.
_DEVIATIONS = 6
_HALVINGS = 16


@dataclass(frozen=True)
class DrawnSamples:
    """Sampled texts.

    Attributes:
        tokens: [n, L] ids
        nfe: [n] network calls
        log_q: [n] log q(tokens | order) in nats; None if it is not known
    """

    tokens: Tokens
    nfe: Tensor
    log_q: Tensor | None


@dataclass(frozen=True)
class GapRow:
    """The numbers of a set of n texts.

    Attributes:
        nfe: measured: mean network calls a text
        nll, kl: see the module docstring; kl is None if the order depends on drawn tokens
        excess: nll - entropy of the source
        pair_distance: total variation of adjacent pairs
        entropy: mean unigram entropy inside a text, nats
        pair_entropy: entropy of the adjacent pairs of all texts, nats
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
class ChanceDistance:
    """`pair_distance` of texts of the source: mean and standard deviation over REPLICATES sets."""

    mean: float
    deviation: float


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
    """Draw texts in batches; sample i is that of `unmask.sample` with this seed.

    Args:
        model: An exact model.
        sampler: A sampler or its name.
        steps: N.
        n: Texts.
        length: Tokens of a text.
        seed: Seed of the latents.
        traced: Also compute log q, at twice the cost. It is correct only for samplers of masked
            diffusion whose order does not depend on the drawn tokens.
        first: The number of the first sample.
    """
    tokens, log_q = [], []
    nfe = torch.zeros(n, dtype=torch.int64)
    for low in range(0, n, BATCH):
        size = min(BATCH, n - low)
        total = torch.zeros(size, dtype=torch.float64)
        options = SampleOptions(size, length, steps, seed, sampler=sampler, first=first + low)
        frames = watch(model, options)
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
    """Compare a set of texts with the source."""
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
    """The shares of adjacent pairs in texts [n, L], over all texts and positions: [V, V]."""
    size = source.vocab_size
    codes = (tokens[:, :-1] * size + tokens[:, 1:]).flatten()
    return torch.bincount(codes, minlength=size**2).double().view(size, size) / len(codes)


def own_row(source: SyntheticSource, n: int, length: int, seed: int) -> GapRow:
    """The row of n texts of the source, as of a perfect sampler."""
    tokens = source.sample(n, length, generator(seed))
    no_calls = torch.zeros(n, dtype=torch.int64)
    return measure(source, "source", 0, DrawnSamples(tokens, no_calls, source.log_prob(tokens)))


def chance_distance(source: SyntheticSource, n: int, length: int, seed: int) -> ChanceDistance:
    """Estimate `pair_distance` of n texts of the source by chance alone."""
    rng, pairs = generator(seed), source.pairs(length)
    sets = (source.sample(n, length, rng) for _ in range(REPLICATES))
    distances = [_total_variation(pair_counts(source, tokens), pairs) for tokens in sets]
    values = torch.tensor(distances, dtype=torch.float64)
    return ChanceDistance(float(values.mean()), float(values.std()))


def powers(length: int) -> list[int]:
    """1, 2, 4, .. below `length`, and `length`."""
    return [*(2**k for k in range(length.bit_length()) if 2**k < length), length]


def gap_rows(
    model: ExactModel,
    name: str,
    sampler: str | Sampler,
    steps: Sequence[int],
    n: int,
    length: int,
    seed: int,
    *,
    traced: bool = False,
) -> Iterator[GapRow]:
    """Measure a row for each number of steps; arguments as in `draw`."""
    for count in steps:
        drawn = draw(model, sampler, count, n, length, seed, traced=traced)
        yield measure(model.source, name, count, drawn)


def reveal_steps(nfe: float, length: int) -> int:
    """The number of steps N at which `reveal` makes closest to `nfe` < length calls a text.

    On the uniform grid each of the L tokens is in one of N steps at random. Therefore
    nfe = N (1 - (1 - 1/N)^L).
    """
    if not 0 < nfe < length:
        raise ValueError(
            f"nfe is out of range: got {nfe}, want 0 < nfe < {length} calls a text of `reveal`"
        )

    def error(count: int) -> float:
        return abs(count * (1 - (1 - 1 / count) ** length) - nfe)

    return min(range(1, length**2 + 1), key=error)


def calibrate_entropy_bound(
    model: ExactModel, nfe: float, n: int, length: int, seed: int
) -> tuple[float, float, float]:
    """Find entropy bounds at which `entropy_bounded` makes `nfe` calls a text.

    Returns (low, high, share): a `share` of the texts is drawn at `low` nats, the rest at `high`.
    The calls can jump at a bound that admits one more token of *every* text. This happens in a
    stationary source, where all tokens have equal entropy at first. So there are two bounds, one on
    each side.

    Args:
        model: An exact model.
        nfe: Calls a text, 1 <= nfe <= length.
        n: Texts in each step of the bisection.
        length: Tokens of a text.
        seed: Seed of the latents.
    """
    if not 1 <= nfe <= length:
        raise ValueError(f"nfe is out of range: got {nfe}, want 1 <= nfe <= {length} calls a text")

    def calls(bound: float) -> float:
        drawn = draw(model, f"entropy_bounded:{bound}", length, n, length, seed)
        return float(drawn.nfe.double().mean())

    low, high = 0.0, length * math.log(model.source.vocab_size) + 1  # a token a call; all in one
    most, least = calls(low), 1.0
    if most <= nfe:
        return low, low, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mean_nfe = calls(middle)
        if mean_nfe > nfe:
            low, most = middle, mean_nfe
        else:
            high, least = middle, mean_nfe
    return low, high, (nfe - least) / (most - least)


def order_rows(model: ExactModel, nfe: int, n: int, length: int, seed: int) -> Iterator[GapRow]:
    """Measure the orders of masked diffusion at (nearly) `nfe` calls a text, 1 <= nfe < length."""
    for name, sampler, count, traced in (
        ("reveal", reveal, reveal_steps(nfe, length), True),
        ("even", equal_count_order, nfe, True),
        ("spread", bit_reversed_order, nfe, True),
        ("confidence", confidence, nfe, False),
    ):
        drawn = draw(model, sampler, count, n, length, seed, traced=traced)
        yield measure(model.source, name, count, drawn)
    low, high, share = calibrate_entropy_bound(model, nfe, min(n, BATCH // 2), length, seed)
    some = round(share * n)
    parts = [
        draw(
            model,
            f"entropy_bounded:{bound}",
            length,
            size,
            length,
            seed,
            traced=True,
            first=first,
        )
        for bound, size, first in ((low, some, 0), (high, n - some, some))
        if size
    ]
    columns = [[vars(part)[name] for part in parts] for name in ("tokens", "nfe", "log_q")]
    both = DrawnSamples(*map(torch.cat, columns))
    yield measure(model.source, f"entropy_bounded:{(low + high) / 2:.3g}", length, both)


def gap_checks(
    source: SyntheticSource,
    rows: Sequence[GapRow],
    even_rows: Sequence[GapRow],
    least: ChanceDistance,
    seed: int,
) -> list[Check]:
    """Check `equal_count_order` at N = L against the source, and one call against the marginals.

    A lower kl with more steps is an observation, not a theorem, so it is not checked. A refined
    order can have a larger KL(q || p).

    Args:
        source: The source.
        rows: Rows of `reveal` at increasing steps, from 1.
        even_rows: Rows of `equal_count_order`, the last one at N = L.
        least: `chance_distance` for the same number of texts.
        seed: Seed of the product of marginals.
    """
    last, n = even_rows[-1], even_rows[-1].nll.n
    length = last.steps
    product = torch.multinomial(source.marginals(length), n, True, generator=generator(seed)).T
    independent = mean(-source.log_prob(product) / length, UNIT)
    same = abs(last.kl.value) + (last.kl.sem or 0.0) if last.kl else math.inf
    limit = least.mean + _DEVIATIONS * least.deviation
    distance = last.pair_distance
    checks = [
        normal_check("one token a call: nll = entropy", last.excess, last.nll.sem, n),
        Check(
            "one token a call: q = p, text by text", same, same, ROUNDING, None, n, same < ROUNDING
        ),
        Check(
            "one token a call: pairs as by chance",
            distance,
            distance,
            limit,
            None,
            n,
            distance < limit,
        ),
    ]
    for row in (rows[0], even_rows[0]):
        error = row.nll.value - independent.value
        sem = math.hypot(row.nll.sem or 0, independent.sem or 0)
        checks.append(
            normal_check(f"one call: product of marginals ({row.sampler})", error, sem, n)
        )
    return checks


def normal_check(name: str, error: float, sem: float | None, n: int) -> Check:
    """Check that a difference is 0, by its number of standard errors."""
    scale = max(sem or 0.0, 1e-12)
    statistic = abs(error) / scale
    p_value = math.erfc(statistic / math.sqrt(2))
    return Check(name, statistic, abs(error), scale, p_value, n, p_value >= SIGNIFICANCE)


def _total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)
