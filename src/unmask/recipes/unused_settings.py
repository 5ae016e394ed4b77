"""Fields of a recipe that do not act: the kind of training has no use for them, or another model decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from unmask.dataclass_json import leaves
from unmask.models.denoiser import AUTOREGRESSIVE, as_dit
from unmask.recipes import schema
from unmask.recipes.build import Parts, deeper_by, schedule, starts_from, trained_on
from unmask.recipes.schema import Recipe
from unmask.recipes.start import resolved

_SCHEDULE = ("schedule.name", "schedule.eps", "schedule.power")
_SIZES = ("network.width", "network.blocks", "network.heads", "network.cond_dim")
_SEES = "network.sees_alpha"
_OWN = "has its own"


def idle(recipe: Recipe) -> dict[str, str]:
    """The fields that do not act in this recipe, by dotted names, and why."""
    found: dict[str, str] = {}
    objective = recipe.objective
    if isinstance(objective, schema.DistillationSettings):
        found |= dict.fromkeys(
            (*_SIZES, _SEES, "network.dropout", *_SCHEDULE), f"the teacher {_OWN}"
        )
    elif starts_from(recipe):
        found |= dict.fromkeys((*_SIZES, _SEES), f"the model to start from {_OWN}")
    if starts_from(recipe) and recipe.data.tokenizer.startswith("bpe:"):
        found["data.tokenizer"] = f"the model to start from {_OWN}"
    if isinstance(objective, schema.AutoregressiveSettings):
        found |= dict.fromkeys(
            ("network.cond_dim", _SEES, *_SCHEDULE), "next-token training has no noise"
        )
    if recipe.schedule.name != "polynomial":
        found.setdefault("schedule.power", "only the polynomial schedule has a power")
    match objective:
        case schema.CurriculumSettings(soft_steps=0):
            soft = ("objective.gamma", "objective.temperature", "objective.top_k")
            found |= dict.fromkeys(soft, "soft_steps is 0: no input is soft")
        case schema.ConsistencySettings(revealed="none"):
            found["objective.revealed_weight"] = "revealed is 'none': that loss is left out"
        case schema.SdttSettings(teacher_steps=1):
            found |= dict.fromkeys(
                ("objective.delta0", "objective.faithful"),
                "teacher_steps is 1: the teacher does not walk",
            )
    return found


def check_flags(recipe: Recipe, before: Recipe, estimated: bool = False) -> None:
    """ValueError for a field that was changed from `before` and does not act.

    Sizes of the network may be given, so that one line of flags serves teacher, judge and student: `not_used` says
    where they differ from those in use.
    estimated  nothing is trained, and of a tokenizer only the number of tokens is read
    """
    old, now = dict(leaves(before)), dict(leaves(recipe))
    free = {*_SIZES, "network.dropout", *(["data.tokenizer"] if estimated else [])}
    for name, why in idle(recipe).items():
        if now[name] != old.get(name) and name not in free:
            raise ValueError(
                f"--{name.replace('_', '-')} does not act in the recipe {recipe.name!r}: got {now[name]!r}, and {why}; "
                "leave it out"
            )


def not_used(recipe: Recipe, parts: Parts) -> list[str]:
    """A phrase for each field of the recipe that the run does not follow."""
    said, values = idle(recipe), dict(leaves(recipe))
    usual = dict(leaves(Recipe(recipe.name, type(recipe.objective)())))
    lines = [
        f"{name} = {values[name]!r} does not act: {why}"
        for name, why in said.items()
        if not why.endswith(_OWN) and values[name] != usual[name]
    ]
    return lines + (_against_start(recipe, parts, said) if starts_from(recipe) else [])


def _against_start(recipe: Recipe, parts: Parts, said: Mapping[str, str]) -> list[str]:
    start, student, values = starts_from(recipe), parts.student, dict(leaves(recipe))
    used: dict[str, object] = {}
    own = as_dit(student.network)
    if own is not None:
        shape = own.shape
        used |= {f"network.{field.name}": getattr(shape, field.name) for field in fields(shape)}
    if student.kind == AUTOREGRESSIVE:
        used.pop("network.cond_dim", None)
    else:
        used["network.sees_alpha"] = student.sees_alpha
    deeper = (
        f"({deeper_by(recipe)} for each of {start})" if deeper_by(recipe) > 1 else f"of {start}"
    )
    lines = [
        f"{name} = {used[name]} {deeper if name == 'network.blocks' else f'of {start}'}, not {values[name]}"
        for name in said
        if name in used and used[name] != values[name]
    ]
    if isinstance(recipe.objective, schema.DistillationSettings):
        if parts.schedule != (told := schedule(recipe.schedule)):
            lines.append(f"schedule = {parts.schedule} of {start}, not {told}")
        if student.length != recipe.network.length:
            lines.append(
                f"rows have network.length = {recipe.network.length} tokens, those of {start} {student.length}"
            )
    card, now = trained_on(start), resolved(recipe).data
    before = (
        None if card is None else resolved(replace(recipe, data=card)).data
    )  # version 0.1 wrote relative paths
    if before is not None and (before.corpus, before.part) != (now.corpus, now.part):
        lines.append(
            f"{start} was trained on {before.part} of {before.corpus}, and this run reads {now.part} of {now.corpus}"
        )
    return lines
