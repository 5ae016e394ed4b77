"""Batches do not change samples at equal logits, or with one sample a call.

On some processors the rounding of a product depends on its shape, in the last digit. `Rounding`
imitates this in the first digit, for every call and every product of the head. A result that it
does not change is the same on every processor.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import in_float64, network_random
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import LogLinear
from unmask.models.denoiser import CausalPredictor, NetworkDenoiser
from unmask.models.dit import Shape
from unmask.prediction import Head, Prediction
from unmask.rng import address, gumbel
from unmask.samplers.categorical import gumbel_max
from unmask.samplers.counts import uniform_grid
from unmask.samplers.latent import draw_latent
from unmask.samplers.sample import sample
from unmask.samplers.steps import SamplingProblem
from unmask.samplers.unmasking import confidence

V, L, N = 9, 10, 6
SAMPLERS = [
    "reveal",
    "ancestral",
    "greedy_tail",
    "confidence",
    "entropy_bounded:1",
    "blockwise:4",
    "psi:0.5",
]
SHAPE = Shape(V, L, width=16, blocks=2, heads=2, cond_dim=4)


def bump(*sizes: int) -> Tensor:
    """A different number for each shape."""
    return torch.tensor(float(sum(size * 1.7**k for k, size in enumerate(sizes)))).cos()


@dataclass(frozen=True)
class RoundingHead:
    head: Head

    def __call__(self, rows: Tensor) -> Tensor:
        logits = self.head(rows)
        return logits + bump(*rows.shape) * torch.arange(logits.shape[-1]).sin()

    def parameters(self) -> list[Tensor]:
        return []


@dataclass(frozen=True)
class Rounding:
    """A model whose hidden states depend on the shape of the call and on the row in it."""

    role: NetworkDenoiser | CausalPredictor
    sees_alpha: bool = True

    @property
    def vocab_size(self) -> int:
        return V

    @property
    def mask_id(self) -> int | None:
        return self.role.mask_id

    def __call__(self, z: Tensor, *rest: object) -> Prediction:
        return self._rounded(self.role(z, *rest), z.shape)

    def forward_window(
        self, z: Tensor, alpha: Tensor, queries: Tensor | None, cache: object, window: Tensor | None
    ) -> Prediction:
        shapes = [size for part in (queries, window) if part is not None for size in part.shape]
        return self._rounded(
            self.role.forward_window(z, alpha, queries, cache, window), [*z.shape, *shapes]
        )

    def _rounded(self, exact: Prediction, sizes: list[int]) -> Prediction:
        row = torch.arange(len(exact.hidden))[:, None, None]
        return replace(
            exact, hidden=exact.hidden + (row + bump(*sizes)).sin(), head=RoundingHead(exact.head)
        )


def model(kind: str) -> SimpleNamespace:
    network = network_random(replace(SHAPE, causal=kind == "causal"))
    if kind == "causal":
        return SimpleNamespace(predictor=Rounding(CausalPredictor(network, V - 1)), tokenizer=None)
    process = UniformProcess(V) if kind == "uniform" else MaskedProcess(V, V - 1)
    denoiser = NetworkDenoiser(network, None if kind == "uniform" else V - 1, sees_alpha=True)
    return SimpleNamespace(
        denoiser=Rounding(denoiser.frozen()), process=process, schedule=LogLinear(), tokenizer=None
    )


CASES = [
    *(("masked", {"sampler": name}) for name in SAMPLERS),
    *(
        ("masked", {"sampler": name, "cache": 2})
        for name in ("reveal", "confidence", "blockwise:4")
    ),
    *(("uniform", {"sampler": name}) for name in ("ancestral", "psi:0.5")),
    ("causal", {}),
]


@pytest.mark.parametrize(("kind", "how"), CASES, ids=str)
def test_one_sample_a_call_is_exact_on_every_processor(kind: str, how: dict[str, object]) -> None:
    """With batch_size = 1 a sample equals the one drawn alone, for any rounding of products.

    Three of the six samples have pinned tokens.
    """
    drawn, pins = model(kind), torch.full((N, L), -1)
    pins[1, :4], pins[2, ::3], pins[3] = 2, 1, 5
    how = {"length": L, "steps": 4, "seed": 3, **how}
    whole = sample(drawn, n=N, pinned=pins, batch_size=1, **how)
    for first in range(N):
        alone = sample(drawn, n=1, first=first, pinned=pins[first : first + 1], **how)
        assert (
            torch.equal(alone.tokens[0], whole.tokens[first]) and alone.nfe[0] == whole.nfe[first]
        )
    tail = sample(drawn, n=2, first=4, pinned=pins[4:], batch_size=1, **how)
    assert torch.equal(tail.tokens, whole.tokens[4:])
    together = sample(drawn, n=N, pinned=pins, **how)
    assert not torch.equal(together.tokens, whole.tokens), "else this would see nothing"


@pytest.mark.processor
@pytest.mark.parametrize("kind", ["masked", "uniform", "causal"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.float64, 2e-13)])
def test_logits_depend_on_the_batch_by_rounding_only(
    kind: str, dtype: torch.dtype, close: float
) -> None:
    """In a batch of N or alone: a dozen products in a row, sums of up to 64 terms of order 1.

    Each is right to 64 x 2^-24 in any order, or 64 x 2^-53: 5e-5 and 1e-13 together, and twice that
    for two of them.
    """
    network = network_random(replace(SHAPE, causal=kind == "causal"))
    network = in_float64(network) if dtype == torch.float64 else network
    z = torch.randint(V, (N, L), generator=torch.Generator().manual_seed(0))
    sigma = None if kind == "causal" else torch.linspace(0.1, 3, N, dtype=torch.float64)
    alone = [network(z[i : i + 1], None if sigma is None else sigma[i : i + 1]) for i in range(N)]
    logits = network(z, sigma)
    assert logits.dtype == dtype and float(logits.detach().abs().max()) > 0.1
    assert float((logits - torch.cat(alone)).detach().abs().max()) < close


@given(st.integers(0, 2**32), st.floats(1e-12, 0.3))
def test_a_change_of_logits_changes_small_margins_only(seed: int, change: float) -> None:
    """A token stays if its margin exceeds twice the greatest change of a log-probability."""
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(200, V, dtype=torch.float64, generator=generator).log_softmax(-1)
    other = log_p + change * (
        2 * torch.rand(log_p.shape, dtype=torch.float64, generator=generator) - 1
    )
    state = draw_latent(1, 200, seed).address(
        (torch.zeros(200, dtype=torch.int64), torch.arange(200))
    )
    numbers = log_p + gumbel(address(state[:, None], torch.arange(V)))
    before, after = gumbel_max(log_p, state), gumbel_max(other, state)
    assert torch.equal(before, numbers.argmax(-1))
    best, second = numbers.topk(2).values.unbind(-1)
    clear = best - second > 2 * change + 1e-12
    assert torch.equal(before[clear], after[clear]) and bool(clear.any())


@pytest.mark.parametrize("seed", range(20))
def test_rounding_does_not_choose_between_equally_probable_positions(seed: int) -> None:
    """With one law at all positions, to 1e-6 nats, the first of equal tokens is unmasked.

    Without `in_steps` the last digits of the logits choose.
    """
    length, process = 40, MaskedProcess(V, V - 1)
    problem = SamplingProblem(
        process,
        torch.full((2, length), -1),
        draw_latent(2, length, 0),
        uniform_grid(4, LogLinear()),
    )
    first, z = confidence(problem)[0], problem.canvas()
    at = torch.ones_like(z).nonzero(as_tuple=True)
    law = torch.randn(
        V - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).log_softmax(0)
    law = torch.cat([law, law.new_full((1,), -1e6)]).expand(2 * length, -1)
    noise = 1e-6 * torch.rand(
        law.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    unmasked = first(z, [(at, law)])
    assert (
        torch.equal(first(z, [(at, law + noise)]), unmasked)
        and 0 < int((unmasked != V - 1).sum()) < 2 * length
    )
