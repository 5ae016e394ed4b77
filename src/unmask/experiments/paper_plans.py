"""The plans of the paper's tables at three scales: two CPU cores, one GPU, the paper's scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, assert_never

from unmask.evaluation.settings import EvalSettings
from unmask.experiments.paper_table import RoundRows
from unmask.experiments.plan import Cell, Plan, PlanTeacher, distillation
from unmask.experiments.plans import consistency
from unmask.objectives.rounds import PAPER_TEMPERATURES
from unmask.recipes.catalog import recipe
from unmask.recipes.objective_settings import (
    CurriculumSettings,
    NelboSettings,
    SdttSettings,
)
from unmask.recipes.schema import DataSettings, NetworkSettings, Recipe

Name = Literal["table1", "table2", "table3", "figure3"]
Scale = Literal["tiny", "small", "paper"]

TITLES: Mapping[Name, str] = {
    "table1": "Methods by round and by steps",
    "table2": "The loss of MCD, round 1",
    "table3": "A larger network, round 1",
    "figure3": "MCD by round and by steps",
}
# At 512 steps the teacher's published gen PPL is 54.74 (MCD paper) or 104 (Duo paper).
PRECISION_STEPS: Mapping[Scale, tuple[int, ...]] = {
    "tiny": (128,),
    "small": (32, 256),
    "paper": (32, 512),
}
STUDIES: Mapping[Scale, EvalSettings] = {
    "tiny": EvalSettings(64, student_steps=(8, 16, 32, 128)),
    "small": EvalSettings(256, student_steps=(8, 16, 32, 64, 128, 256), batch_size=256),
    "paper": EvalSettings(1024, student_steps=(8, 16, 32, 64, 128, 256, 512, 1024), batch_size=32),
}
PAPER_TABLE3_STEPS = (32, 64, 128, 256, 512)
VOCABULARY: Mapping[Scale, str] = {"tiny": "bpe:1024", "small": "bpe:2048"}
SMALL = NetworkSettings(length=256, width=384, blocks=6, heads=6, cond_dim=64)
SMALL_LARGE = replace(SMALL, width=768, blocks=12, heads=12, cond_dim=128)
DEEPER = 2  # tiny: the larger teacher has this many times the blocks of the shipped one
_DEMO = recipe("demo-teacher").network
TINY_LARGE = replace(_DEMO, blocks=DEEPER * _DEMO.blocks)
# (scale, large) -> the network of the students; a missing key: that of their recipe.
NETWORKS = {
    ("tiny", True): TINY_LARGE,
    ("small", False): SMALL,
    ("small", True): SMALL_LARGE,
}


def paper_plan(name: Name, scale: Scale, directory: Path) -> Plan:
    """The plan of a table; models that it trains first are kept in `directory`."""
    large = name == "table3"
    teachers, judge, prerequisites = _models(scale, large, directory)
    mcd, sdtt, dcd = _methods(scale, large)
    cells: dict[str, Cell]
    match name:
        case "table1":
            cells = {"SDTT": Cell("MDLM", sdtt), "DCD": Cell("Duo", dcd), "MCD": Cell("MDLM", mcd)}
        case "figure3":
            cells = {"MCD": Cell("MDLM", mcd)}
        case "table2":
            losses = _losses(_first_round(mcd))
            cells = {title: Cell("MDLM", loss) for title, loss in losses.items()}
        case "table3":
            both = {"SDTT": sdtt, "MCD": mcd}
            cells = {title: Cell("MDLM large", _first_round(r)) for title, r in both.items()}
        case _:
            assert_never(name)
    study = replace(STUDIES[scale], texts=0, completions=0)
    if name == "table2":
        study = replace(study, student_steps=(32,))
    elif large and scale == "paper":
        study = replace(study, student_steps=PAPER_TABLE3_STEPS)
    distilled = {cell.teacher for cell in cells.values()}
    if "Duo" not in distilled:
        prerequisites = {title: r for title, r in prerequisites.items() if title != "duo"}
    return Plan(
        title=TITLES[name],
        teachers={title: teacher for title, teacher in teachers.items() if title in distilled},
        judge=judge,
        cells=cells,
        study=study,
        measurement=RoundRows(),
        seeds=2,
        prerequisites=prerequisites,
        device="cpu" if scale == "tiny" else "cuda",
    )


def _models(
    scale: Scale, large: bool, directory: Path
) -> tuple[dict[str, PlanTeacher], str, dict[str, Recipe]]:
    """Teachers and judge by name, and the recipes of the models that are trained first."""
    trained = {name: str(directory / name / "model") for name in ("teacher", "duo", "judge")}
    prerequisites: dict[str, Recipe] = {}
    match scale:
        case "tiny":
            masked, duo, judge = "unmask:teacher", "unmask:duo", "unmask:judge"
            if large:
                masked, prerequisites = trained["teacher"], {"teacher": _deeper("unmask:teacher")}
        case "small":
            masked, duo, judge = trained["teacher"], trained["duo"], trained["judge"]
            prerequisites = _small_models(SMALL_LARGE if large else SMALL, masked)
        case "paper":
            masked, duo, judge = "kuleshov-group/mdlm-owt", "s-sahoo/duo", "gpt2-large"
            if large:
                masked = "jdeschena/sdtt@teacher_400k_large_step_400000"
                judge = "sdtt:meta-llama/Meta-Llama-3-8B"  # the scoring rule of the paper's table 3
        case _:
            assert_never(scale)
    teachers = {
        "MDLM large" if large else "MDLM": PlanTeacher(
            masked, precision_steps=PRECISION_STEPS[scale]
        ),
        # Uniform diffusion draws each position several times, so it uses the cheaper exact draw.
        "Duo": PlanTeacher(duo, "ancestral", "inverse_cdf"),
    }
    return teachers, judge, prerequisites


def _small_models(network: NetworkSettings, teacher: str) -> dict[str, Recipe]:
    """Teacher, Duo and judge of the small scale; the last two use the teacher's tokenizer."""
    data = DataSettings(corpus="sotu", part="first half", tokenizer=VOCABULARY["small"])
    duo = _larger(recipe("demo-duo"), replace(network, sees_alpha=True), 3000)
    judge = _larger(recipe("demo-judge"), SMALL, 1500)
    return {
        "teacher": replace(_larger(recipe("demo-teacher"), network, 3000), data=data),
        "duo": replace(duo, data=replace(duo.data, tokenizer=teacher)),
        "judge": replace(judge, data=replace(judge.data, tokenizer=teacher)),
    }


def _deeper(teacher: str) -> Recipe:
    """A deeper teacher that starts from another one; training from scratch would take hours."""
    base = recipe("demo-teacher")
    return replace(
        base,
        objective=NelboSettings(init=teacher, deeper=DEEPER),
        network=TINY_LARGE,
        data=replace(base.data, tokenizer=teacher),
        optim=replace(base.optim, lr=7e-4, warmup_steps=30, decay_steps=300, ema_decay=0.99),
        steps=300,
        save_every=100,
    )


def _larger(base: Recipe, network: NetworkSettings, steps: int) -> Recipe:
    optim, objective = replace(base.optim, decay_steps=steps), base.objective
    if isinstance(objective, CurriculumSettings):
        objective = replace(objective, soft_steps=steps // 2)  # as Duo's
    if network.width >= 384:
        optim = replace(optim, lr=1e-3, warmup_steps=200)
    save_every = max(100, steps // 10)
    return replace(
        base, objective=objective, network=network, steps=steps, optim=optim, save_every=save_every
    )


def _methods(scale: Scale, large: bool) -> tuple[Recipe, Recipe, Recipe]:
    """MCD, SDTT and DCD in five rounds that end at the same time step."""
    if scale == "paper":
        mcd = recipe("owt-large-mcd" if large else "owt-small-mcd")
        sdtt = recipe("owt-small-sdtt")
        if large:
            sdtt = replace(sdtt, network=mcd.network, accumulation=mcd.accumulation)
        return mcd, _in_rounds(sdtt, 10_000, 1 / 1024), recipe("owt-duo-dcd")
    round_steps, delta0 = (60, 1 / 128) if scale == "tiny" else (250, 1 / 256)
    network = NETWORKS.get((scale, large))
    methods = []
    for name in ("demo-mcd", "demo-sdtt", "demo-dcd"):
        base = recipe(name)
        # The tokenizer of this name is the teacher's tokenizer.
        base = replace(base, data=replace(base.data, tokenizer=VOCABULARY[scale]))
        if network is not None:
            base = replace(base, network=replace(network, sees_alpha=base.network.sees_alpha))
        # A step of SDTT's student spans two of its teacher's.
        first = delta0 / 2 if name == "demo-sdtt" else delta0
        methods.append(_in_rounds(base, round_steps, first))
    return methods[0], methods[1], methods[2]


def _in_rounds(
    base: Recipe, round_steps: int, delta0: float, count: int = len(PAPER_TEMPERATURES)
) -> Recipe:
    """The distillation in `count` rounds of `round_steps` updates, from step size delta0 on."""
    objective = replace(distillation(base), round_steps=round_steps, delta0=delta0)
    if isinstance(objective, SdttSettings):
        objective = replace(objective, count=count)
    else:
        tau = PAPER_TEMPERATURES if objective.process == "masked" else (1.0,) * count
        objective = replace(objective, temperatures=tau[:count])
    save_every = min(round_steps, base.save_every)
    return replace(base, objective=objective, steps=round_steps * count, save_every=save_every)


def _first_round(base: Recipe) -> Recipe:
    """The first round of the distillation alone, with at least 120 updates."""
    objective = distillation(base)
    return _in_rounds(base, max(120, objective.round_steps), objective.delta0, count=1)


def _losses(base: Recipe) -> dict[str, Recipe]:
    """The losses of the paper's table 2: Eq. 14, and a divergence over all tokens masked in z_t."""
    objective = consistency(base)
    forward = replace(objective, direction="forward", revealed="divergence")
    reverse = replace(objective, direction="reverse", revealed="divergence")
    return {
        "hybrid": base,
        "KL-Fwd": replace(base, objective=forward),
        "KL-Bwd": replace(base, objective=reverse),
    }
