"""The named recipes are whole and consistent, and say the numbers of their sources."""

import math
from dataclasses import replace

import pytest

from reference import duality_keep
from unmask.objectives.rounds import Rounds
from unmask.recipes.catalog import RECIPES, recipe
from unmask.recipes.objective_settings import (
    AutoregressiveSettings,
    ConsistencySettings,
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


def test_the_papers_distillation() -> None:
    """Latent Shadows, section 4: public MDLM, 5 rounds of 10k steps, lr 6e-5, batch 128."""
    plan = recipe("owt-small-mcd")
    method = plan.objective
    assert method.teacher == "kuleshov-group/mdlm-owt"
    assert (method.direction, method.revealed, method.coupling, method.reduction) == (
        "reverse", "cross_entropy", "locked", "tokens",
    )  # fmt: skip
    assert method.temperatures == (0.96, 0.93, 0.90, 0.87, 0.84) and method.round_steps == 10_000
    assert [rounds(plan).delta(step) for step in (0, 49_999)] == [1 / 512, 1 / 32]
    optim = plan.optim
    assert (optim.lr, optim.warmup_steps, optim.weight_decay, optim.ema_decay) == (
        6e-5,
        500,
        0.0,
        0.999,
    )
    assert optim.decay_steps is None and plan.batch_size == 128 and plan.steps == 50_000
    large = recipe("owt-large-mcd")
    assert (
        len(large.objective.temperatures) == 1
        and large.steps == 10_000
        and large.network.width == 1536
    )


def test_mdlms_training() -> None:
    """arXiv 2406.07524 and its configs: 2500 warm-up steps to 3e-4, batch 512, 1M steps."""
    plan = recipe("owt-small-teacher")
    network, optim = plan.network, plan.optim
    assert (network.width, network.blocks, network.heads, network.cond_dim) == (768, 12, 12, 128)
    assert (network.length, network.dropout, network.sees_alpha) == (1024, 0.1, False)
    assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (3e-4, (0.9, 0.999), 1e-8, 0.0)
    assert (optim.warmup_steps, optim.decay_steps, optim.clip_norm, optim.ema_decay) == (
        2500,
        None,
        1.0,
        0.9999,
    )
    assert plan.batch_size == 512 and plan.steps == 1_000_000 and plan.precision == "bfloat16"
    assert (plan.data.corpus, plan.data.tokenizer, plan.data.wrap) == ("openwebtext", "gpt2", True)
    assert plan.objective == NelboSettings(t_min=1e-3)
    small = recipe("lm1b-teacher")
    assert (
        small.network.length == 128
        and small.data.tokenizer == "bert-base-uncased"
        and small.optim == optim
    )


def test_the_demos_teacher_and_judge_share_no_document() -> None:
    teacher, judge, student = (recipe(f"demo-{part}") for part in ("teacher", "judge", "mcd"))
    assert {teacher.data.part, judge.data.part} == {"first half", "second half"}
    assert teacher.data.corpus == judge.data.corpus == student.data.corpus == "sotu"
    assert student.data.part == teacher.data.part and isinstance(
        judge.objective, AutoregressiveSettings
    )


def test_sdtts_training() -> None:
    """arXiv 2410.21035: 7 rounds of 10k updates from 1024 steps, two at a time; lr 6e-5."""
    plan = recipe("owt-small-sdtt")
    method, optim = plan.objective, plan.optim
    assert (
        isinstance(method, SdttSettings)
        and method.teacher == recipe("owt-small-mcd").objective.teacher
    )
    assert (method.count, method.round_steps, method.teacher_steps) == (7, 10_000, 2)
    assert (method.divergence, method.time_grid) == ("reverse", "paper")
    deltas = [method.rounds().delta(10_000 * r) for r in range(7)]
    assert deltas == [2.0**r / 1024 for r in range(7)] and {*method.rounds().temperatures} == {1.0}
    assert (optim.lr, optim.warmup_steps, optim.ema_decay, optim.weight_decay) == (
        6e-5,
        500,
        0.9999,
        0.0,
    )
    assert plan.batch_size == 128 and plan.steps == 70_000 and not plan.network.sees_alpha


def test_duos_training_and_distillation() -> None:
    """arXiv 2506.10892 and its scripts: 500k of 1M updates on soft input; 5 rounds from 1/512."""
    teacher, student, short = (recipe(name) for name in ("owt-duo", "owt-duo-dcd", "lm1b-duo"))
    for plan, gamma in ((teacher, (-3.55, -1.85)), (short, (-3.5, -1.75))):
        method = plan.objective
        assert (method.soft_steps, plan.steps, method.temperature, method.t_min) == (
            500_000,
            1_000_000,
            1e-3,
            1e-3,
        )
        assert method.gamma == gamma and plan.network.sees_alpha and plan.batch_size == 512
        assert (plan.schedule.name, plan.schedule.eps) == ("log-linear", 1e-3)
    method = student.objective
    assert isinstance(method, ConsistencySettings) and (method.process, method.gamma) == (
        "uniform",
        (-4.0, -1.0),
    )
    assert (method.direction, method.reduction, method.coupling) == ("reverse", "tokens", "locked")
    assert (
        {*method.temperatures} == {1.0}
        and len(method.temperatures) == 5
        and student.network.sees_alpha
    )
    assert [method.rounds().delta(step) for step in (0, 49_999)] == [
        1 / 512,
        1 / 32,
    ] and student.steps == 50_000
    assert (student.optim.lr, student.optim.warmup_steps, student.optim.ema_decay) == (
        6e-5,
        500,
        0.999,
    )
    assert student.batch_size == 128
    for plan in (
        recipe("owt-small-mcd"),
        recipe("owt-small-sdtt"),
        recipe("demo-mcd"),
        recipe("demo-sdtt"),
    ):
        assert not plan.network.sees_alpha, "masked models do not look at alpha"


def test_the_demos_gaussian_reaches_as_far_as_duos() -> None:
    """The same shares of text at both ends of the path, for 1024 tokens in place of 50257."""
    for name, like in (("demo-duo", "owt-duo"), ("demo-dcd", "owt-duo-dcd")):
        ours = [operator(gamma, 1024) for gamma in recipe(name).objective.gamma]
        theirs = [operator(gamma, 50257) for gamma in recipe(like).objective.gamma]
        assert ours[0] == pytest.approx(theirs[0], abs=5e-4) and ours[1] == pytest.approx(
            theirs[1], rel=0.02
        )


def test_the_demos_rivals_are_trained_alike() -> None:
    """demo-sdtt and demo-dcd spend the updates of demo-mcd and end at its step of the sampler."""
    mcd = recipe("demo-mcd")
    ends = {name: recipe(f"demo-{name}") for name in ("mcd", "sdtt", "dcd")}
    for plan in ends.values():
        assert (plan.steps, plan.batch_size, plan.optim) == (mcd.steps, mcd.batch_size, mcd.optim)
        assert plan.data.part == mcd.data.part and plan.network.length == mcd.network.length
    reach = {name: plan.objective.rounds().delta(plan.steps) for name, plan in ends.items()}
    assert reach["sdtt"] * ends["sdtt"].objective.teacher_steps == reach["mcd"] == reach["dcd"]
