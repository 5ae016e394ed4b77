"""The factorisation error of few-step samplers on a synthetic source with its exact denoiser.

There is no judge and no training error. The remaining error comes from drawing several tokens of a
step as if they were independent. Three numbers compare sampled texts x ~ q with the source p:

    nll            E_q[-log p(x)] / L, nats a token. For q = p it is the entropy of p. It is *not* a
                   distance: a sampler that repeats the most likely text has the lowest.
    kl             E_r KL(q(x | r) || p) / L, nats a token, where r is the randomness of the order.
                   It is an upper bound of KL(q || p), and 0 only if q = p. It is known if the order
                   does not depend on the drawn tokens: log q is then a sum over steps.
    pair_distance  The total variation between the shares of adjacent pairs and their probabilities
                   under p. `chance_distance` gives its value by chance alone for the same n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.diffusion.levels import random_order, spread_order
from unmask.evaluation.measure import Measure, mean
from unmask.evaluation.metrics import entropy
from unmask.experiments.exact.duality_checks import ROUNDING, Check
from unmask.experiments.exact.oracle import ExactModel
from unmask.experiments.exact.synthetic_sources import SyntheticSource
from unmask.limits import check_range
from unmask.rng import generator
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import watch
from unmask.samplers.steps import Sampler
from unmask.samplers.unmasking import Unmasking, confidence, reveal
from unmask.types import Tokens

BATCH = 1000  # texts a call
REPLICATES = 32  # sets of n texts that `chance_distance` draws
UNIT = "nats a token"
# Largest pair distance: the mean by chance and so many standard deviations. So many, because the
# distribution is skewed, and estimated from REPLICATES sets only.
_DEVIATIONS = 6
_HALVINGS = 16


# Equal counts: L k / N of L tokens are visible after step k. So these samplers make N calls, as
# `confidence` does. At N = L each call draws one token, so that q = p. In contrast, `reveal` draws
# the number of tokens of a step, which may be 0. At N = L it makes about 0.64 L calls, and q != p.
even = Unmasking(random_order, "equal")
# The tokens of a step are far apart. In a Markov chain, where neighbours depend most on each other,
# this shows how much an order can gain.
spread = Unmasking(spread_order, "equal")


@dataclass(frozen=True)
class DrawnSamples:
    """Sampled texts.

    Attributes:
        tokens: [n, L] ids.
        nfe: [n] network calls.
        log_q: [n] log q(tokens | order) in nats. None if it is not known.
    """

    tokens: Tokens
    nfe: Tensor
    log_q: Tensor | None


@dataclass(frozen=True)
class GapRow:
    """The numbers of a set of n texts.

    Attributes:
        steps: N, the steps of the grid.
        nfe: Mean network calls a text, measured.
        nll, kl: See the module docstring. kl is None if the order depends on drawn tokens.
        excess: nll - entropy of the source.
        pair_distance: Total variation of adjacent pairs.
        entropy: Mean unigram entropy inside a text, nats.
        pair_entropy: Entropy of the adjacent pairs of all texts, nats.
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
    """`pair_distance` of the source's own texts: mean and standard deviation over sets of texts."""

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
    """Draw texts in batches. Sample i is equal to that of `unmask.sample` with this seed.

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
            nfe[low + frame.rows] += 1
            if traced and len(frame.rows):
                z, changed = before.z[frame.rows], frame.changed[frame.rows]
                prediction = model(z, torch.full((len(z),), before.alpha, dtype=torch.float64))
                log_p = prediction.log_p(changed).gather(-1, frame.z[frame.changed][:, None])
                total.index_add_(0, frame.changed.nonzero()[:, 0], log_p.squeeze(-1))
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
    pairs = pair_shares(source, drawn.tokens)
    return GapRow(
        sampler=name,
        steps=steps,
        nfe=float(drawn.nfe.double().mean()),
        nll=nll,
        excess=nll.value - source.entropy(length),
        kl=kl,
        pair_distance=_total_variation(pairs, source.pairs(length)),
        entropy=mean(entropy(drawn.tokens), "nats"),
        pair_entropy=float(torch.special.entr(pairs).sum()),
    )


def pair_shares(source: SyntheticSource, tokens: Tokens) -> Tensor:
    """The shares of the adjacent pairs of texts [n, L], over all texts and positions: [V, V]."""
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
    distances = [_total_variation(pair_shares(source, tokens), pairs) for tokens in sets]
    values = torch.tensor(distances, dtype=torch.float64)
    return ChanceDistance(float(values.mean()), float(values.std()))


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
    check_range("nfe", nfe, 0 < nfe < length, f"0 < nfe < {length} calls a text of `reveal`")
    steps = range(1, length**2 + 1)
    return min(steps, key=lambda count: abs(count * (1 - (1 - 1 / count) ** length) - nfe))


def calibrate_entropy_bound(
    model: ExactModel, nfe: float, n: int, length: int, seed: int
) -> tuple[float, float, float]:
    """Find entropy bounds at which `entropy_bounded` makes `nfe` calls a text.

    The calls can jump at a bound that admits one more token of *every* text. An example is a
    stationary source, because its tokens have equal entropies at first. So there are two bounds,
    one on each side of the jump.

    Args:
        model: An exact model.
        nfe: Calls a text, 1 <= nfe <= length.
        n: Texts in each step of the bisection.
        length: Tokens of a text.
        seed: Seed of the latents.

    Returns:
        (low, high, share): draw a `share` of the texts at `low` nats, and the rest at `high`.
    """
    check_range("nfe", nfe, 1 <= nfe <= length, f"1 <= nfe <= {length} calls a text")

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
    """Measure orders of unmasking at nearly `nfe` calls a text, 1 <= nfe < length."""
    for name, sampler, count, traced in (
        ("reveal", reveal, reveal_steps(nfe, length), True),
        ("even", even, nfe, True),
        ("spread", spread, nfe, True),
        ("confidence", confidence, nfe, False),
    ):
        yield from gap_rows(model, name, sampler, [count], n, length, seed, traced=traced)
    low, high, share = calibrate_entropy_bound(model, nfe, min(n, BATCH // 2), length, seed)
    some = round(share * n)
    parts = []
    for bound, size, first in ((low, some, 0), (high, n - some, some)):
        if size:
            name = f"entropy_bounded:{bound}"
            part = draw(model, name, length, size, length, seed, traced=True, first=first)
            parts.append(vars(part))
    both = DrawnSamples(**{key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    yield measure(model.source, f"entropy_bounded:{(low + high) / 2:.3g}", length, both)


def gap_checks(
    source: SyntheticSource,
    rows: Sequence[GapRow],
    even_rows: Sequence[GapRow],
    least: ChanceDistance,
    seed: int,
) -> list[Check]:
    """Check `even` at N = L against the source, and samplers in one call against the marginals.

    No check expects that kl falls with more steps. That is an observation, not a theorem: a refined
    order can have a larger KL(q || p).

    Args:
        source: The source.
        rows: Rows of `reveal` at increasing steps, from 1.
        even_rows: Rows of `even`, the last one at N = L.
        least: `chance_distance` for the same number of texts.
        seed: Seed of the product of marginals.
    """
    last, n = even_rows[-1], even_rows[-1].nll.n
    length = last.steps
    product = torch.multinomial(source.marginals(length), n, True, generator=generator(seed)).T
    independent = mean(-source.log_prob(product) / length, UNIT)
    kl = abs(last.kl.value) + (last.kl.sem or 0.0) if last.kl else math.inf
    distance, limit = last.pair_distance, least.mean + _DEVIATIONS * least.deviation
    checks = [
        _zero_check("one token a call: nll = entropy", last.excess, last.nll.sem, n),
        Check("one token a call: q = p, text by text", kl, kl, ROUNDING, None, n),
        Check("one token a call: pairs as by chance", distance, distance, limit, None, n),
    ]
    for row in (rows[0], even_rows[0]):
        error = row.nll.value - independent.value
        sem = math.hypot(row.nll.sem or 0, independent.sem or 0)
        name = f"one call: product of marginals ({row.sampler})"
        checks.append(_zero_check(name, error, sem, n))
    return checks


def _zero_check(name: str, error: float, sem: float | None, n: int) -> Check:
    """Check that a difference is 0, by its number of standard errors."""
    scale = max(sem or 0.0, 1e-12)
    statistic = abs(error) / scale
    return Check(name, statistic, abs(error), scale, math.erfc(statistic / math.sqrt(2)), n)


def _total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)
