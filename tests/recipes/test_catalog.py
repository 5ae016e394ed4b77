"""The named recipes are complete and consistent, and follow the rules of their sources."""

import math
from dataclasses import replace

import pytest

from reference import duality_keep
from unmask.objectives.rounds import Rounds
from unmask.recipes.catalog import RECIPES, recipe
from unmask.recipes.objective_settings import (
    AutoregressiveSettings,
    CurriculumSettings,
    DistillationSettings,
    NelboSettings,
    SdttSettings,
)
from unmask.recipes.schema import Recipe

ALL = [function() for function in RECIPES]
DISTILLATIONS = [plan for plan in ALL if isinstance(plan.objective, DistillationSettings)]
ids = lambda plan: plan.name  # noqa: E731


def rounds(plan: Recipe) -> Rounds:
    method = plan.objective
    return Rounds(
        method.round_steps,
        method.delta0,
        (1.0,) * method.count if isinstance(method, SdttSettings) else method.temperatures,
    )


def operator(gamma: float, size: int) -> float:
    """Duo's alpha of a gamma."""
    return (size * duality_keep(math.exp(-gamma / 2), size) - 1) / (size - 1)


def test_names_are_the_names_of_the_functions_and_find_their_recipes() -> None:
    assert [plan.name for plan in ALL] == [
        function.__name__.replace("_", "-") for function in RECIPES
    ]
    assert len({plan.name for plan in ALL}) == len(ALL)
    for plan in ALL:
        assert recipe(plan.name) == plan
    promised = {"owt-small-teacher", "owt-small-mcd", "owt-large-mcd"}
    assert promised <= {plan.name for plan in ALL}
    assert {plan.name.split("-")[0] for plan in ALL} == {"owt", "lm1b", "demo", "long"}


def test_a_wrong_name() -> None:
    with pytest.raises(ValueError, match=r"'owt-smal-mcd'.*did you mean 'owt-small-mcd'"):
        recipe("owt-smal-mcd")
    with pytest.raises(ValueError, match=r"'xyz'.*owt-small-teacher, .*demo-mcd"):
        recipe("xyz")


@pytest.mark.parametrize("plan", ALL, ids=ids)
def test_sizes_fit(plan: Recipe) -> None:
    assert plan.network.width % (2 * plan.network.heads) == 0
    assert plan.optim.decay_steps is None or plan.optim.decay_steps >= plan.steps
    assert plan.optim.warmup_steps < plan.steps and plan.save_every <= plan.steps


@pytest.mark.parametrize("plan", DISTILLATIONS, ids=ids)
def test_a_distillation_ends_with_its_last_round_and_reads_its_teachers_rows(plan: Recipe) -> None:
    assert plan.steps == rounds(plan).total and plan.objective.rounds() == rounds(plan)
    teachers = {"runs/lm1b-teacher": "lm1b-teacher", "unmask:teacher": "demo-teacher",
                "runs/long-teacher": "long-teacher", "unmask:duo": "demo-duo"}  # fmt: skip
    assert plan.objective.teacher in teachers or "/" in plan.objective.teacher.removeprefix("runs/")
    if plan.objective.teacher in teachers:
        teacher = recipe(teachers[plan.objective.teacher])
        masked = isinstance(plan.objective, SdttSettings) or plan.objective.process == "masked"
        assert isinstance(teacher.objective, NelboSettings if masked else CurriculumSettings)
        assert replace(teacher.network, dropout=0) == replace(plan.network, dropout=0)
        assert teacher.data.corpus == plan.data.corpus and teacher.data.wrap == plan.data.wrap


def test_steps_grow_as_in_the_papers() -> None:
    """The step of time doubles each round: MCD and DCD from 1/512, SDTT from 1/1024."""
    for name, deltas in (
        ("owt-small-mcd", [2.0**r / 512 for r in range(5)]),
        ("owt-duo-dcd", [2.0**r / 512 for r in range(5)]),
        ("owt-small-sdtt", [2.0**r / 1024 for r in range(7)]),
    ):
        plan = recipe(name)
        starts = range(0, plan.steps, plan.objective.round_steps)
        assert [rounds(plan).delta(step) for step in starts] == deltas, name


def test_temperatures_of_mcd_fall_by_the_same_amount_each_round() -> None:
    """Latent Shadows, section 4: from 0.96, lowered by 0.03. DCD does not sharpen its teacher."""
    falling = [0.96 - 0.03 * r for r in range(5)]
    assert recipe("owt-small-mcd").objective.temperatures == pytest.approx(falling)
    assert set(recipe("owt-duo-dcd").objective.temperatures) == {1.0}


def test_every_distillation_of_openwebtext_spends_the_same_rows_a_round() -> None:
    """10,000 updates of 128 rows, with the same learning rate and warm-up."""
    plans = [recipe(name) for name in ("owt-small-mcd", "owt-small-sdtt", "owt-duo-dcd")]
    assert {(plan.batch_size, plan.objective.round_steps) for plan in plans} == {(128, 10_000)}
    assert len({(plan.optim.lr, plan.optim.warmup_steps) for plan in plans}) == 1


@pytest.mark.parametrize("plan", ALL, ids=ids)
def test_networks_of_uniform_noise_read_the_noise_level(plan: Recipe) -> None:
    """Masked networks do not: their tokens hold the noise level. Autoregressive ones have none."""
    noise = vars(plan.objective).get("process")
    uniform = noise == "uniform" or isinstance(plan.objective, CurriculumSettings)
    assert plan.network.sees_alpha == uniform


@pytest.mark.parametrize(
    ("name", "masked"), [("owt-duo", "owt-small-teacher"), ("lm1b-duo", "lm1b-teacher")]
)
def test_half_of_the_updates_of_duo_read_soft_input(name: str, masked: str) -> None:
    """Duo differs from MDLM on the same text in objective and noise level only."""
    plan, mdlm = recipe(name), recipe(masked)
    assert 2 * plan.objective.soft_steps == plan.steps == mdlm.steps
    assert replace(plan.network, sees_alpha=False) == mdlm.network
    same = ("data", "optim", "batch_size", "schedule")
    assert all(getattr(plan, field) == getattr(mdlm, field) for field in same)
    assert plan.objective.t_min == mdlm.objective.t_min


def test_the_demos_teacher_and_judge_share_no_document() -> None:
    teacher, judge, student = (recipe(f"demo-{part}") for part in ("teacher", "judge", "mcd"))
    assert {teacher.data.part, judge.data.part} == {"first half", "second half"}
    assert teacher.data.corpus == judge.data.corpus == student.data.corpus == "sotu"
    assert student.data.part == teacher.data.part and isinstance(
        judge.objective, AutoregressiveSettings
    )


def test_the_demos_gaussian_reaches_as_far_as_duos() -> None:
    """The same shares of text at both ends of the path, for 1024 tokens in place of 50257."""
    for name, like in (("demo-duo", "owt-duo"), ("demo-dcd", "owt-duo-dcd")):
        ours = [operator(gamma, 1024) for gamma in recipe(name).objective.gamma]
        theirs = [operator(gamma, 50257) for gamma in recipe(like).objective.gamma]
        assert ours[0] == pytest.approx(theirs[0], abs=5e-4) and ours[1] == pytest.approx(
            theirs[1], rel=0.02
        )


def test_the_demos_other_methods_have_equal_training() -> None:
    """demo-sdtt and demo-dcd spend the updates of demo-mcd and end at its step of the sampler."""
    mcd = recipe("demo-mcd")
    ends = {name: recipe(f"demo-{name}") for name in ("mcd", "sdtt", "dcd")}
    for plan in ends.values():
        assert (plan.steps, plan.batch_size, plan.optim) == (mcd.steps, mcd.batch_size, mcd.optim)
        assert plan.data.part == mcd.data.part and plan.network.length == mcd.network.length
    reach = {name: plan.objective.rounds().delta(plan.steps) for name, plan in ends.items()}
    assert reach["sdtt"] * ends["sdtt"].objective.teacher_steps == reach["mcd"] == reach["dcd"]
