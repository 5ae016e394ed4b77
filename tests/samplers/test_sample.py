"""`sample` and `denoise`: coupled texts, given tokens, costs, options and errors."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference import network_random
from toy_sampling import causal, masked, run_frames, uniform
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import Shape
from unmask.prediction import Prediction
from unmask.samplers.counts import uniform_grid
from unmask.samplers.inputs import Frame
from unmask.samplers.latent import draw_latent
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import denoise, iter_samples, sample, sample_with, watch
from unmask.samplers.steps import LogProbs, Query, SamplingProblem

V, L = 4, 5
KINDS = [
    *(
        (masked, name)
        for name in ("reveal", "ancestral", "greedy_tail", "confidence", "entropy_bounded:0.9")
    ),
    *((masked, name) for name in ("psi:0.5", "remdm_rescale:1")),
    *((uniform, name) for name in ("ancestral", "greedy_tail", "psi:0.5")),
]


class Letters:
    """A tokenizer of the letters a, b, c."""

    bos_id = eos_id = None

    def encode(self, text: str) -> list[int]:
        return ["abcdefgh".index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefgh"[i] for i in ids)


@pytest.mark.parametrize(("kind", "sampler"), KINDS)
@pytest.mark.parametrize("draw", ["gumbel_max", "inverse_cdf"])
def test_batches_make_no_difference(kind: type, sampler: str, draw: str) -> None:
    """Tokens and nfe of a sample do not depend on the other samples of its batch."""
    model = kind(V, L, sees_alpha=True, one_level=not sampler.startswith("entropy_bounded"))
    pinned = torch.full((8, L), -1)
    pinned[2:5, 1:4] = 1
    how = {"length": L, "steps": 6, "seed": 5, "sampler": sampler, "draw": draw, "top_p": 0.9}
    whole = sample(model, n=8, pinned=pinned, **how)
    tail = sample(model, n=5, pinned=pinned[3:], first=3, **how)
    assert torch.equal(tail.tokens, whole.tokens[3:]) and torch.equal(tail.nfe, whole.nfe[3:])
    calls = {}
    for batch_size in (1, 3, 8):
        parts = sample(model, n=8, pinned=pinned, batch_size=batch_size, **how)
        assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.nfe, parts.nfe)
        calls[batch_size] = parts.calls
    assert calls[1] == whole.nfe.sum() and calls[3] >= whole.calls == calls[8]


def test_one_latent_at_any_number_of_steps() -> None:
    """If tokens are independent, 1 and 50 steps give one text; else the texts are coupled."""
    model = masked(V, L)
    model.denoiser.logits[:] = model.denoiser.logits[0]
    runs = [sample(model, n=50, length=L, steps=steps, seed=2).tokens for steps in (1, 4, 50)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[1], runs[2])

    model = masked(V, L, seed=1)
    few, many, other = (
        sample(model, n=2000, length=L, steps=steps, seed=seed).tokens
        for steps, seed in ((8, 0), (16, 0), (16, 1))
    )
    assert (few == many).double().mean() > 0.8 > 0.6 > (few == other).double().mean()


@pytest.mark.parametrize(("kind", "sampler"), KINDS)
def test_given_tokens_never_change_and_never_cost(kind: type, sampler: str) -> None:
    model = kind(V, L)
    pinned = torch.tensor([[-1, -1, -1, 2, -1], [-1, -1, 1, -1, 0], [-1, 0, 0, 0, 0]])
    given = torch.tensor([[1, -1, -1, 2, -1], [1, -1, 1, -1, 0], [1, 0, 0, 0, 0]])
    model.tokenizer = Letters()
    for frame in run_frames(
        model, n=3, length=L, steps=4, prompt="b", pinned=pinned, sampler=sampler
    ):
        assert torch.equal(frame.z[given >= 0], given[given >= 0]) and not bool(
            frame.changed[given >= 0].any()
        )
        assert 2 not in frame.rows
    assert bool((frame.z >= 0).all())


@pytest.mark.parametrize(
    "prompt", ["ab", [0, 1], (0, 1), torch.tensor([0, 1]), torch.tensor([0, 1], dtype=torch.int32)]
)
def test_prompts_of_every_kind(prompt: object) -> None:
    model = masked(V, L)
    model.tokenizer = Letters()
    done = sample(model, n=2, length=L, steps=3, prompt=prompt)
    assert done.tokens[:, :2].tolist() == [[0, 1], [0, 1]]
    assert done.texts is not None and all(
        text.startswith("ab") and len(text) == L for text in done.texts
    )


@pytest.mark.parametrize("model", [masked(V, L), uniform(V, L), causal(V, L)])
def test_a_text_that_is_given_costs_nothing(model: SimpleNamespace) -> None:
    done = sample(model, n=2, length=L, steps=3, prompt=[0, 1, 2, 1, 0])
    assert (
        done.tokens.tolist() == [[0, 1, 2, 1, 0]] * 2
        and done.calls == 0
        and done.nfe.tolist() == [0, 0]
    )
    assert sample(model, n=1, length=L, steps=3, prompt=[]).calls > 0


def test_a_frame_holds_the_changes_of_its_step() -> None:
    model = masked(V, L)
    alphas = uniform_grid(4, model.schedule)
    frames = list(run_frames(model, n=3, length=L, steps=4, seed=9))
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4] and [
        frame.alpha for frame in frames
    ] == alphas.tolist()
    assert bool((frames[0].z == V - 1).all()) and not bool(frames[0].changed.any())
    for before, after in pairwise(frames):
        assert torch.equal(after.changed, before.z != after.z)
        assert torch.equal(after.z[~after.changed], before.z[~after.changed])
        assert bool((before.z[after.changed] == V - 1).all())  # a visible token stays
    done = sample(model, n=3, length=L, steps=4, seed=9)
    assert torch.equal(done.tokens, frames[-1].z)
    assert done.calls == sum(len(frame.rows) > 0 for frame in frames)


def test_sampling_leaves_no_trace() -> None:
    """No number from the global generator, no gradient, no change of the caller's mode."""
    network = network_random(Shape(V, L, width=8, blocks=1, heads=2))
    model = masked(V, L)
    model.denoiser = NetworkDenoiser(network, mask_id=V - 1, sees_alpha=True)
    before = torch.get_rng_state()
    frames = run_frames(model, n=2, length=L, steps=3)
    next(frames)
    next(frames)
    assert torch.is_grad_enabled()
    assert not any(frame.z.requires_grad for frame in frames) and torch.equal(
        torch.get_rng_state(), before
    )


@pytest.mark.parametrize("sees_alpha", [False, True])
def test_a_network_and_its_frozen_form_draw_the_same(sees_alpha: bool) -> None:
    model = masked(V, L)
    live = NetworkDenoiser(
        network_random(Shape(V, L, width=16, blocks=2, heads=2)), V - 1, sees_alpha
    )
    tokens = []
    for denoiser in (live, live.frozen()):
        model.denoiser = denoiser
        tokens.append(sample(model, n=8, length=L, steps=4).tokens)
    assert torch.equal(*tokens) and bool((tokens[0] < V - 1).all())


@dataclass
class Sizes(TorchDispatchMode):
    """Records the size of every tensor that torch makes."""

    largest: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore
        out = function(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)
        ]
        self.largest = max([self.largest, *sizes])
        return out


@dataclass
class NarrowHead:
    """A head over a large vocabulary that counts its rows and refuses those of a whole batch."""

    weight: Tensor
    limit: int
    rows: list[int] = field(default_factory=list)

    def __call__(self, rows: Tensor, /) -> Tensor:
        assert rows.shape[0] < self.limit, "the head got every position"
        self.rows.append(rows.shape[0])
        return rows @ self.weight

    def parameters(self) -> tuple[Tensor, ...]:
        return ()


@dataclass
class Wide:
    """A denoiser whose head is a `NarrowHead`."""

    head: NarrowHead
    vocab_size: int
    sees_alpha: bool = False

    def __call__(self, z: Tensor, alpha: Tensor) -> Prediction:
        hidden = torch.stack([torch.sin(z.float() * k + k) for k in range(4)], dim=-1)
        return Prediction(hidden, self.head, self.vocab_size, mask_id=self.vocab_size - 1, z=z)


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.8, "top_p": 0.9, "top_k": 50}])
def test_no_tensor_of_batch_times_length_times_vocabulary(filters: dict[str, float]) -> None:
    """Each position goes through the head once; no tensor has a quarter of B x L x V numbers."""
    n, length, vocab_size, steps = 4, 32, 3000, 32
    head = NarrowHead(
        torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(0)), limit=n * length
    )
    process = MaskedProcess(vocab_size, vocab_size - 1)
    model = SimpleNamespace(
        denoiser=Wide(head, vocab_size), process=process, schedule=LogLinear(), tokenizer=None
    )
    with Sizes() as sizes:
        done = sample(model, n=n, length=length, steps=steps, **filters)
    assert sum(head.rows) == n * length and len(head.rows) == done.calls
    assert sizes.largest < 4 * n * length * vocab_size / 4
    assert bool((done.tokens < vocab_size - 1).all())


def test_the_record_of_sizes_contains_a_whole_head() -> None:
    with Sizes() as sizes:
        torch.zeros(4, 32, 3000).log_softmax(-1)
    assert sizes.largest == 4 * 4 * 32 * 3000


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = masked(V, L)
    network = network_random(Shape(V, L, width=8, blocks=1, heads=2))
    nn.init.constant_(network.head.bias, math.nan)
    model.denoiser = NetworkDenoiser(network, V - 1, sees_alpha=False)
    with pytest.raises(ValueError, match="not a number"):
        sample(model, n=1, length=L)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"steps": 0}, "steps is too small: got 0, want a whole number 1 .. 1048576"),
        ({"steps": -1}, "got -1"),
        ({"steps": 2.5}, "steps is .* whole number: got 2.5"),
        ({"n": 0}, "n is too small: got 0"),
        ({"length": 0}, "length is too small: got 0"),
        ({"batch_size": 0}, "batch_size is too small: got 0"),
        ({"temperature": 0.0}, "temperature .* got 0.0"),
        ({"top_p": 0.0}, "top_p .* got 0.0"),
        ({"top_p": 1.1}, "got 1.1"),
        ({"top_k": 0}, "top_k is too small: got 0"),
        ({"seed": 2**64}, "seed is too large: got 18446744073709551616"),
        ({"seed": True}, "seed is .* whole number: got True"),
        (
            {"n": 2**63},
            r"n is too large: got 9223372036854775808, want a whole number 1 .. 2\^63 - 1",
        ),
        (
            {"n": 10**9, "length": 10**9},
            r"n x length is too large: got 1000000000 x 1000000000 tokens",
        ),
        ({"n": 10**12, "batch_size": 1}, r"n x length is too large: got 1000000000000 x 5 tokens"),
        ({"length": 2**63}, "length is too large: got 9223372036854775808"),
        ({"steps": 10**5000}, "steps is too large: got a number of 16610 bits"),
        ({"batch_size": 2**63}, "batch_size is too large: got 9223372036854775808"),
        ({"top_k": 2**63}, "top_k is too large: got 9223372036854775808"),
        ({"top_k": True}, "top_k is .* whole number: got True"),
        ({"cache": 2**63}, "cache is too large: got 9223372036854775808"),
        ({"first": 2**63}, "first is too large: got 9223372036854775808"),
        (
            {"first": 2**63 - 1},
            "first is too large: got 2.63 - 1, want a whole number 0 .. 9223372036854775805",
        ),
        ({"first": -1}, "first is too small: got -1"),
        (
            {"prompt": [0] * (L + 1)},
            "prompt .* got 6 tokens, want at most length = 5",
        ),
        ({"prompt": [0, V]}, "prompt .* got id 4, want 0 <= id < 4"),
        ({"prompt": [-1]}, "prompt .* got id -1"),
        ({"prompt": [V - 1]}, r"prompt contains MASK \(id 3\)"),
        ({"prompt": [0.5]}, "prompt .* want text, or integer ids"),
        ({"prompt": [[0], [1]]}, r"prompt .* shape \(2, 1\), .* use pinned"),
        ({"prompt": "ab"}, "prompt is text, and the model has no tokenizer"),
        ({"pinned": torch.zeros(2, L)}, "pinned .* got torch.float32, want an integer tensor"),
        (
            {"pinned": torch.ones(2, L, dtype=torch.bool)},
            "pinned .* got torch.bool, want an integer tensor",
        ),
        ({"pinned": [[0] * L] * 2}, "pinned .* got list, want an integer tensor"),
        (
            {"pinned": torch.zeros(1, L, dtype=torch.int64)},
            r"pinned .* got \(1, 5\), want \(2, 5\)",
        ),
        (
            {"pinned": torch.zeros(2, L + 1, dtype=torch.int64)},
            r"pinned .* got \(2, 6\), want \(2, 5\)",
        ),
        ({"pinned": torch.full((2, L), -2)}, "pinned .* got id -2"),
        ({"pinned": torch.full((2, L), V)}, "pinned .* got id 4"),
        ({"pinned": torch.full((2, L), V - 1)}, "pinned contains MASK"),
        (
            {"pinned": torch.full((2, L), 1), "prompt": [0]},
            "pinned and prompt give different tokens",
        ),
        (
            {"sampler": "reveel"},
            r"sampler is unknown: got 'reveel' \(did you mean 'reveal'\?\), want one of reveal, ",
        ),
        ({"sampler": "x"}, "sampler is unknown: got 'x', want one of"),
        ({"grid": "cosin"}, "did you mean 'cosine'"),
        ({"draw": "gumbel32"}, "did you mean 'legacy_gumbel32'"),
    ],
)
def test_wrong_input_is_refused(wrong: dict[str, object], match: str) -> None:
    model = masked(V, L)
    with pytest.raises(ValueError, match=match):
        sample(model, **({"n": 2, "length": L, "steps": 2} | wrong))
    assert model.denoiser.batches == []


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    given = {
        "n": 2,
        "length": L,
        "steps": 3,
        "seed": 4,
        "top_k": 2,
        "first": 1,
        "batch_size": 1,
        "cache": 1,
    }
    model = masked(V, L)
    drawn = sample(model, **{name: np.int64(value) for name, value in given.items()})
    assert torch.equal(drawn.tokens, sample(model, **given).tokens)


def test_arguments_are_checked_before_the_first_frame() -> None:
    with pytest.raises(ValueError, match="steps"):
        run_frames(masked(V, L), steps=0)


def test_a_custom_sampler_grid_and_draw() -> None:
    """A step is any object with the two methods: here, arg max everywhere at once."""
    model = masked(V, L)

    class Greedy:
        def __init__(self, problem: SamplingProblem) -> None:
            self.free = problem.free

        def query(self, z: Tensor) -> Query:
            return Query.of(self.free)

        def __call__(self, z: Tensor, log_probs: LogProbs) -> Tensor:
            [(at, log_p)] = log_probs
            return z.index_put(at, log_p.argmax(-1))

    frames: list[Frame] = list(
        denoise(
            model.denoiser,
            SamplingProblem(
                model.process,
                torch.full((2, L), -1),
                draw_latent(2, L, 0),
                torch.tensor([0.0, 1.0]),
            ),
            lambda problem: [Greedy(problem)],
        )
    )
    best = model.denoiser.law((V - 1,) * L).argmax(-1).tolist()
    assert frames[-1].z.tolist() == [best, best]
    own = sample(
        model, n=2, length=L, steps=1, sampler=lambda problem: [Greedy(problem)], grid=uniform_grid
    )
    assert own.tokens.tolist() == [best, best] and own.calls == 1


def test_the_length_is_the_models_own() -> None:
    model = masked(V, L)
    with pytest.raises(ValueError, match="length is missing"):
        sample(model, n=1, steps=2)
    model.length = L
    drawn = sample(model, n=2, steps=2)
    assert (
        drawn.tokens.shape == (2, L)
        and len(next(watch(model, SampleOptions(1, steps=2))).z[0]) == L
    )


def test_options_are_the_arguments_of_sample() -> None:
    """One value gives the texts of the arguments, whole or in batches."""
    model = masked(V, L)
    given = {
        "steps": 3,
        "seed": 4,
        "top_k": 2,
        "first": 1,
        "sampler": "confidence",
        "batch_size": 2,
    }
    options, drawn = SampleOptions(5, L, **given), sample(model, n=5, length=L, **given)
    same = sample_with(model, options)
    assert torch.equal(same.tokens, drawn.tokens) and torch.equal(same.nfe, drawn.nfe)
    assert same.calls == drawn.calls
    batches = list(iter_samples(model, options))
    assert [len(batch.tokens) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.tokens for batch in batches]), drawn.tokens)
    *_, last = watch(model, options)
    assert torch.equal(last.z, drawn.tokens)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"steps": 0}, "steps is too small: got 0"),
        ({"temperature": -1}, "temperature is out of range: got -1"),
        ({"sampler": "order=x"}, "order is unknown: got 'x'"),
        ({"order": "spam"}, "order is unknown: got 'spam'"),
        ({"order": "random", "sampler": "reveal"}, "order .*'random'.*sampler='reveal'"),
        ({"grid": "x"}, "grid is unknown: got 'x'"),
        ({"draw": "x"}, "draw is unknown: got 'x'"),
        ({"batch_size": 0}, "batch_size is too small: got 0"),
        ({"first": -1}, "first is too small: got -1"),
    ],
)
def test_options_are_checked_when_they_are_made(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SampleOptions(**wrong)


def test_a_model_on_another_device_is_refused():
    network = network_random(Shape(V, L, width=8, blocks=1, heads=2, cond_dim=4))
    model = masked(V, L)
    model.denoiser = NetworkDenoiser(network, V - 1, sees_alpha=False).to("meta")
    with pytest.raises(ValueError, match=r"device .* got 'cpu', want 'meta'"):
        sample(model, n=1, length=L)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device {device!r} is not available"):
            sample(masked(V, L), n=1, length=L, device=device)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"seed": 1.5}, "whole number: got 1.5"), ({"seed": "a"}, "got 'a'"),
     ({"first": -3}, "first is too small: got -3, want a whole number 0 .. "),
     ({"temperature": "1"}, "temperature is out of range: got '1'"),
     ({"temperature": 1e-320}, "want a finite temperature > 0"),
     ({"top_k": 1.5}, "whole number: got 1.5"),
     ({"top_p": True}, "top_p is out of range: got True"),
     ({"prompt": ["x"]}, "prompt has the wrong type: got ['x']")],
)  # fmt: skip
def test_numbers_of_the_wrong_kind(wrong, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        sample(masked(V, L), n=1, length=L, **wrong)


def test_weights_are_folded_once_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constant conditioning of a time-agnostic model is computed once, for all batches."""
    frozen, views = NetworkDenoiser.frozen, []
    monkeypatch.setattr(
        NetworkDenoiser, "frozen", lambda self: views.append(frozen(self)) or views[-1]
    )
    network = network_random(Shape(V, L, width=8, blocks=1, heads=2, cond_dim=4))
    model = masked(V, L)
    denoiser = NetworkDenoiser(network, V - 1, sees_alpha=False)
    model.denoiser = denoiser
    folded = sample(model, n=3, length=L, steps=3, batch_size=1)
    assert len(views) == 1
    model.denoiser = Unfolded(denoiser)
    assert torch.equal(folded.tokens, sample(model, n=3, length=L, steps=3).tokens)


class Unfolded:
    """A denoiser of another library."""

    def __init__(self, denoiser):
        self.denoiser, self.vocab_size, self.sees_alpha = denoiser, V, False

    def __call__(self, z, alpha):
        return self.denoiser(z, alpha)
