"""Every field of every recipe has an effect, or a reason is given and its flag is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toy_recipes import shrink
from unmask.dataclass_json import from_json, leaves, to_json
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.model import load
from unmask.models.modules import weights_digest
from unmask.recipes.build import build, load_start
from unmask.recipes.catalog import recipe
from unmask.recipes.data import training_data
from unmask.recipes.objective_settings import (
    AutoregressiveSettings,
    ConsistencySettings,
    CurriculumSettings,
    NelboSettings,
    SdttSettings,
)
from unmask.recipes.schema import DataSettings, Recipe, Schedule
from unmask.recipes.unused_settings import (
    check_flags,
    set_by_start,
    unused_lines,
    without_effect,
)

# Used for every objective: tested in test_run.py and tests/training.
OF_EVERY_RUN = {"name", "batch_size", "accumulation", "steps", "save_every", "seed"}
OTHERS: dict[str, Any] = {
    "network.heads": 1,
    "network.width": 16,
    "network.blocks": 2,
    "network.cond_dim": 8,
    "network.dropout": 0.25,
    "network.length": 8,
    "data.tokenizer": "bpe:263",
    "data.part": "all",
    "schedule.name": "cosine",
    "schedule.eps": 0.25,
    "schedule.power": 3.0,
    "precision": "bfloat16",
    "objective.deeper": 2,
    "objective.process": "uniform",
    "objective.direction": "forward",
    "objective.revealed": "divergence",
    "objective.coupling": "independent",
    "objective.order": "spread",
    "objective.reduction": "masked",
    "objective.gamma": (-3.0, -1.5),
    "objective.temperatures": (0.5, 0.5),
    "objective.divergence": "tvd",
    "objective.time_grid": "released",
    "objective.delta0": 1 / 16,
    "objective.t_min": 0.125,
    "objective.revealed_weight": 2.0,
    "objective.temperature": 9.0,
    "optim.betas": (0.5, 0.75),
}


@pytest.fixture(scope="module")
def plans(text: Path, masked: Path, causal: Path) -> dict[str, Recipe]:
    """A small recipe of each kind, and of those that start from a model."""
    small = replace(shrink(recipe("demo-teacher"), text), precision="float32")
    start, judge = str(masked), str(causal)
    kinds = {
        "teacher": small.objective,
        "teacher from a model": NelboSettings(init=start),
        "polynomial": small.objective,
        "curriculum": CurriculumSettings(soft_steps=1),
        "hard curriculum": CurriculumSettings(soft_steps=0),
        "judge": AutoregressiveSettings(),
        "judge from a model": AutoregressiveSettings(init=judge),
        "mcd": ConsistencySettings(
            teacher=start, round_steps=1, delta0=1 / 8, temperatures=(0.9, 0.8)
        ),
        "mcd without the revealed": ConsistencySettings(
            teacher=start, round_steps=1, delta0=1 / 8, temperatures=(0.9, 0.8), revealed="none"
        ),
        "sdtt": SdttSettings(teacher=start, round_steps=1, delta0=1 / 8, count=2),
        "sdtt of one step": SdttSettings(
            teacher=start, round_steps=1, delta0=1 / 8, count=2, teacher_steps=1
        ),
    }
    schedules = {"polynomial": Schedule("polynomial", power=2.0)}
    return {
        name: replace(small, objective=objective, schedule=schedules.get(name, small.schedule))
        for name, objective in kinds.items()
    }


def resolved(plan: Recipe) -> dict[str, Any]:
    """The effects of a recipe: rows, initial weights, precision, first losses."""
    data = training_data(plan)
    parts = build(plan, data.tokenizer)
    network = parts.student.network
    shape = replace(network.shape, cond_dim=1) if network.shape.causal else network.shape
    weights = weights_digest(network.state_dict())
    for tensor in network.parameters():  # no longer the teacher's equal, nor a head of zeros
        torch.nn.init.normal_(
            tensor, 0.0, 0.3, generator=torch.Generator().manual_seed(tensor.numel())
        )
    losses = []
    for step in range(4):
        generator = torch.Generator().manual_seed(5)
        loss = parts.objective(parts.student.eval(), data.train[:2], step=step, generator=generator)
        losses += [
            loss.per_token.sum().item(),
            loss.weight.sum().item(),
            float(loss.metrics.get("round", 0)),
        ]
    return {
        "rows": (tuple(data.train.shape), data.train[:].sum().item(), data.tokenizer.digest),
        "weights": weights,
        "network": (shape, network.compute_dtype, network.checkpointing),
        "sees_alpha": isinstance(parts.student, NetworkDenoiser) and parts.student.sees_alpha,
        "losses": losses,
    }


def idle(plan: Recipe) -> dict[str, str]:
    return set_by_start(plan) | without_effect(plan)


def other(path: str, value: Any) -> Any:
    """Another value of a field."""
    if path in OTHERS:
        return OTHERS[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return 0.5 if value is None else value / 2


def changed(plan: Recipe, path: str, value: Any) -> Recipe:
    first, _, rest = path.partition(".")
    return replace(plan, **{first: changed(getattr(plan, first), rest, value) if rest else value})


KINDS = [
    "teacher",
    "teacher from a model",
    "polynomial",
    "curriculum",
    "hard curriculum",
    "judge",
    "judge from a model",
    "mcd",
    "mcd without the revealed",
    "sdtt",
    "sdtt of one step",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_an_effect_or_a_reason(kind: str, plans: dict[str, Recipe]) -> None:
    plan = plans[kind]
    before, unused = resolved(plan), idle(plan)
    given = {
        "objective.kind",
        "objective.init",
        "objective.teacher",
        "data.corpus",
        "data.streaming",
        "data.wrap",
    }
    for path, value in leaves(plan):
        if path in OF_EVERY_RUN | given or path.startswith("optim."):
            assert path not in unused
            continue
        try:
            now = resolved(changed(plan, path, other(path, value)))
        except ValueError:
            continue  # refused
        assert (now == before) == (path in unused), f"{path} of {kind}: unused is {path in unused}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_without_effect_is_refused(kind: str, plans: dict[str, Recipe]) -> None:
    """Except sizes of the network: the same flags serve teacher, judge and student."""
    plan = plans[kind]
    for path in idle(plan):
        flagged = changed(plan, path, other(path, dict(leaves(plan))[path]))
        if path not in idle(flagged):
            continue
        if path.startswith("network.") and path != "network.sees_alpha":
            check_flags(flagged, plan)
            continue
        with pytest.raises(ValueError, match=f"^--{path.replace('_', '-')} has no effect"):
            check_flags(flagged, plan)
    check_flags(replace(plan, seed=9, optim=replace(plan.optim, lr=0.5)), plan)


def test_an_estimate_reads_sizes_and_vocabulary() -> None:
    """docs/scaling.md estimates distillations of networks that do not exist."""
    plan = recipe("owt-small-mcd")
    wide = replace(
        plan,
        network=replace(plan.network, width=4096, heads=32),
        data=DataSettings(tokenizer="bpe:128000"),
    )
    check_flags(wide, plan, estimated=True)
    with pytest.raises(ValueError, match=r"^--data.tokenizer has no effect"):
        check_flags(wide, plan)
    with pytest.raises(ValueError, match=r"^--schedule.name has no effect"):
        check_flags(replace(plan, schedule=Schedule("cosine")), plan, estimated=True)


def started_lines(plan: Recipe) -> list[str]:
    """The lines about settings of a recipe that starts from a model."""
    start = load_start(plan)
    return unused_lines(plan, build(plan, None, start=start), start)


def test_a_run_reports_settings_without_effect(plans: dict[str, Recipe], masked: Path) -> None:
    plan = replace(
        plans["mcd"],
        schedule=Schedule("cosine"),
        network=replace(plans["mcd"].network, sees_alpha=True),
    )
    plan = replace(plan, network=replace(plan.network, length=8))
    lines = started_lines(plan)
    assert f"network.sees_alpha = False of {masked}, not True" in lines
    assert f"schedule = LogLinear(eps=0.001) of {masked}, not Cosine(eps=0.001)" in lines
    assert any("network.length = 8 tokens" in line and "rows of 16" in line for line in lines)
    judge = replace(plans["judge"], network=replace(plans["judge"].network, sees_alpha=True))
    reason = "autoregressive training has no noise"
    assert f"network.sees_alpha = True has no effect: {reason}" in unused_lines(
        judge, build(judge, None, vocab_size=20)
    )


def test_a_text_by_its_relative_path_is_the_same_text(
    plans: dict[str, Recipe], masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards of version 0.1 hold relative paths."""
    plan = plans["mcd"]
    text = Path(plan.data.corpus)
    monkeypatch.chdir(text.parent)
    for name, differs in {text.name: 0, "another": 1}.items():
        card = to_json(replace(plan, data=replace(plan.data, corpus=name)))
        load(masked).save(tmp_path / "model", recipe=card)
        now = replace(plan, objective=ConsistencySettings(teacher=str(tmp_path / "model")))
        assert sum("was trained on" in line for line in started_lines(now)) == differs


@pytest.mark.parametrize(
    "name", ["demo-teacher", "demo-judge", "demo-duo", "owt-small-teacher", "lm1b-duo"]
)
def test_a_named_recipe_has_no_setting_without_effect(name: str) -> None:
    plan = recipe(name)
    assert from_json(Recipe, to_json(plan), "recipe") == plan
    usual = dict(leaves(Recipe(plan.name, type(plan.objective)())))
    assert all(value == usual[path] for path, value in leaves(plan) if path in idle(plan))
