"""Counts, turns, and the arithmetic on given seconds: no test depends on a clock."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import unmask
from unmask.experiments.bench import ar_speedup
from unmask.experiments.bench.ar_speedup import (
    SpeedPair,
    TimedCall,
    autoregressive_twin,
    bench_rows,
    random_network,
    this_machine,
    time_pairs,
)
from unmask.experiments.bench.bench_results import BenchSettings
from unmask.models.dit import Shape
from unmask.samplers.sample import sample

LENGTH = 16
SETTINGS = BenchSettings(steps=(2, 12), batches=(1, 3), length=LENGTH, repeats=2, seed=4)


@pytest.fixture(scope="module")
def model(masked):
    return unmask.load(masked)


def test_counts_are_those_of_sample(model):
    """In 12 steps for 16 tokens a text skips calls that its batch makes: nfe < calls."""
    twin = autoregressive_twin(model)
    table = bench_rows(time_pairs(model, twin, SETTINGS, "cpu"), LENGTH)
    cells = [(batch, steps) for batch in (1, 3) for steps in (2, 12, None)]
    assert [(row.batch, row.steps) for row in table] == cells
    for row in table:
        which = twin if row.steps is None else model
        order = None if row.steps is None else "random"
        steps = row.steps or 1
        drawn = sample(which, n=row.batch, length=LENGTH, steps=steps, seed=4, order=order)
        assert row.nfe == pytest.approx(drawn.nfe.double().mean().item())
        assert row.calls == drawn.calls
        assert row.tokens_per_forward == pytest.approx(LENGTH / row.nfe)
        assert row.memory_bytes is None
    assert table[4].nfe < table[4].calls
    assert {row.nfe for row in table if row.steps is None} == {LENGTH}
    # The autoregressive model is in every pair.
    assert [row.tokens_per_second.n for row in table] == [2, 2, 4] * 2


def test_both_models_draw_in_turns(model, monkeypatch):
    """Ours, theirs, ours, theirs: the same batch, after one warm-up pair."""
    calls = []

    def recorded(of, **options):
        calls.append(("ours" if of is model else "theirs", options["n"], options["steps"]))
        return sample(of, **options)

    monkeypatch.setattr(ar_speedup, "sample", recorded)
    pairs = list(time_pairs(model, autoregressive_twin(model), SETTINGS))
    assert len(pairs) == 2 * 2 * SETTINGS.repeats
    cells = [(batch, steps) for batch in SETTINGS.batches for steps in SETTINGS.steps]
    expected = [cell for cell in cells for _ in range(1 + SETTINGS.repeats)]
    assert calls == [(who, *cell) for cell in expected for who in ("ours", "theirs")]


def test_rows_follow_from_the_seconds():
    """Ours takes a third of the other's seconds in every pair, although the pairs differ."""
    clock = [1.0, 2.0, 3.0, 5.0, 40.0]
    pairs = [
        SpeedPair(4, 2, TimedCall(2.0, 2, s, None), TimedCall(10.0, 10, 3 * s, 7)) for s in clock
    ]
    ours, theirs = bench_rows(pairs, length=10)
    assert (ours.ratio.value, ours.ratio.sem, ours.ratio.n) == (3.0, 0.0, 5)
    assert theirs.ratio is None
    assert ours.tokens_per_second.value == pytest.approx(40 / 3)
    assert ours.tokens_per_second.unit == "tokens/s"
    assert (ours.p50_s, ours.p95_s) == tuple(np.percentile(clock, [50, 95]))
    assert 5 < ours.p95_s < 40
    assert theirs.p95_s == pytest.approx(3 * ours.p95_s) and ours.seconds == tuple(clock)
    assert (ours.tokens_per_forward, theirs.tokens_per_forward) == (5.0, 1.0)
    assert (ours.memory_bytes, theirs.memory_bytes) == (None, 7)


def test_the_ratio_is_a_median_over_pairs():
    clock = [(1.0, 3.0), (2.0, 6.0), (1.0, 300.0)]
    pairs = [
        SpeedPair(4, 2, TimedCall(2.0, 2, a, None), TimedCall(10.0, 10, b, None)) for a, b in clock
    ]
    assert bench_rows(pairs, length=10)[0].ratio.value == 3.0


@pytest.mark.parametrize("kind", ["masked", "uniform"])
def test_the_twin_has_the_same_sizes(kind, request):
    """Its random matrices are nonzero and a function of the seed; the global generator is kept."""
    model = unmask.load(request.getfixturevalue(kind))
    before = torch.get_rng_state()
    twin, other = autoregressive_twin(model), autoregressive_twin(model, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    again = autoregressive_twin(model)
    assert twin.network.shape == replace(model.network.shape, causal=True, dropout=0.0)
    assert twin.predictor.mask_id == model.tokenizer.mask_id and twin.tokenizer is model.tokenizer
    assert not twin.network.training
    for name, weight in twin.network.state_dict().items():
        if weight.dim() == 2 and "rotary" not in name:
            assert 0.01 < weight.std() < 0.03, name
            assert not torch.equal(weight, other.network.state_dict()[name])
        assert torch.equal(weight, again.network.state_dict()[name]), name


def test_a_random_network_has_no_idle_gates():
    network = random_network(Shape(11, 4, width=8, blocks=1, heads=2, cond_dim=4))
    assert all(weight.abs().sum() > 0 for weight in network.parameters() if weight.dim() == 2)


def test_the_machine_is_named():
    here = this_machine("cpu", "float32")
    assert here.name and here.device == "cpu"
    assert here.threads == torch.get_num_threads() and here.torch == torch.__version__


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": (0, 4)}, "steps .* 0"),
        ({"steps": ()}, r"steps is empty.*\[\]"),
        ({"batches": (1, 1)}, r"batches is repeated.*\[1, 1\]"),
        ({"batches": (-1,)}, "batches .* -1"),
        ({"length": 0}, "length .* 0"),
        ({"repeats": 0}, "repeats .* 0"),
        ({"repeats": 10**20}, "repeats .* 1"),
        ({"seed": 2**63}, "seed .* 9223372036854775808"),
    ],
)
def test_settings_outside_their_range_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SETTINGS, **change)
