"""The EB-sampler: its law, the network's alpha, its cost, and the exactness of bound 0."""

import math
from dataclasses import dataclass, field
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reference import in_float64, network_random, sampler_entropy_bounded, sampler_p_value
from toy_sampling import MASK, L, N, Table, V, draw, filtered, masked, run_frames, start
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import Shape
from unmask.prediction import Prediction
from unmask.samplers.counts import entropy_bound
from unmask.samplers.orders import ENTROPY
from unmask.samplers.sample import sample
from unmask.samplers.unmasking import Unmasking


def entropy_bounded(nats: float) -> Unmasking:
    return Unmasking(ENTROPY, entropy_bound(nats))


@pytest.mark.parametrize("bound", [0.0, 0.5, 0.9, 1.5, math.inf])
@pytest.mark.parametrize(
    ("pins", "eps", "filters"),
    [
        ((-1, -1, -1), 1e-3, {}),
        ((-1, 2, -1), 0.3, {}),
        ((-1, -1, -1), 0.3, {"temperature": 1.5, "top_p": 0.7}),
        ((-1, -1, -1), 0.0, {"top_k": 2}),
    ],
)
def test_law(bound: float, pins: tuple[int, ...], eps: float, filters: dict[str, float]) -> None:
    """Tokens come from the filtered law, entropies from the law before top-k and top-p."""
    model = masked(V, L, LogLinear(eps), seed=6, sees_alpha=True, one_level=False)
    score = filtered(model, temperature=filters.get("temperature", 1.0))
    exact = sampler_entropy_bounded(
        start(pins), eps, filtered(model, **filters), score, bound, MASK
    )
    tokens = draw(model, 2, pins, sampler=entropy_bounded(bound), **filters).tokens
    assert sampler_p_value(tokens, exact) > 1e-3


def test_the_test_can_fail() -> None:
    """Other bounds have other laws. So has a network that gets the first alpha in every step."""
    model, bounds = (
        masked(V, L, LogLinear(0.3), seed=6, sees_alpha=True, one_level=False),
        (0.0, 0.9, math.inf),
    )
    law = filtered(model)
    laws = [
        sampler_entropy_bounded(start((-1,) * L), 0.3, law, law, bound, MASK) for bound in bounds
    ]
    tokens = [draw(model, 2, sampler=entropy_bounded(bound)).tokens for bound in bounds]
    assert all(
        sampler_p_value(tokens[i], laws[j]) < 1e-6 for i, j in ((0, 1), (0, 2), (1, 2), (2, 0))
    )
    constant = sampler_entropy_bounded(
        start((-1,) * L), 0.3, lambda z, a: law(z, 0.3), law, 0.0, MASK
    )
    assert sampler_p_value(tokens[0], constant) < 1e-6


def test_bound_0_draws_from_the_law_of_texts() -> None:
    """With exact conditionals any order that depends on visible tokens gives the joint law."""
    joint = np.random.default_rng(0).dirichlet(np.full(MASK**L, 0.4)).reshape((MASK,) * L)
    model = masked(V, L)
    for row, z in enumerate(product(range(V), repeat=L)):
        z = z[::-1]  # the table counts its first position fastest
        seen = joint[
            tuple(slice(None) if token == MASK else slice(token, token + 1) for token in z)
        ]
        for i in range(L):
            if z[i] == MASK:
                given = seen.sum(axis=tuple(j for j in range(L) if j != i))
                model.denoiser.logits[row, i, :MASK] = torch.from_numpy(np.log(given))
    texts = {text: float(joint[text]) for text in product(range(MASK), repeat=L)}
    assert sampler_p_value(draw(model, 2, sampler="entropy_bounded:0").tokens, texts) > 1e-3
    assert sampler_p_value(draw(model, 2, sampler="entropy_bounded:inf").tokens, texts) < 1e-6


def test_the_order_is_by_entropy_and_then_by_column() -> None:
    """Entropies log 2, log 3, log 2, 0, log 3 at bound 0: the certain token and one more first."""
    model = masked(V, 5)
    for i, choices in enumerate((2, 3, 2, 1, 3)):
        model.denoiser.logits[:, i] = torch.where(torch.arange(V) < choices, 0.0, -1e9)
    frames = list(run_frames(model, n=3, length=5, steps=9, sampler="entropy_bounded:0"))
    shown = [after.changed for after in frames[1:]]
    assert [row.nonzero().tolist() for row in shown] == [
        [[r, i] for r in range(3) for i in step] for step in ((0, 3), (2,), (1,), (4,), ())
    ]
    once = list(
        run_frames(model, n=3, length=5, steps=9, sampler=entropy_bounded(math.log(2) + 1e-9))
    )
    assert [int(frame.changed[0].sum()) for frame in once[1:]] == [
        3,
        1,
        1,
        0,
        0,
    ]  # 0 + log 2 | log 2, then log 3
    more = list(
        run_frames(model, n=3, length=5, steps=9, sampler=entropy_bounded(2 * math.log(2) + 1e-9))
    )
    assert [int(frame.changed[0].sum()) for frame in more[1:]] == [4, 1, 0, 0, 0]


@dataclass
class Recorder:
    """A denoiser that records its alphas."""

    table: Table
    alphas: list[torch.Tensor] = field(default_factory=list)
    vocab_size: int = V
    sees_alpha: bool = True

    def __call__(self, z: torch.Tensor, alpha: torch.Tensor) -> Prediction:
        self.alphas.append(alpha)
        return self.table(z, alpha)


def test_each_sample_has_its_own_steps_and_its_own_alpha() -> None:
    model = masked(V, 5, LogLinear(0.2), sees_alpha=True, one_level=False)
    model.denoiser = Recorder(model.denoiser)
    alphas = model.denoiser.alphas
    pinned = torch.tensor([[-1] * 5, [0, -1, 1, -1, 2], [1] * 5, [0, -1, -1, -1, -1]])
    frames = list(
        run_frames(model, n=4, length=5, steps=2, pinned=pinned, sampler="entropy_bounded:0.7")
    )
    free = (pinned < 0).sum(1)
    assert len(frames) == 6 and not bool((frames[-1].z == MASK).any())
    assert frames[0].alpha == pytest.approx(0.2) and frames[-1].alpha == 1
    nfe = torch.zeros(4, dtype=torch.int64)
    for before, after in pairwise(frames):
        masks = (before.z == MASK).sum(1)
        assert after.rows.tolist() == masks.nonzero().flatten().tolist()
        nfe[after.rows] += 1
        if len(after.rows):
            share = 1 - masks[after.rows] / free[after.rows]
            assert torch.allclose(alphas.pop(0), (0.2 + 0.8 * share).double(), rtol=0, atol=1e-6)
        left = (after.z == MASK).sum(1) / free.clamp(min=1)
        assert after.alpha == pytest.approx(float((1 - 0.8 * left).mean()), abs=1e-6)
    assert alphas == [] and nfe[2] == 0
    done = sample(model, n=4, length=5, steps=77, pinned=pinned, sampler="entropy_bounded:0.7")
    assert (
        torch.equal(done.nfe, nfe)
        and done.calls == nfe.max()
        and torch.equal(done.tokens, frames[-1].z)
    )


@pytest.mark.parametrize(("bound", "nfe"), [("0", 5), ("inf", 1)])
def test_the_ends_of_the_bound(bound: str, nfe: int) -> None:
    done = sample(masked(V, 5), n=3, length=5, steps=2, sampler=f"entropy_bounded:{bound}")
    assert done.nfe.tolist() == [nfe] * 3 and done.calls == nfe


def test_a_token_has_one_draw_at_any_bound() -> None:
    """If tokens are independent, every bound gives the text of `reveal`."""
    model = masked(V, L)
    model.denoiser.logits[:] = model.denoiser.logits[0]
    texts = [
        draw(model, 3, sampler=name).tokens
        for name in ("reveal", "entropy_bounded:0", "entropy_bounded:1")
    ]
    assert (
        torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2]) and len(texts[0]) == N
    )


@pytest.mark.processor
def test_rounding_does_not_choose() -> None:
    """If all tokens are MASKs, a rotary network predicts one law everywhere: columns decide."""
    network = network_random(Shape(8, 12, width=16, blocks=2, heads=2))
    denoiser = NetworkDenoiser(network, 7, sees_alpha=True)
    model = SimpleNamespace(
        denoiser=denoiser, process=MaskedProcess(8, 7), schedule=LogLinear(), tokenizer=None
    )
    how = {"n": 40, "length": 12, "sampler": "entropy_bounded:2.5"}
    first = list(run_frames(model, **how))[1].changed
    size = int(first[0].sum())
    assert 1 < size < 12 and bool(first[:, :size].all()) and not bool(first[:, size:].any())
    in_float64(network)
    whole = sample(model, **how)
    for batch_size in (1, 3):
        assert torch.equal(whole.tokens, sample(model, **how, batch_size=batch_size).tokens)


@pytest.mark.parametrize("bound", [-0.1, math.nan, "1", None, True])
def test_a_bound_out_of_range(bound: float) -> None:
    with pytest.raises(ValueError, match=rf"bound .*got {bound!r}, want bound >= 0 \(nats.*inf"):
        entropy_bounded(bound)
