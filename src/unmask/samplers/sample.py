"""The denoising loop, and `sample`: from a model and a seed to texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from unmask.data.tokenizers import start_token
from unmask.diffusion.correlated_masking import Structure, parse_structure
from unmask.diffusion.processes import MaskedProcess, Process
from unmask.diffusion.schedules import NoiseSchedule
from unmask.limits import INT64, MOST_STEPS, check_memory, seed_number, whole
from unmask.models.denoiser import NetworkDenoiser, for_inference
from unmask.samplers.autoregressive import Predictor, autoregress
from unmask.samplers.cached_forward import Calls, calls_of
from unmask.samplers.categorical import DRAWS, Draw, Filters, check_numbers, read
from unmask.samplers.grids import GRIDS, Grid
from unmask.samplers.inputs import Frame, Prompt, TextDecoder, check_pinned, pin
from unmask.samplers.latent import check_first, draw_latent
from unmask.samplers.parse import named, sampler_of
from unmask.samplers.steps import Sampler, Task, ancestral, greedy_tail, reveal
from unmask.samplers.unmasking_schedule import Laws, Reads
from unmask.types import Denoiser, Tokens

DRAWN_BYTES = 48  # of a token in the end: its id in a batch and in all of them, and as an int of Python in a list
_BY_LATENT = (
    reveal,
    greedy_tail,
)  # the samplers of MASKs that reveal at the levels u of the latent


@runtime_checkable
class DiffusionModel(Protocol):
    """A model that denoises."""

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def process(self) -> Process: ...

    @property
    def schedule(self) -> NoiseSchedule: ...

    @property
    def tokenizer(self) -> TextDecoder | None: ...


@runtime_checkable
class AutoregressiveModel(Protocol):
    """A model that predicts the next token."""

    @property
    def predictor(self) -> Predictor: ...

    @property
    def tokenizer(self) -> TextDecoder | None: ...


@dataclass(frozen=True)
class Samples:
    """Drawn texts and what they cost.

    tokens  int64 [n, L]
    texts   n strings; None where the model has no tokenizer
    nfe     int64 [n]: the network calls a sample takes part in, whatever the batch; one over a window counts as any
    calls   the network calls made for all of them
    """

    tokens: Tokens
    texts: list[str] | None
    nfe: Tensor
    calls: int


@torch.no_grad()
def denoise(
    denoiser: Denoiser, task: Task, sampler: Sampler = reveal, cache: int | None = None
) -> Iterator[Frame]:
    """Yield the canvas before the first step and after each step of `sampler`.

    A step calls the network with the alpha it starts from (the grid's, or its own: `Reads.alpha`), on the samples it
    concerns only, and reads the head at the rows it asks for only; a step that reads nothing makes no call. With
    `cache` most calls compute a window: see `calls`. ValueError at the end if a law was not a number.
    """
    steps = sampler(task)
    calls = calls_of(denoiser, task, steps, cache)
    z, alphas = task.canvas(), task.alphas.tolist()
    broken = torch.zeros((), dtype=torch.bool, device=z.device)
    yield Frame(0, alphas[0], z, torch.zeros_like(task.free), z.new_empty(0))
    for k, step in enumerate(steps):
        reads = calls.reads(k, z)
        after = step(
            z,
            _laws(
                calls, task, k, z, alphas[k] if reads.alpha is None else reads.alpha, reads, broken
            ),
        )
        reached = alphas[k + 1] if reads.alpha is None else float(task.level(after).mean())
        yield Frame(k + 1, reached, after, after != z, reads.rows)
        z = after
    check_numbers(broken)


def _laws(
    calls: Calls, task: Task, k: int, z: Tokens, alpha: float | Tensor, reads: Reads, broken: Tensor
) -> Laws:
    """One network call, if anything is read, and the laws it was made for."""
    if len(reads.rows):
        told = torch.as_tensor(alpha, dtype=torch.float64, device=z.device).expand(len(reads.rows))
        prediction, where = calls.predict(k, z, told, reads)
        at, done = reads.at(z.shape[1]), 0
        for part, log_p in read(prediction, where, task.filters.temperature, task.mask_id, broken):
            yield at[done : done + len(part)], log_p
            done += len(part)


def watch(
    model: DiffusionModel | AutoregressiveModel,
    n: int = 4,
    length: int = 128,
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
    draw: str | Draw = "race",
    first: int = 0,
    structure: str | Structure | None = None,
    cache: int | None = None,
) -> Iterator[Frame]:
    """The frames of the run that `sample` ends with, for players and progress bars; arguments are checked at once."""
    n, length, steps = _count("n", n), _count("length", length), _count("steps", steps, MOST_STEPS)
    seed, cache = seed_number("seed", seed), None if cache is None else _count("cache", cache)
    check_first(first, n)
    filters = Filters(temperature, top_p, top_k)
    drawing = named("draw", draw, DRAWS)
    _check_device(model, device)
    _check_room(n, length, _token_bytes(model), device)
    structure = parse_structure(structure) if isinstance(structure, str) else structure
    latent = draw_latent(n, length, seed, first, device, structure=structure)
    if isinstance(model, AutoregressiveModel):
        if sampler is not None:
            raise ValueError(
                f"an autoregressive model writes from left to right: leave sampler out, got {sampler!r}"
            )
        if grid != "uniform":
            raise ValueError(
                f"an autoregressive model has no noise levels: leave grid out, got {grid!r}"
            )
        if cache is not None:
            raise ValueError(
                f"an autoregressive model keeps its past in any case: leave cache out, got {cache!r}"
            )
        _check_read(structure, "an autoregressive model", False)
        predictor = model.predictor
        pins = pin(
            n, length, predictor.vocab_size, predictor.mask_id, model.tokenizer, prompt, pinned
        )
        start = start_token(model.tokenizer, predictor.vocab_size, predictor.mask_id)
        return autoregress(predictor, start, pins.to(device), latent, filters, drawing)
    process = model.process
    mask_id = process.mask_id if isinstance(process, MaskedProcess) else None
    if sampler is None:
        sampler = ancestral if mask_id is None else reveal
    pins = pin(n, length, process.vocab_size, mask_id, model.tokenizer, prompt, pinned)
    alphas = named("grid", grid, GRIDS)(steps, model.schedule)
    task = Task(process, pins.to(device), latent, alphas, filters, drawing)
    chosen = sampler_of(sampler)
    by_latent = mask_id is not None and chosen in _BY_LATENT
    _check_read(
        structure,
        f"the sampler {sampler!r}" if isinstance(sampler, str) else "this sampler",
        by_latent,
    )
    return denoise(for_inference(model.denoiser), task, chosen, cache)


def sample(
    model: DiffusionModel | AutoregressiveModel,
    n: int = 4,
    length: int = 128,
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
    draw: str | Draw = "race",
    first: int = 0,
    batch_size: int | None = None,
    structure: str | Structure | None = None,
    cache: int | None = None,
) -> Samples:
    """Draw n texts of `length` tokens in `steps` steps.

    model        .denoiser .process .schedule .tokenizer, or .predictor .tokenizer: autoregressive, a call a token
    seed, first  at equal logits sample i is a pure function of (model, seed, first + i); products round by their shape
    temperature, top_p, top_k   sharpen p(x0), in this order: temperature, top-k, top-p
    prompt       text or ids [P] at the start of every sample, counted in length
    pinned       ids [n, length], -1 where free: infilling, by the law of the model in masked diffusion only
    device       where the model is
    sampler      a `Sampler`, "reveal" (default, masked), "ancestral" (default otherwise), "greedy_tail", "confidence",
                 "psi:0.5", "remdm_cap:0.02", "remdm_rescale:0.015", "remdm_loop:0.02", "entropy_bounded:0.1", or
                 "blockwise:16"
    grid         "uniform", "cosine", "released" (one move more than steps), "loop", or a `Grid`
    draw         "race", "inverse_cdf", "legacy_gumbel32", or a `Draw`
    batch_size   samples a network call at most; None for all. 1: each is exactly what it is alone, whatever n
    structure    which tokens "reveal" shows together: "block:8:0.9", "span:16", "hierarchy:64,16:0.5,0.3", or a
                 `Structure`; None, each on its own
    cache        moves from one whole pass of the network to the next, windows between: see `calls`. None, 1: exact

    ValueError for arguments outside their range, and where the model's laws are not numbers.
    """
    n, length = _count("n", n), _count("length", length)
    size = n if batch_size is None else _count("batch_size", batch_size)
    if pinned is not None:
        check_pinned(pinned, n, length)
    _check_device(model, device)
    _check_room(n, length, DRAWN_BYTES, "cpu")
    run = partial(
        watch, model, length=length, steps=steps, seed=seed, temperature=temperature, top_p=top_p
    )
    run = partial(
        run,
        prompt=prompt,
        device=device,
        top_k=top_k,
        sampler=sampler,
        grid=grid,
        draw=draw,
        cache=cache,
    )
    tokens, nfe, calls = [], torch.zeros(n, dtype=torch.int64, device=device), 0
    for low in range(0, n, size):
        rows = slice(low, min(low + size, n))
        part = None if pinned is None else pinned[rows]
        for frame in run(n=rows.stop - low, pinned=part, first=first + low, structure=structure):
            nfe[rows].index_add_(0, frame.rows, torch.ones_like(frame.rows))
            calls += len(frame.rows) > 0
        tokens.append(frame.z)
    ids = torch.cat(tokens)
    return Samples(
        ids,
        None if model.tokenizer is None else [*map(model.tokenizer.decode, ids.tolist())],
        nfe,
        calls,
    )


def _check_device(model: DiffusionModel | AutoregressiveModel, device: torch.device | str) -> None:
    """ValueError unless the model, where it has weights, is on `device`, and `device` exists."""
    try:
        wanted = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"device says where the model is, and {device} is not to be had here: {error}"
        ) from error
    network: object = model.predictor if isinstance(model, AutoregressiveModel) else model.denoiser
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if weight is not None and weight.device.type != wanted.type:
        raise ValueError(
            f"device says where the model is: want {weight.device.type!r}, got {str(device)!r}; "
            "give sample the device that load was given"
        )


def _check_read(structure: Structure | None, reader: str, reads: bool) -> None:
    """ValueError where a structure was asked for and nobody looks at it."""
    if structure is not None and not reads:
        raise ValueError(
            f"structure says which tokens are revealed together, and {reader} does not reveal by the latent: leave "
            f"structure out or use the sampler 'reveal' of masked diffusion, got {structure}"
        )


def _count(name: str, value: int, high: int = INT64 - 1) -> int:
    meaning = {
        "n": "the number of samples",
        "length": "the number of tokens of a sample, prompt included",
        "steps": "the number of moves from noise to text",
        "batch_size": "the number of samples in a network call",
        "cache": "the number of moves between two whole passes of the network",
    }[name]
    return whole(name, value, meaning, 1, high)


def _check_room(n: int, length: int, token_bytes: int, device: torch.device | str) -> None:
    """ValueError where n texts of `length` tokens pass the memory of the device, at `token_bytes` a token at least."""
    gpu = torch.device(device).type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory if gpu else None
    got, advice = f"{n} x {length} tokens", "give a smaller batch_size, n or length"
    check_memory("n x length", got, n * length * token_bytes, advice, room)


def _token_bytes(model: DiffusionModel | AutoregressiveModel) -> int:
    """What a token takes in a network call at least: its latent, and in a network of ours six hidden states."""
    network = None if isinstance(model, AutoregressiveModel) else model.denoiser
    return DRAWN_BYTES + (
        24 * network.network.shape.width if isinstance(network, NetworkDenoiser) else 0
    )
