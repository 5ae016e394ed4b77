"""Laws of samplers against an enumeration of all paths, and their costs against the plan."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from textwrap import dedent
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from reference import (
    sampler_arg_max,
    sampler_confidence,
    sampler_filtered,
    sampler_p_value,
    sampler_reveal,
    sampler_uniform,
)
from toy_sampling import (
    FILTERS,
    MASK,
    L,
    V,
    alphas_of,
    draw,
    filtered,
    masked,
    planned_nfe,
    run_frames,
    start,
    uniform,
)
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import LogLinear
from unmask.samplers import steps
from unmask.samplers.counts import GRIDS, uniform_grid
from unmask.samplers.latent import Latent, draw_latent
from unmask.samplers.remasking import MixturePosteriorStep, ancestral
from unmask.samplers.sample import sample
from unmask.samplers.steps import LogProbs, Query, RevealStep, Sampler, SamplingProblem
from unmask.samplers.unmasking import reveal, unmasking_schedule


@pytest.mark.parametrize("sampler", ["reveal", "ancestral"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize(("eps", "sees_alpha"), [(1e-3, False), (0.3, True)])
def test_masked_law(sampler: str, steps: int, eps: float, sees_alpha: bool) -> None:
    """Also at alpha(1) far from 0. A network that reads alpha gets the alpha before the step."""
    model = masked(V, L, LogLinear(eps), sees_alpha=sees_alpha)
    exact = sampler_reveal(start((-1,) * L), alphas_of(model, steps), filtered(model), MASK)
    assert sampler_p_value(draw(model, steps, sampler=sampler).tokens, exact) > 1e-3


def test_the_test_can_fail() -> None:
    """The laws at 1, 2 and 8 steps differ, and N samples are enough to see it."""
    model = masked(V, L)
    laws = [
        sampler_reveal((MASK,) * L, alphas_of(model, steps), filtered(model), MASK)
        for steps in (1, 2, 8)
    ]
    tokens = [draw(model, steps).tokens for steps in (1, 2, 8)]
    assert all(
        sampler_p_value(tokens[i], laws[j]) < 1e-6 for i in range(3) for j in range(3) if i != j
    )


@pytest.mark.parametrize("sampler", ["reveal", "ancestral"])
@pytest.mark.parametrize("filters", FILTERS)
def test_masked_law_with_filters_and_pins(sampler: str, filters: dict[str, float]) -> None:
    model, pins = masked(V, L, seed=1), (-1, 2, -1)
    tokens = draw(model, 3, pins, sampler=sampler, grid="cosine", **filters).tokens
    exact = sampler_reveal(
        start(pins), alphas_of(model, 3, "cosine"), filtered(model, **filters), MASK
    )
    assert bool((tokens[:, 1] == 2).all()) and sampler_p_value(tokens, exact) > 1e-3


@pytest.mark.parametrize("name", ["inverse_cdf", "legacy_gumbel32"])
@pytest.mark.parametrize("sampler", ["reveal", "ancestral"])
def test_masked_law_with_other_draws(name: str, sampler: str) -> None:
    """The float32 draw is also right at probabilities that are not tiny."""
    model = masked(V, L, seed=2)
    exact = sampler_reveal((MASK,) * L, alphas_of(model, 4), filtered(model), MASK)
    assert sampler_p_value(draw(model, 4, draw=name, sampler=sampler).tokens, exact) > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    "filters", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_p": 0.5}, {"top_k": 2}]
)
@pytest.mark.parametrize("pins", [(-1, -1, -1), (-1, 3, -1)])
def test_uniform_law(steps: int, filters: dict[str, float], pins: tuple[int, ...]) -> None:
    """Filters act on p(x0), which is renormalised before Bayes' rule; z_s is not filtered."""
    model = uniform(V, L, LogLinear(0.1), sees_alpha=True)
    tokens = draw(model, steps, pins, **filters).tokens
    exact = sampler_uniform(pins, alphas_of(model, steps), filtered(model, **filters), V)
    assert sampler_p_value(tokens, exact) > 1e-3


@pytest.mark.parametrize("name", ["inverse_cdf", "legacy_gumbel32"])
def test_uniform_law_with_other_draws(name: str) -> None:
    """A draw from one number shows whether a step uses that number twice."""
    model = uniform(V, L, LogLinear(0.1), sees_alpha=True)
    exact = sampler_uniform((-1,) * L, alphas_of(model, 4), filtered(model, top_p=0.8), V)
    assert sampler_p_value(draw(model, 4, draw=name, top_p=0.8).tokens, exact) > 1e-3


@pytest.mark.parametrize("known", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.4), (0.5, 0.51), (0.5, 0.9), (0.9, 1.0)])
def test_a_step_from_a_known_text_has_the_law_of_the_posterior(
    known: float, low: float, high: float
) -> None:
    """One step from z = 2 everywhere, also at p(x0 = 2) = 0 and 1: the joint law of two tokens."""
    model, n = uniform(V, 2), 20_000
    p = torch.tensor([0.2, 0.5, 0.0, 0.3], dtype=torch.float64) * (1 - known)
    p[2] = known
    problem = SamplingProblem(
        model.process,
        torch.full((n, 2), -1),
        draw_latent(n, 2, 7),
        torch.tensor([low, high, 1.0]).double(),
    )
    step, z = ancestral(problem)[0], torch.full((n, 2), 2)
    query, log_p = step.query(z), p.log().clamp(min=-1e6)
    parts = zip(query.samples.split(9_000), query.columns.split(9_000), strict=True)
    after = step(z, [(at, log_p.expand(len(at[0]), V)) for at in parts])
    levels = (problem.alphas[k : k + 1] for k in (0, 1))
    law = model.process.posterior(p.expand(1, 1, V), z[:1, :1], *levels)[0, 0].numpy()
    joint = {(i, j): float(law[i] * law[j]) for i in range(V) for j in range(V)}
    assert sampler_p_value(after, joint) > 1e-3


GOLDEN = [  # masked(4, 5), 6 texts, 7 steps, seed 11, drawn by an earlier version
    ("reveal", ["20120", "00120", "12022", "11212", "12202", "11020"]),
    ("ancestral", ["22220", "20220", "10222", "10222", "20221", "01222"]),
    ("psi:0.5", ["12110", "00022", "02220", "12212", "22212", "22020"]),
    ("remdm_rescale:1", ["22100", "22102", "00210", "02210", "02101", "21110"]),
]


@pytest.mark.parametrize(("sampler", "texts"), GOLDEN)
def test_texts_of_masked_models_never_change(sampler: str, texts: list[str]) -> None:
    tokens = sample(
        masked(4, 5, LogLinear(0.05)), n=6, length=5, steps=7, seed=11, sampler=sampler
    ).tokens
    assert ["".join(map(str, row)) for row in tokens.tolist()] == texts


def test_the_test_of_filters_can_fail() -> None:
    """The law without top-p, and the one that filters z_s in place of x0, are rejected."""
    model, pins = uniform(V, L, LogLinear(0.1), sees_alpha=True), (-1,) * L
    tokens = draw(model, 2, pins, top_p=0.5).tokens
    assert (
        sampler_p_value(tokens, sampler_uniform(pins, alphas_of(model, 2), filtered(model), V))
        < 1e-6
    )
    late = sampler_uniform(
        pins, alphas_of(model, 2), filtered(model), V, lambda p: sampler_filtered(p, top_p=0.5)
    )
    assert sampler_p_value(tokens, late) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("filters", "pins"),
    [
        ({}, (-1, -1, -1)),
        ({"temperature": 1.5, "top_p": 0.7}, (-1, -1, -1)),
        ({"top_k": 2}, (-1, 1, -1)),
    ],
)
def test_confidence_law(steps: int, filters: dict[str, float], pins: tuple[int, ...]) -> None:
    """Tokens come from the filtered law, their order from the law before top-p."""
    model = masked(V, L, seed=6)
    score = filtered(model, temperature=filters.get("temperature", 1.0))
    exact = sampler_confidence(
        start(pins), alphas_of(model, steps), filtered(model, **filters), score, MASK
    )
    assert (
        sampler_p_value(draw(model, steps, pins, sampler="confidence", **filters).tokens, exact)
        > 1e-3
    )


@pytest.mark.parametrize("kind", [masked, uniform])
@pytest.mark.parametrize(
    ("grid", "steps"), [("uniform", 1), ("uniform", 3), ("released", 1), ("released", 2)]
)
@pytest.mark.parametrize(
    ("pins", "filters"), [((-1, -1, -1), {}), ((-1, 2, -1), {"temperature": 1.5, "top_k": 3})]
)
def test_greedy_tail_law(
    kind: Callable[..., SimpleNamespace],
    grid: str,
    steps: int,
    pins: tuple[int, ...],
    filters: dict[str, float],
) -> None:
    """Draws up to the last step, which writes the most probable token: at MASKs, or everywhere."""
    model = kind(V, L, LogLinear(0.2), sees_alpha=True)
    alphas, law = alphas_of(model, steps, grid), filtered(model, **filters)
    if kind is masked:
        before = sampler_reveal(start(pins), alphas[:-1], law, MASK)
    else:
        before = sampler_uniform(pins, alphas[:-1], law, V)
    texts = sampler_arg_max(
        before, alphas[-2], law, lambda i, v: pins[i] < 0 and (kind is uniform or v == MASK)
    )
    tokens = draw(model, steps, pins, sampler="greedy_tail", grid=grid, **filters).tokens
    assert sampler_p_value(tokens, texts) > 1e-3


def test_a_greedy_tail_takes_the_smaller_id_of_two_without_a_draw() -> None:
    model = masked(V, L)
    model.denoiser.logits[:] = torch.tensor([0.0, 1.0, 1.0, 9.0])
    assert draw(model, 1, sampler="greedy_tail").tokens.unique().tolist() == [1]
    assert draw(model, 1).tokens.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "sampler"), [(masked, "reveal"), (masked, "greedy_tail"), (uniform, "ancestral")]
)
def test_the_released_grid_makes_one_step_more(
    kind: Callable[..., SimpleNamespace], sampler: str
) -> None:
    """N + 1 steps, the last from t = 1e-5: a MASK is rarely left; other noise costs a call."""
    model = kind(V, L, LogLinear(1e-3), sees_alpha=True)
    frames = list(run_frames(model, n=5, length=L, steps=3, sampler=sampler, grid="released"))
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4] and frames[-1].alpha == 1
    assert frames[-2].alpha == pytest.approx(1 - (1 - 1e-3) * 1e-5, abs=1e-15)
    paid = [k for k in range(4) if len(frames[k + 1].rows)]
    assert model.denoiser.alphas == [frames[k].alpha for k in paid] and paid == list(
        range(3 if kind is masked else 4)
    )
    done = sample(model, n=5, length=L, steps=3, sampler=sampler, grid="released")
    assert done.calls == len(paid) and done.nfe.sum() == sum(len(frame.rows) for frame in frames)
    assert kind is masked or done.nfe.tolist() == [4] * 5


def test_confidence_counts_follow_the_grid() -> None:
    """Of F free tokens round(F share) are visible after a step; a step without any is free."""
    model = masked(V, 5)
    pinned = torch.tensor([[-1, -1, -1, -1, -1], [0, -1, -1, 1, 2], [0, 1, 2, 1, 0]])
    done = sample(model, n=3, length=5, steps=7, pinned=pinned, sampler="confidence")
    share = (torch.tensor(alphas_of(model, 7)) - 1e-3) / (1 - 1e-3)
    shown = ((pinned < 0).sum(1, keepdim=True) * share).round()  # no halves at 7 steps
    assert done.nfe.tolist() == (shown.diff(dim=1) > 0).sum(1).tolist()
    assert sum(model.denoiser.batches) == done.nfe.sum() and done.nfe[2] == 0


@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 12), st.integers(0, 99), st.floats(0, 0.9)
)
def test_a_schedule_reveals_every_free_position_once_when_its_level_is_passed(
    n: int, length: int, steps: int, seed: int, eps: float
) -> None:
    latent, alphas = draw_latent(n, length, seed), uniform_grid(steps, LogLinear(eps))
    free = draw_latent(n, length, seed + 100).u < 0.7
    queries = unmasking_schedule(latent.u, alphas, free)
    problem = SamplingProblem(
        MaskedProcess(V, MASK), torch.full((n, length), -1).where(free, 0), latent, alphas
    )
    step = torch.full((n, length), -1)
    for k, query in enumerate(queries):
        assert query.rows.tolist() == sorted(set(query.samples.tolist()))
        at = query.samples, query.columns
        assert bool((step[at] == -1).all())
        step[at] = k
        reveal_step = RevealStep.of(problem, query)
        assert reveal_step.query(problem.canvas()) == reveal_step.positions
        padded = [sorted(set(row)) for row in reveal_step.columns.tolist()]
        assert padded == [query.columns[query.samples == row].tolist() for row in query.rows]
    assert torch.equal(step >= 0, free)
    level = alphas[0] + (1 - alphas[0]) * latent.u
    assert bool((alphas[step.clamp(min=0)] <= level)[free].all()) and bool(
        (level < alphas[step + 1])[free].all()
    )
    nfe = [len(set(row[row >= 0].tolist())) for row in step]
    assert planned_nfe(queries, n).tolist() == nfe


@pytest.mark.parametrize("eps", [1e-3, 0.4])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_step_reveals_its_share(eps: float, grid: str) -> None:
    """P(step k) = (alpha_{k+1} - alpha_k) / (1 - alpha_0)."""
    alphas = GRIDS[grid](6, LogLinear(eps))
    free = torch.ones(400, 100, dtype=torch.bool)
    counts = [len(q.samples) for q in unmasking_schedule(draw_latent(400, 100, 1).u, alphas, free)]
    expected = (40_000 * alphas.diff() / (1 - alphas[0])).numpy()
    rare = expected < 5  # a level that stands, or the last 1e-5 of "released"
    assert sum(count for count, few in zip(counts, rare, strict=True) if few) <= 5
    scale = sum(np.array(counts)[~rare]) / expected[~rare].sum()
    assert chisquare(np.array(counts)[~rare], expected[~rare] * scale).pvalue > 1e-3


@pytest.mark.parametrize(("length", "steps"), [(8, 4), (8, 8), (8, 64), (3, 1000)])
def test_expected_nfe(length: int, steps: int) -> None:
    """E[nfe] = sum_k 1 - (1 - p_k)^L, and nfe <= L at any number of steps."""
    n, alphas = 4000, uniform_grid(steps, LogLinear())
    free = torch.ones(n, length, dtype=torch.bool)
    queries = unmasking_schedule(draw_latent(n, length, 2).u, alphas, free)
    nfe = planned_nfe(queries, n).double()
    p = alphas.diff() / (1 - alphas[0])
    expected = float((1 - (1 - p) ** length).sum())
    assert nfe.max() <= min(length, steps)
    assert abs(nfe.mean() - expected) <= 4 * max(nfe.std() / math.sqrt(n), 1e-3)


def test_a_schedule_is_the_exact_cost() -> None:
    """Calls, their samples, alphas and head rows are those of the schedule."""
    model = masked(V, 4, sees_alpha=True)
    pinned = torch.tensor([[-1, -1, -1, -1], [0, -1, 1, 2], [2, 2, 2, 2], [-1, -1, 0, -1]])
    alphas = uniform_grid(30, model.schedule)
    queries = unmasking_schedule(draw_latent(4, 4, seed=3).u, alphas, pinned < 0)
    done = sample(model, n=4, length=4, steps=30, seed=3, pinned=pinned, order="random")
    paid = [k for k, query in enumerate(queries) if len(query.rows)]
    denoiser, nfe = model.denoiser, planned_nfe(queries, 4)
    assert 0 < done.calls == len(paid) == len(denoiser.batches) < 30
    assert torch.equal(done.nfe, nfe) and done.nfe[2] == 0 and sum(denoiser.batches) == nfe.sum()
    assert denoiser.batches == [len(queries[k].rows) for k in paid]
    assert denoiser.alphas == [alphas_of(model, 30)[k] for k in paid]
    assert denoiser.head_rows == [len(queries[k].samples) for k in paid]
    assert sum(denoiser.head_rows) == 8


def test_ancestral_stops_when_nothing_is_masked_and_reads_masks_only() -> None:
    model = masked(V, 3)
    done = sample(model, n=1, length=3, steps=100, sampler="ancestral")
    assert done.calls < 100 and 3 <= sum(model.denoiser.head_rows) <= 3 * done.calls


@pytest.mark.parametrize("sampler", ["reveal", "confidence", "entropy_bounded:1"])
def test_samplers_of_masks_refuse_other_noise(sampler: str) -> None:
    with pytest.raises(ValueError, match=r"MaskedProcess, got UniformProcess.*'ancestral'"):
        sample(uniform(V, L), n=1, length=L, steps=2, sampler=sampler)


def test_a_problem_refuses_levels_that_do_not_end_in_text() -> None:
    model, pins = masked(V, L), torch.full((2, L), -1)
    with pytest.raises(ValueError, match="exactly 1"):
        SamplingProblem(model.process, pins, draw_latent(2, L, 0), torch.tensor([0.0, 0.5]))


def test_a_schedule_is_made_before_the_first_call() -> None:
    model, pins = masked(V, L), torch.full((2, L), -1)
    problem = SamplingProblem(
        model.process, pins, draw_latent(2, L, 0), uniform_grid(4, model.schedule)
    )
    blank: Tensor = problem.canvas()
    queries = unmasking_schedule(problem.latent.u, problem.alphas, problem.free)
    assert [len(step.query(blank).samples) for step in reveal(problem)] == [
        len(query.samples) for query in queries
    ]
    assert model.denoiser.batches == []


def uniform_problem(latent: Latent, vocab_size: int) -> SamplingProblem:
    return SamplingProblem(
        UniformProcess(vocab_size),
        torch.full(latent.u.shape, -1),
        latent,
        uniform_grid(4, LogLinear()),
    )


def test_canvases_of_noise_are_uniform_and_each_samples_own() -> None:
    latent = draw_latent(500, 40, 3)
    canvas = uniform_problem(latent, 6).canvas()
    assert chisquare(canvas.flatten().bincount(minlength=6).numpy()).pvalue > 1e-3
    assert (
        chisquare((canvas[:-1] * 6 + canvas[1:]).flatten().bincount(minlength=36).numpy()).pvalue
        > 1e-3
    )
    assert torch.equal(canvas[[7, 3]], uniform_problem(latent[torch.tensor([7, 3])], 6).canvas())


def test_canvases_whose_keys_share_32_bits_differ() -> None:
    """A generator that reads 32 bits of a key gives two samples one canvas."""
    latent = draw_latent(2, 24, 0)
    latent = Latent(latent.u, torch.tensor([5, 5 + 2**32]))
    first, second = uniform_problem(latent, 50).canvas()
    assert not torch.equal(first, second)


def test_a_canvas_is_independent_of_the_noise_of_the_steps() -> None:
    latent = draw_latent(500, 40, 3)
    problem = uniform_problem(latent, 6)
    for k in range(3):
        noise = MixturePosteriorStep(problem, k)._numbers()[1]
        cells = (problem.canvas() * 6 + noise).flatten().bincount(minlength=36)
        assert chisquare(cells.numpy()).pvalue > 1e-3


def test_the_sampler_of_the_page_runs_and_has_the_law_of_its_order() -> None:
    """The code in the docstring of `samplers.steps`, alone: q(x) = prod_i p(x_i | x_<i)."""
    code = dedent("".join(re.findall(r"(?m)(^    .*\n|^\n)", dedent(steps.__doc__ or ""))))
    code = code[code.index("@dataclass") : code.index("unmask.sample(")]
    names: dict[str, object] = {**vars(steps)}
    exec(code, names)
    model, law = masked(V, L, LogLinear(0.3), sees_alpha=True), {}
    for text in product(range(MASK), repeat=L):
        canvases = [text[:i] + (MASK,) * (L - i) for i in range(L)]
        levels = [0.3 + 0.7 * i / L for i in range(L)]
        p = [model.denoiser.law(*at) for at in zip(canvases, levels, strict=True)]
        law[text] = math.prod(float(p[i][i, text[i]]) for i in range(L))
    done = draw(model, 2, sampler=names["left_to_right"])
    assert sampler_p_value(done.tokens, law) > 1e-3 and done.calls == L


@dataclass(frozen=True)
class FixedStep:
    """A step of a user's sampler: it puts one token at some positions."""

    mask: Tensor
    token: int = 0
    alpha: Tensor | None = None

    def query(self, z: Tensor) -> Query:
        return Query.of(self.mask, self.alpha)

    def __call__(self, z: Tensor, log_probs: LogProbs) -> Tensor:
        list(log_probs)
        return z.masked_fill(self.mask, self.token)


def test_a_sampler_that_breaks_a_rule_is_refused() -> None:
    model = masked(V, L)

    def run(sampler: Callable[[SamplingProblem], object]) -> object:
        return sample(model, 2, L, steps=2, prompt=[1], sampler=cast(Sampler, sampler)).tokens

    assert run(lambda problem: [FixedStep(problem.free)]) is not None
    with pytest.raises(ValueError, match=r"given token.*free"):
        run(lambda problem: [FixedStep(torch.ones_like(problem.free))])
    with pytest.raises(ValueError, match=r"sampler left MASKs"):
        run(lambda problem: [])
    for token in (-1, V):
        with pytest.raises(ValueError, match=rf"outside the vocabulary: got .*want 0 .. {V - 1}"):
            run(lambda problem: [FixedStep(problem.free, token)])  # noqa: B023
    with pytest.raises(ValueError, match=r"query of step 0 is not a Query: got .*NoneType"):
        run(lambda problem: [SimpleNamespace(query=lambda z: None)])
    with pytest.raises(ValueError, match=r"mask is not a bool tensor: got int64"):
        run(lambda problem: [FixedStep(problem.pins)])
    with pytest.raises(ValueError, match=r"steps is too small: got a grid of 2, want 3"):
        run(lambda problem: [FixedStep(problem.free)] * 3)
    with pytest.raises(ValueError, match=r"sampler returned a function, want a list"):
        run(lambda problem: lambda again: [])
    alpha = torch.zeros(2, dtype=torch.float64)
    run(lambda problem: [FixedStep(problem.free, alpha=alpha)] * 3)  # alphas of its own
    for wrong in (0.5, torch.tensor(0.5), torch.zeros(1)):
        with pytest.raises(ValueError, match=r"alpha in the query of step 0 .*want a tensor \[2\]"):
            run(lambda problem: [FixedStep(problem.free, alpha=cast(Tensor, wrong))])  # noqa: B023
    for wrong in (None, torch.zeros(2, L), torch.zeros(L, dtype=torch.int64)):
        with pytest.raises(ValueError, match=rf"text of step 0 .*want a tensor int64 \[2, {L}\]"):
            run(lambda problem: [ConstantStep(problem.free, text=wrong)])  # noqa: B023


@dataclass(frozen=True)
class ConstantStep(FixedStep):
    """A step that returns this value."""

    text: object = None

    def __call__(self, z: Tensor, log_probs: LogProbs) -> Tensor:
        return cast(Tensor, self.text)
