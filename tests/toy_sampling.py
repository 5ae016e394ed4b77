"""Models without a network for the tests of samplers: random laws, and counts of calls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from reference import sampler_filtered
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import LogLinear, NoiseSchedule
from unmask.models.kv_cache import Cache
from unmask.prediction import Prediction
from unmask.samplers.counts import GRIDS
from unmask.samplers.inputs import Frame
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import Samples, sample, watch
from unmask.samplers.steps import Query

LOG_LINEAR = LogLinear()


@dataclass
class Table:
    """A `Denoiser`: log p(x0_i | z) is a random table over all texts z of `length` tokens.

    `batches`, `alphas`, `head_rows`: sequences and alpha of each call, rows of each use of the
    head. `one_level`: every sequence of a call must have the same alpha.
    """

    vocab_size: int
    length: int
    seed: int = 0
    sees_alpha: bool = False
    contrast: float = 1.5
    mask_id: int | None = None
    one_level: bool = True
    batches: list[int] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    head_rows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.vocab_size**self.length, self.length, self.vocab_size)
        self.logits = self.contrast * torch.randn(shape, generator=generator, dtype=torch.float64)

    def __call__(self, z: Tensor, alpha: Tensor) -> Prediction:
        assert z.dtype == torch.int64 and alpha.shape == (len(z),)
        assert not self.one_level or bool((alpha == alpha[0]).all())
        self.batches.append(len(z))
        self.alphas.append(float(alpha[0]))
        return self.predict(self.rows(z) * ((0.3 + alpha)[:, None, None] if self.sees_alpha else 1))

    def rows(self, z: Tensor) -> Tensor:
        return self.logits[(z * self.vocab_size ** torch.arange(self.length)).sum(-1)]

    def predict(self, hidden: Tensor) -> Prediction:
        return Prediction(hidden, Head(self.head_rows), self.vocab_size)

    def law(self, z: tuple[int, ...], alpha: float = 0.7) -> np.ndarray:
        """p(x0_i | z) [L, V]; MASK, the last token, has probability 0."""
        logits = self.rows(torch.tensor([z]))[0].numpy() * (0.3 + alpha if self.sees_alpha else 1)
        weight = np.exp(logits)
        if self.mask_id is not None:
            weight[:, self.mask_id] = 0
        return weight / weight.sum(-1, keepdims=True)


@dataclass
class Causal:
    """The table as a next-token predictor: a prefix has the law of its text padded with token 0."""

    table: Table
    mask_id: int | None = None

    @property
    def vocab_size(self) -> int:
        return self.table.vocab_size

    def __call__(self, ids: Tensor, cache: Cache | None = None) -> Prediction:
        self.table.batches.append(len(ids))
        past = 0 if cache is None else cache.length
        if cache is not None:
            ids = cache.write(0, past, ids[:, None, :, None], ids[:, None, :, None])[0][:, 0, :, 0]
        texts = torch.nn.functional.pad(
            ids[:, 1:], (0, self.table.length - ids.shape[1] + 1)
        )  # without the start
        place = torch.arange(self.table.length)
        hidden = [
            self.table.rows(texts.where(place < i, 0))[:, i] for i in range(past, ids.shape[1])
        ]
        return self.table.predict(torch.stack(hidden, dim=1))

    def law(self, prefix: tuple[int, ...]) -> np.ndarray:
        """p(next | prefix) [V]."""
        text = prefix + (0,) * (self.table.length - len(prefix))
        return self.table.law(text)[len(prefix)]


@dataclass(frozen=True)
class Head:
    """Rows are their own logits; records their number."""

    seen: list[int]

    def __call__(self, rows: Tensor, /) -> Tensor:
        assert rows.dim() == 2
        self.seen.append(len(rows))
        return rows

    def parameters(self) -> tuple[Tensor, ...]:
        return ()


def masked(
    vocab_size: int, length: int, schedule: NoiseSchedule = LOG_LINEAR, **table: object
) -> SimpleNamespace:
    """A masked model over `vocab_size` tokens, the last of them MASK."""
    process = MaskedProcess(vocab_size, vocab_size - 1)
    denoiser = Table(vocab_size, length, mask_id=vocab_size - 1, **table)
    return SimpleNamespace(denoiser=denoiser, process=process, schedule=schedule, tokenizer=None)


def uniform(
    vocab_size: int, length: int, schedule: NoiseSchedule = LOG_LINEAR, **table: object
) -> SimpleNamespace:
    """A uniform-state model."""
    process = UniformProcess(vocab_size)
    return SimpleNamespace(
        denoiser=Table(vocab_size, length, **table),
        process=process,
        schedule=schedule,
        tokenizer=None,
    )


def causal(vocab_size: int, length: int, **table: object) -> SimpleNamespace:
    """An autoregressive model."""
    return SimpleNamespace(predictor=Causal(Table(vocab_size, length, **table)), tokenizer=None)


# Chi-square tests: N samples of L tokens out of V, the last of them MASK where there is one.

N, V, L = 12_000, 4, 3
MASK = V - 1
FILTERS = [{"temperature": 0.6}, {"temperature": 1.5, "top_p": 0.8}, {"top_k": 2}, {"top_p": 0.5}]


def alphas_of(model: SimpleNamespace, steps: int, grid: str = "uniform") -> list[float]:
    """The levels of a grid."""
    return GRIDS[grid](steps, model.schedule).tolist()


def filtered(
    model: SimpleNamespace, **filters: float
) -> Callable[[tuple[int, ...], float], np.ndarray]:
    """The model's law for the oracles, after temperature, top-k and top-p."""
    return lambda z, alpha: sampler_filtered(model.denoiser.law(z, alpha), **filters)


def start(pins: tuple[int, ...]) -> tuple[int, ...]:
    """MASK where a token is free."""
    return tuple(MASK if token < 0 else token for token in pins)


def draw(
    model: SimpleNamespace,
    steps: int,
    pins: tuple[int, ...] = (-1,) * L,
    seed: int = 0,
    **how: object,
) -> Samples:
    """N samples."""
    return sample(
        model, n=N, length=L, steps=steps, seed=seed, pinned=torch.tensor(pins).expand(N, -1), **how
    )


def run_frames(model: object, *numbers: int, **options: object) -> Iterator[Frame]:
    """`watch` with the arguments of `sample`."""
    return watch(model, SampleOptions(*numbers, **options))


def planned_nfe(queries: list[Query], n: int) -> Tensor:
    """Network calls of each of n samples by a schedule: [n]."""
    return torch.bincount(torch.cat([query.rows for query in queries]), minlength=n)
