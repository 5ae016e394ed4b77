"""The estimate of a dry run matches the cost of a training."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unmask
from unmask.models.dit import DiT, Shape
from unmask.recipes.catalog import RECIPES, recipe
from unmask.recipes.estimate import _parameters, check_memory, estimate
from unmask.recipes.run import run

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
@pytest.mark.parametrize(
    ("case", "shards"), [("body, recomputed", 1), ("uniform", 1), ("MCD, wide", 1), ("head", 2)]
)
def test_memory_is_estimated_to_15_percent(
    case: str, shards: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, optimizer, activations with dropout or recomputed, a noise level, two losses.

    Also each of two processes that share the weights. The networks have half of the width of the
    benchmark.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(unmask.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    benchmark = runpy.run_path(str(BENCHMARK))
    benchmark["main"](["--cases", case, "--shards", str(shards), "--narrow", "2"])
    line = json.loads(capsys.readouterr().out)
    assert line["ratio"] == pytest.approx(1, abs=0.15), line


def test_micro_batches_and_checkpointing_save_memory() -> None:
    """Micro-batches divide activations; checkpointing saves more, for more FLOPs."""
    plan = recipe("owt-small-mcd")
    whole, halves, again = (
        estimate(change)
        for change in (
            plan,
            replace(plan, accumulation=2 * plan.accumulation),
            replace(plan, checkpointing=True),
        )
    )
    assert (
        halves["activations_bytes"] < 0.6 * whole["activations_bytes"]
        and halves["flops"] == whole["flops"]
    )
    assert again["activations_bytes"] < 0.25 * whole["activations_bytes"]
    assert 1.1 < again["flops"] / whole["flops"] < 4 / 3
    assert again["weights_bytes"] == whole["weights_bytes"] == 24 * whole["parameters"]


def test_32_rows_of_1024_tokens_fit_in_24_gb() -> None:
    """Weights, teacher, optimizer, EMA and activations of a micro-batch."""
    plan = replace(recipe("owt-small-mcd"), accumulation=4)
    assert plan.batch_size // plan.accumulation == 32 and estimate(plan)["memory_bytes"] < 24e9


def test_hours_follow_the_flops_and_the_precision() -> None:
    plan = recipe("owt-small-mcd")
    cost = estimate(plan)
    assert cost["hours"]["H100"] == pytest.approx(cost["flops"] / (0.4 * 989e12 * 3600), rel=0.01)
    assert (
        estimate(replace(plan, precision="float32"))["hours"]["H100"] > 10 * cost["hours"]["H100"]
    )


def test_attention_counts_with_the_length() -> None:
    """4 L D FLOPs a token and block: half of it where a token reads its past only."""
    plan = recipe("owt-small-teacher")
    longer = replace(
        plan, network=replace(plan.network, length=4096), batch_size=plan.batch_size // 4
    )
    first, second = estimate(plan), estimate(longer)
    assert first["tokens"] == second["tokens"]
    more = second["flops"] - first["flops"]
    assert more == 3 * first["tokens"] * 4 * 3072 * plan.network.width * plan.network.blocks


def test_chunks_are_those_of_the_device() -> None:
    plan = recipe("owt-small-mcd")
    gpu, cpu = (
        estimate(plan, device=torch.device(kind))["vocabulary_bytes"] for kind in ("cuda", "cpu")
    )
    assert gpu > cpu > 2 * 4 * 50258 * 768


@pytest.mark.parametrize(
    "path",
    [
        "network.length",
        "network.width",
        "network.blocks",
        "network.cond_dim",
        "batch_size",
        "objective.deeper",
    ],
)
@pytest.mark.parametrize(
    "name", ["demo-teacher", "demo-judge", "demo-duo", "demo-mcd", "demo-sdtt", "long-teacher"]
)
def test_sizes_beyond_the_machine_are_refused_before_anything_is_built(
    path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` checks first, within milliseconds: no text is read, no network is built."""
    plan, value = recipe(name), 24 * 10**8
    first, _, rest = path.partition(".")
    if path == "objective.deeper" and name != "long-teacher":
        return
    plan = replace(
        plan, **{first: replace(getattr(plan, first), **{rest: value}) if rest else value}
    )
    if path in ("network.width", "network.blocks", "network.cond_dim") and (plan.traits.start):
        check_memory(plan, torch.device("cpu"))  # the model to start from has its own
        return
    monkeypatch.setattr(
        "unmask.recipes.run.training_data", lambda *_: pytest.fail("reads the text")
    )
    with pytest.raises(
        ValueError,
        match=f"^{path} .*got {value}, .*--",
    ):
        next(run(plan, tmp_path / "run", device="cpu"))


@pytest.mark.parametrize("function", RECIPES, ids=lambda function: function.__name__)
def test_the_least_that_a_step_needs_is_below_the_estimate(
    function, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is refused only if its estimate is more than twice the memory."""
    plan = function()
    monkeypatch.setattr(
        "unmask.recipes.estimate.memory_of",
        lambda device: estimate(plan, 1000)["memory_bytes"] // 2,
    )
    check_memory(plan, torch.device("cpu"))


def test_parameters_are_counted_block_by_block() -> None:
    shape = Shape(50, 16, width=24, blocks=5, heads=2)
    assert _parameters(shape) == sum(weight.numel() for weight in DiT(shape).parameters())
    assert _parameters(replace(shape, blocks=10**9)) > 10**9, "and not built"
