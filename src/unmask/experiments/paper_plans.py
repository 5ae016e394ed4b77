"""The plans of the paper's tables at three scales: two cores, one GPU for an hour, and the paper's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, assert_never

from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.paper_tables import Method, Plan, PlanTeacher
from unmask.objectives.rounds import PAPER_TEMPERATURES
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import (
    ConsistencySettings,
    CurriculumSettings,
    DataSettings,
    NelboSettings,
    NetworkSettings,
    Recipe,
    SdttSettings,
)

Name = Literal["table1", "table2", "table3", "figure3"]
Scale = Literal["tiny", "small", "paper"]

UNIFORM = "ancestral", "inverse_cdf"  # several draws a position: the cheap one
DOUBTS: Mapping[Scale, tuple[int, ...]] = {
    "tiny": (128,),
    "small": (32, 256),
    "paper": (32, 512),
}  # 512: 54.74 or 104
VOCABULARY: Mapping[Scale, str] = {"tiny": "bpe:1024", "small": "bpe:2048"}
TITLES: Mapping[Name, str] = {
    "table1": "Methods by round and by steps",
    "table2": "The loss of MCD, round 1",
    "table3": "A larger network, round 1",
    "figure3": "MCD by round and by steps",
}
SMALL = NetworkSettings(length=256, width=384, blocks=6, heads=6, cond_dim=64)
SMALL_LARGE = replace(SMALL, width=768, blocks=12, heads=12, cond_dim=128)
DEEPER = 2  # tiny: the larger teacher grows from the shipped one
TINY_LARGE = replace(
    recipe("demo-teacher").network, blocks=DEEPER * recipe("demo-teacher").network.blocks
)


def plan(name: Name, scale: Scale, directory: Path) -> Plan:
    """The plan of a table; models that it trains first are kept in `directory`."""
    large = name == "table3"
    teachers, judge, train = _models(scale, large, directory)
    mcd, sdtt, dcd = _methods(scale, large)
    methods: dict[str, Method]
    match name:
        case "table1":
            methods = {
                "SDTT": Method("MDLM", sdtt),
                "DCD": Method("Duo", dcd),
                "MCD": Method("MDLM", mcd),
            }
        case "figure3":
            methods = {"MCD": Method("MDLM", mcd)}
        case "table2":
            methods = {
                title: Method("MDLM", loss) for title, loss in _losses(_first_round(mcd)).items()
            }
        case "table3":
            methods = {
                "SDTT": Method("MDLM large", _first_round(sdtt)),
                "MCD": Method("MDLM large", _first_round(mcd)),
            }
        case _:
            assert_never(name)
    used = {method.teacher for method in methods.values()}
    study = (
        replace(_study(scale, large), student_steps=(32,))
        if name == "table2"
        else _study(scale, large)
    )
    return Plan(
        TITLES[name],
        {title: teacher for title, teacher in teachers.items() if title in used},
        methods,
        judge,
        study,
        {title: told for title, told in train.items() if title != "duo" or "Duo" in used},
        doubts=DOUBTS[scale],
        device="cpu" if scale == "tiny" else "cuda",
    )


def _models(
    scale: Scale, large: bool, directory: Path
) -> tuple[dict[str, PlanTeacher], str, dict[str, Recipe]]:
    """Teachers and judge by name, and the recipes of those that are trained first."""
    here = {name: str(directory / name / "model") for name in ("teacher", "duo", "judge")}
    masked = "MDLM large" if large else "MDLM"
    match scale:
        case "tiny":
            train = {"teacher": _deeper("unmask:teacher")} if large else {}
            found = {masked: PlanTeacher(here["teacher"] if large else "unmask:teacher")}
            return found | {"Duo": PlanTeacher("unmask:duo", *UNIFORM)}, "unmask:judge", train
        case "small":
            data = DataSettings(corpus="sotu", part="first half", tokenizer=VOCABULARY[scale])
            size = SMALL_LARGE if large else SMALL
            teacher = replace(_larger(recipe("demo-teacher"), size, 3000), data=data)
            duo = _larger(recipe("demo-duo"), replace(size, sees_alpha=True), 3000)
            judge = _larger(recipe("demo-judge"), SMALL, 1500)
            own = {"duo": duo, "judge": judge}
            train = {"teacher": teacher} | {
                name: replace(told, data=replace(told.data, tokenizer=here["teacher"]))
                for name, told in own.items()
            }
            found = {
                masked: PlanTeacher(here["teacher"]),
                "Duo": PlanTeacher(here["duo"], *UNIFORM),
            }
            return found, here["judge"], train
        case "paper":
            if large:
                found = {masked: PlanTeacher("jdeschena/sdtt@teacher_400k_large_step_400000")}
                return (
                    found,
                    "sdtt:meta-llama/Meta-Llama-3-8B",
                    {},
                )  # the rule of the paper's table 3
            found = {
                masked: PlanTeacher("kuleshov-group/mdlm-owt"),
                "Duo": PlanTeacher("s-sahoo/duo", *UNIFORM),
            }
            return found, "gpt2-large", {}
        case _:
            assert_never(scale)


def _deeper(teacher: str) -> Recipe:
    """A teacher that grows from another one: from first weights it would take hours."""
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
        mcd, sdtt, dcd = (
            recipe("owt-large-mcd" if large else "owt-small-mcd"),
            recipe("owt-small-sdtt"),
            recipe("owt-duo-dcd"),
        )
        if large:
            sdtt = replace(sdtt, network=mcd.network, accumulation=mcd.accumulation)
        return mcd, _rounds(sdtt, 10_000, 1 / 1024), dcd
    every, first = (60, 1 / 128) if scale == "tiny" else (250, 1 / 256)
    network = {
        ("tiny", True): TINY_LARGE,
        ("small", False): SMALL,
        ("small", True): SMALL_LARGE,
    }.get((scale, large))
    found = []
    for name in ("demo-mcd", "demo-sdtt", "demo-dcd"):
        base = recipe(name)
        base = replace(
            base, data=replace(base.data, tokenizer=VOCABULARY[scale])
        )  # that is, its teacher's
        if network is not None:
            base = replace(base, network=replace(network, sees_alpha=base.network.sees_alpha))
        found.append(_rounds(base, every, first / 2 if name == "demo-sdtt" else first))
    return found[0], found[1], found[2]


def _rounds(base: Recipe, every: int, delta0: float) -> Recipe:
    """The recipe with five rounds of `every` updates."""
    objective = base.objective
    count = len(PAPER_TEMPERATURES)
    match objective:
        case SdttSettings():
            objective = replace(objective, round_steps=every, delta0=delta0, count=count)
        case ConsistencySettings(process="masked"):
            objective = replace(
                objective, round_steps=every, delta0=delta0, temperatures=PAPER_TEMPERATURES
            )
        case ConsistencySettings():
            objective = replace(
                objective, round_steps=every, delta0=delta0, temperatures=(1.0,) * count
            )
        case _:
            raise ValueError(f"a method distils in rounds, {base.name!r} is {objective.kind}")
    return replace(
        base, objective=objective, steps=every * count, save_every=min(every, base.save_every)
    )


def _first_round(base: Recipe) -> Recipe:
    """The recipe's first round only, twice as long where rounds are short."""
    objective = base.objective
    every = (
        max(120, objective.round_steps)
        if isinstance(objective, ConsistencySettings | SdttSettings)
        else 0
    )
    match objective:
        case SdttSettings():
            objective = replace(objective, round_steps=every, count=1)
        case ConsistencySettings():
            objective = replace(
                objective, round_steps=every, temperatures=objective.temperatures[:1]
            )
        case _:
            raise ValueError(f"a method distils in rounds, {base.name!r} is {objective.kind}")
    return replace(base, objective=objective, steps=every, save_every=min(every, base.save_every))


def _losses(base: Recipe) -> dict[str, Recipe]:
    """The losses of the paper's table 2: Eq. 14, and one divergence over all tokens that the student must guess."""
    objective = base.objective
    if not isinstance(objective, ConsistencySettings):
        raise ValueError(f"the losses are those of MCD, {base.name!r} is {objective.kind}")
    return {
        "hybrid": base,
        "KL-Fwd": replace(
            base, objective=replace(objective, direction="forward", revealed="divergence")
        ),
        "KL-Bwd": replace(
            base, objective=replace(objective, direction="reverse", revealed="divergence")
        ),
    }


def _study(scale: Scale, large: bool) -> EvalSettings:
    match scale:
        case "tiny":
            return EvalSettings(samples=64, student_steps=(8, 16, 32, 128), texts=0, completions=0)
        case "small":
            return EvalSettings(
                samples=256,
                student_steps=(8, 16, 32, 64, 128, 256),
                texts=0,
                completions=0,
                batch_size=256,
            )
        case "paper":
            steps = (32, 64, 128, 256, 512) if large else (8, 16, 32, 64, 128, 256, 512, 1024)
            return EvalSettings(
                samples=1024, student_steps=steps, texts=0, completions=0, batch_size=32
            )
        case _:
            assert_never(scale)
