"""The denoising loop, and `sample`: from a model and a seed to texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.data.tokenizers import start_token
from unmask.models.denoiser import for_inference
from unmask.samplers.autoregressive import autoregress
from unmask.samplers.cached_forward import (
    CachedForward,
    Forward,
    NetworkCall,
    WindowedDenoiser,
)
from unmask.samplers.categorical import Draw, check_finite, iter_log_probs
from unmask.samplers.counts import Grid
from unmask.samplers.inputs import (
    DRAWN_BYTES,
    AutoregressiveModel,
    Frame,
    Prompt,
    TextModel,
    check_device,
    check_device_memory,
    check_model,
    check_pinned,
    given_tokens,
    length_of,
    network_of,
)
from unmask.samplers.latent import draw_latent
from unmask.samplers.options import SampleOptions
from unmask.samplers.steps import LogProbs, Query, RevealStep, Sampler, SamplingProblem, Step
from unmask.samplers.unmasking import reveal
from unmask.types import Denoiser, PerSequence, Tokens

# (pins [b, L], number of the first sample) -> the frames of the run
Run: TypeAlias = Callable[[Tensor, int], Iterator[Frame]]


@dataclass(frozen=True)
class Samples:
    """Drawn texts and their cost.

    Attributes:
        tokens: Token ids, int64 [n, L].
        texts: n strings; None if the model has no tokenizer.
        nfe: The network calls of each sample, int64 [n], independent of the batch. A window counts
            as a call.
        calls: The network calls of the whole batch.
    """

    tokens: Tokens
    texts: list[str] | None
    nfe: Tensor
    calls: int


def sample(
    model: TextModel,
    n: int = 4,
    length: int | None = None,
    steps: int = 16,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    prompt: Prompt | None = None,
    pinned: Tensor | None = None,
    device: torch.device | str = "cpu",
    *,
    top_k: int | None = None,
    sampler: str | Sampler | None = None,
    grid: str | Grid = "uniform",
    draw: str | Draw = "gumbel_max",
    first: int = 0,
    batch_size: int | None = None,
    order: str | None = None,
    cache: int | None = None,
) -> Samples:
    """Draw n texts of `length` tokens in `steps` steps.

    The page docs/choosing-a-sampler.md compares the samplers. `sample_with` takes all arguments but
    the model as one value, `SampleOptions`.

    Args:
        model: A diffusion model (.denoiser .process .schedule .tokenizer), or an autoregressive one
            (.predictor .tokenizer), which makes one network call a token.
        n: Number of samples.
        length: Tokens of a sample, prompt included; None: the model's own length.
        steps: Steps from noise to text. An autoregressive model ignores them.
        seed: A 64-bit number. At equal logits sample i is a function of (model, seed, first + i).
        temperature: Divides log p(x0).
        top_p: Probability of the tokens to keep, after temperature and top-k.
        prompt: Text, or ids [P], at the start of every sample.
        pinned: ids [n, length], -1 where free: infilling. Only masked diffusion draws the free
            tokens from the model's law.
        device: Device of the model.
        top_k: Number of tokens to keep, after the temperature.
        sampler: "order=spread" (default in masked diffusion), "ancestral" (default otherwise),
            "reveal" (random order), "greedy_tail", "confidence", "psi:0.5", "remdm_cap:0.02",
            "remdm_rescale:0.015", "remdm_loop:0.02", "entropy_bounded:0.1", "blockwise:16", or a
            `Sampler`. Or an order with a count, such as "order=confidence,blocks=16,count=grid".
        grid: "uniform", "cosine", "released" (one step more than `steps`), "loop", or a `Grid`.
        draw: "gumbel_max", "inverse_cdf", "gumbel_max_float32", or a `Draw`.
        first: Number of the first sample.
        batch_size: Samples in a network call; None: all. With 1, no bit of a sample depends on n.
        order: The order of unmasking, in place of a sampler: "random", "spread", "confidence",
            "entropy" or "margin". It is short for sampler="order=ORDER", and takes blocks and a
            count too: "spread,count=equal".
        cache: Steps from one full forward pass to the next, with cached windows in between
            (`samplers.cached_forward`): faster, approximate. None or 1: every pass is a full one.

    Raises:
        ValueError: An argument is out of range, or the model's log-probabilities are not numbers.
    """
    options = SampleOptions(
        n, length, steps, seed, temperature, top_p, prompt, pinned, device, top_k, sampler, grid,
        draw, first, batch_size, order, cache,
    )  # fmt: skip
    return sample_with(model, options)


def sample_with(model: TextModel, options: SampleOptions) -> Samples:
    """Draw texts with options as one value. `sample` describes the options and the errors."""
    batches = list(iter_samples(model, options))
    texts = [text for batch in batches for text in batch.texts or []]
    return Samples(
        torch.cat([batch.tokens for batch in batches]),
        None if model.tokenizer is None else texts,
        torch.cat([batch.nfe for batch in batches]),
        sum(batch.calls for batch in batches),
    )


def iter_samples(model: TextModel, options: SampleOptions) -> Iterator[Samples]:
    """Draw texts in batches of `options.batch_size`, and yield each batch when it is drawn."""
    check_model(model)
    n, length, pinned = options.n, length_of(model, options.length), options.pinned
    if pinned is not None:
        check_pinned(pinned, n, length)
    check_device_memory(n, length, DRAWN_BYTES, "cpu")
    run, size = _runner(model, options), options.batch_size or n
    for low in range(0, n, size):
        high = min(low + size, n)
        part = None if pinned is None else pinned[low:high]
        pins = given_tokens(model, high - low, length, options.prompt, part, options.device)
        nfe, calls = torch.zeros_like(pins[:, 0]), 0
        for frame in run(pins, options.first + low):
            nfe.index_add_(0, frame.rows, torch.ones_like(frame.rows))
            calls += len(frame.rows) > 0
        tokenizer = model.tokenizer
        texts = None if tokenizer is None else [*map(tokenizer.decode, frame.z.tolist())]
        yield Samples(frame.z, texts, nfe, calls)


def watch(model: TextModel, options: SampleOptions) -> Iterator[Frame]:
    """Return the frames of a run, one for each step, for players and progress bars.

    The text of the last frame is that of `sample`. All samples are one batch. The arguments are
    checked before the first frame is read.
    """
    check_model(model)
    n, length, prompt = options.n, length_of(model, options.length), options.prompt
    run = _runner(model, options)
    pins = given_tokens(model, n, length, prompt, options.pinned, options.device)
    return run(pins, options.first)


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    problem: SamplingProblem,
    sampler: Sampler = reveal,
    cache: int | None = None,
) -> Iterator[Frame]:
    """Yield the text before the first step and after each step of a sampler.

    A step makes at most one network call, on the samples of its query, at its alpha (the grid's, or
    `Query.alpha`). The head is applied to the positions of the query only. A step whose query is
    empty makes no call. With `cache`, most calls compute a window: see `samplers.cached_forward`.

    Args:
        denoiser: The model.
        problem: Given tokens, random numbers, grid, filters and draw.
        sampler: Maps the problem to its steps.
        cache: Steps from one full forward pass to the next. None or 1: every pass is a full one.

    Raises:
        ValueError: The sampler breaks the rules of `samplers.steps`, or log p of a drawn
            position is not a number. Checks of values come after the last step.
    """
    steps = _steps_of(sampler, problem)
    forward: Forward = partial(full_forward, denoiser, steps)
    if cache is not None and cache != 1:
        forward = CachedForward(denoiser, problem, steps, cache)
    z, alphas = problem.canvas(), problem.alphas.tolist()
    broken = torch.zeros((), dtype=torch.bool, device=z.device)
    given = ~problem.free
    yield Frame(0, alphas[0], z, torch.zeros_like(problem.free), z.new_empty(0))
    for k, step in enumerate(steps):
        query = step.query(z)
        if not isinstance(query, Query):
            raise ValueError(
                f"query of step {k} is not a Query: got a value of type {type(query).__name__}, "
                "want Query.of(mask) or Query.at(samples, columns)"
            )
        alpha = query.alpha
        if alpha is None:
            if k + 1 >= len(alphas):
                raise ValueError(
                    f"steps is too small: got a grid of {len(alphas) - 1}, want {len(steps)} "
                    "for this sampler; raise steps, or give an alpha in each query"
                )
            alpha = problem.alphas[k].to(z.device).expand(len(z))
        _check_tensor(f"alpha in the query of step {k}", alpha, z[:, 0], "the alpha of each sample")
        call = forward(k, z, alpha, query)
        after = step(z, () if call is None else _log_probs(problem, query, call, broken))
        _check_tensor(f"text of step {k}", after, z, "the text after the step", z.dtype)
        reached = alphas[k + 1] if query.alpha is None else float(problem.level(after).mean())
        rows = z.new_empty(0) if call is None else call[0]
        yield Frame(k + 1, reached, after, after != z, rows)
        z = after
    check_finite(broken)
    if bool((z != problem.pins)[given].any()):
        raise ValueError("sampler changed a given token: a step may change `problem.free` only")


def _check_tensor(
    name: str, value: object, like: Tensor, meaning: str, dtype: torch.dtype | None = None
) -> None:
    """Raise ValueError unless a sampler's value is a tensor of this shape, and of this dtype."""
    if isinstance(value, Tensor) and value.shape == like.shape and dtype in (None, value.dtype):
        return
    if isinstance(value, Tensor):
        got = f"{str(value.dtype).removeprefix('torch.')} {[*value.shape]}"
    else:
        got = f"a value of type {type(value).__name__}"
    want = str(dtype).removeprefix("torch.") + " " if dtype else ""
    raise ValueError(
        f"{name} is not what the sampler must give: got {got}, want a tensor {want}"
        f"{[*like.shape]} ({meaning})"
    )


def _steps_of(sampler: Sampler, problem: SamplingProblem) -> Sequence[Step]:
    """The steps of a sampler; ValueError if the value is not a list."""
    steps = sampler(problem)
    if not isinstance(steps, Sequence):
        raise ValueError(
            f"sampler returned a {type(steps).__name__}, want a list of steps; if it is a function "
            "that makes samplers, call it: sampler=make(...)"
        )
    return steps


def full_forward(
    denoiser: Denoiser,
    steps: Sequence[Step],
    k: int,
    z: Tokens,
    alpha: PerSequence,
    query: Query,
) -> NetworkCall | None:
    """Make a full forward pass for the query of step k at z; None if the query is empty.

    Two shortcuts are exact. If all samples have the same text and alpha (first step), one row is
    computed. If the positions were known before the first call, the last block computes only those.
    """
    rows, step = query.rows, steps[k]
    if not len(rows):
        return None
    if k == 0 and bool((z == z[:1]).all()) and bool((alpha == alpha[0]).all()):
        return rows, denoiser(z[:1], alpha[:1])
    if isinstance(step, RevealStep) and isinstance(denoiser, WindowedDenoiser):
        return rows, denoiser.forward_window(z[rows], alpha[rows], step.columns, None, None)
    return rows, denoiser(z[rows], alpha[rows])


def _log_probs(
    problem: SamplingProblem, query: Query, call: NetworkCall, broken: Tensor
) -> LogProbs:
    rows, prediction = call
    at = samples, columns = query.samples, query.columns
    # A prediction of one row holds for every sample.
    row = torch.searchsorted(rows, samples) if prediction.shape[0] > 1 else 0
    index = row * prediction.shape[1] + columns
    return iter_log_probs(
        prediction, index, at, problem.filters.temperature, problem.mask_id, broken
    )


def _runner(model: TextModel, options: SampleOptions) -> Run:
    """Make the function that runs one batch. Values common to all batches are computed here."""
    check_device(network_of(model), options.device)
    seed, device = options.seed, options.device
    filters, draw = options.filters, options.draw_value
    if isinstance(model, AutoregressiveModel):
        options.check_autoregressive()
        predictor = model.predictor
        start = start_token(model.tokenizer, predictor.vocab_size, predictor.mask_id)

        def write(pins: Tensor, first: int) -> Iterator[Frame]:
            latent = draw_latent(len(pins), pins.shape[1], seed, first, device)
            return autoregress(predictor, start, pins, latent, filters, draw)

        return write
    process, sampler = model.process, options.sampler_value(model.process)
    alphas = options.grid_value(options.steps, model.schedule)
    denoiser = for_inference(model.denoiser)

    def unmask(pins: Tensor, first: int) -> Iterator[Frame]:
        latent = draw_latent(len(pins), pins.shape[1], seed, first, device)
        problem = SamplingProblem(process, pins, latent, alphas, filters, draw)
        for frame in denoise(denoiser, problem, sampler, options.cache):
            yield frame
        drawn = frame.z[problem.free]
        if problem.mask_id is not None and bool((drawn == problem.mask_id).any()):
            raise ValueError(
                "sampler left MASKs: its steps must draw a token at all positions of `problem.free`"
            )
        if bool(((drawn < 0) | (drawn >= process.vocab_size)).any()):
            raise ValueError(
                "sampler drew ids outside the vocabulary: got "
                f"{[int(value) for value in drawn.aminmax()]} as least and greatest id, want 0 .. "
                f"{process.vocab_size - 1}"
            )

    return unmask
