"""Nothing timed is a test here: counts, turns, and the arithmetic from seconds that are given."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import unmask
from unmask.experiments.bench import ar_speedup as side_by_side
from unmask.experiments.bench.ar_speedup import (
    Call,
    SpeedPair,
    causal_twin,
    machine,
    pairs,
    random_network,
    rows,
)
from unmask.experiments.bench.throughput import BenchSettings
from unmask.models.dit import Shape
from unmask.samplers.sample import sample

LENGTH = 16
PLAN = BenchSettings(steps=(2, 12), batches=(1, 3), length=LENGTH, repeats=2, seed=4)


@pytest.fixture(scope="module")
def model(masked):
    return unmask.load(masked)


def test_counts_are_those_of_sample(model):
    """Of 16 tokens in 12 steps a text skips some that its batch does not: nfe is the mean over texts."""
    twin = causal_twin(model)
    table = rows(pairs(model, twin, PLAN, "cpu"), LENGTH)
    assert [(row.batch, row.steps) for row in table] == [
        (b, s) for b in (1, 3) for s in (2, 12, None)
    ]
    for row in table:
        drawn = sample(
            twin if row.steps is None else model,
            n=row.batch,
            length=LENGTH,
            steps=row.steps or 1,
            seed=4,
        )
        assert (
            row.nfe == pytest.approx(drawn.nfe.double().mean().item()) and row.calls == drawn.calls
        )
        assert row.tokens_per_forward == pytest.approx(LENGTH / row.nfe)
        assert row.memory_bytes is None, "of a process that holds much else"
    assert table[4].nfe < table[4].calls, "or the test cannot tell the two apart"
    assert {row.nfe for row in table if row.steps is None} == {LENGTH}
    assert [row.tokens_per_second.n for row in table] == [2, 2, 4] * 2, (
        "the autoregressive one is in every pair"
    )


def test_ours_and_the_other_draw_in_turns(model, monkeypatch):
    """Ours, theirs, ours, theirs: the same batch, one pair before those that count."""
    calls = []

    def recorded(of, **options):
        calls.append(("ours" if of is model else "theirs", options["n"], options["steps"]))
        return sample(of, **options)

    monkeypatch.setattr(side_by_side, "sample", recorded)
    found = list(pairs(model, causal_twin(model), PLAN))
    assert len(found) == 2 * 2 * PLAN.repeats
    asked = [
        (batch, steps)
        for batch in PLAN.batches
        for steps in PLAN.steps
        for _ in range(1 + PLAN.repeats)
    ]
    assert calls == [(who, *each) for each in asked for who in ("ours", "theirs")]


def test_figures_are_those_of_the_seconds():
    """Ours takes a third of the other's seconds in every pair, on a machine that is slower in each."""
    clock = [1.0, 2.0, 3.0, 5.0, 40.0]
    found = [SpeedPair(4, 2, Call(2.0, 2, s, None), Call(10.0, 10, 3 * s, 7)) for s in clock]
    ours, theirs = rows(found, length=10)
    assert (ours.ratio.value, ours.ratio.sem, ours.ratio.n) == (
        3.0,
        0.0,
        5,
    ) and theirs.ratio is None
    assert (
        ours.tokens_per_second.value == pytest.approx(40 / 3)
        and ours.tokens_per_second.unit == "tokens/s"
    )
    assert (ours.p50_s, ours.p95_s) == tuple(np.percentile(clock, [50, 95])), (
        "linear, as numpy's percentile"
    )
    assert 5 < ours.p95_s < 40
    assert theirs.p95_s == pytest.approx(3 * ours.p95_s) and ours.seconds == tuple(clock)
    assert (ours.tokens_per_forward, theirs.tokens_per_forward) == (5.0, 1.0)
    assert (ours.memory_bytes, theirs.memory_bytes) == (None, 7)
    slower = [*found, SpeedPair(4, 2, Call(2.0, 2, 1.0, None), Call(10.0, 10, 300.0, None))]
    assert rows(slower, length=10)[0].ratio.value == 3.0, "a median over pairs"


@pytest.mark.parametrize("kind", ["masked", "uniform"])
def test_the_twin_has_the_same_sizes(kind, request):
    """And random weights of its own, none of the matrices zero; the global generator is left alone."""
    model = unmask.load(request.getfixturevalue(kind))
    before = torch.get_rng_state()
    twin, other = causal_twin(model), causal_twin(model, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    again = causal_twin(model)
    assert twin.network.shape == replace(model.network.shape, causal=True, dropout=0.0)
    assert twin.predictor.mask_id == model.tokenizer.mask_id and twin.tokenizer is model.tokenizer
    assert not twin.network.training
    for name, weight in twin.network.state_dict().items():
        if weight.dim() == 2 and "rotary" not in name:
            assert 0.01 < weight.std() < 0.03, name
            assert not torch.equal(weight, other.network.state_dict()[name])
        assert torch.equal(weight, again.network.state_dict()[name]), (
            "biases are a function of the seed, too"
        )


def test_a_random_network_has_no_idle_gates():
    network = random_network(Shape(11, 4, width=8, blocks=1, heads=2, cond_dim=4))
    assert all(weight.abs().sum() > 0 for weight in network.parameters() if weight.dim() == 2)


def test_the_machine_is_named():
    here = machine("cpu", "float32")
    assert (
        here.name
        and here.threads == torch.get_num_threads() == 1
        and here.torch == torch.__version__
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": (0, 4)}, "steps is too small: got 0, want a whole number 1 .. 1048576"),
        ({"steps": ()}, r"steps is empty: got \[\], want at least one and none twice"),
        ({"batches": (1, 1)}, r"batches is repeated: got \[1, 1\]"),
        ({"batches": (-1,)}, "batches is too small: got -1"),
        ({"length": 0}, "length is too small: got 0"),
        ({"repeats": 0}, "repeats is too small: got 0"),
        ({"repeats": 10**20}, "repeats is too large: got 1"),
        ({"seed": 2**63}, "seed is too large: got 9223372036854775808"),
    ],
)
def test_a_plan_counts(change, words):
    with pytest.raises(ValueError, match=words):
        replace(PLAN, **change)
