"""Fields of a recipe without effect: unused ones, and those whose value another model sets."""

from __future__ import annotations

from dataclasses import fields, replace

from unmask.dataclass_json import leaves
from unmask.models.dit import DiT
from unmask.models.model import LanguageModel
from unmask.recipes.build import Parts
from unmask.recipes.schema import Recipe, text_of
from unmask.recipes.start import with_absolute_paths

_SCHEDULE = ("schedule.name", "schedule.eps", "schedule.power")
_SIZES = ("network.width", "network.blocks", "network.heads", "network.cond_dim")
_SEES = "network.sees_alpha"
_DROPOUT = "network.dropout"


def without_effect(recipe: Recipe) -> dict[str, str]:
    """Map the fields that this kind of training does not use, by dotted name, to the reason."""
    traits = recipe.traits
    reasons = {f"objective.{name}": reason for name, reason in traits.unused.items()}
    if traits.noise is None:
        unused = ("network.cond_dim", _SEES, *_SCHEDULE)
        reasons |= dict.fromkeys(unused, "autoregressive training has no noise")
    if recipe.schedule.name != "polynomial" and not traits.distils:
        reasons.setdefault("schedule.power", "only the polynomial schedule has a power")
    return reasons


def set_by_start(recipe: Recipe) -> dict[str, str]:
    """Map the fields whose value comes from the model to start from to the reason."""
    traits = recipe.traits
    names: list[str] = [*_SIZES, _SEES] if traits.start or traits.distils else []
    if traits.distils:
        names += [_DROPOUT, *_SCHEDULE]
    if traits.start and recipe.data.tokenizer.startswith("bpe:"):
        names += ["data.tokenizer"]
    owner = "the teacher" if traits.distils else "the model to start from"
    return dict.fromkeys(names, f"{owner} has its own")


def check_flags(recipe: Recipe, before: Recipe, estimated: bool = False) -> None:
    """Raise ValueError for a field without effect that differs from `before`.

    Sizes of the network are accepted, so that the same flags serve teacher, judge and student.
    `unused_lines` reports sizes that differ from those in use.

    Args:
        recipe: the recipe with the flags of the user.
        before: the recipe without these flags.
        estimated: True for a dry run. Then the tokenizer may differ, because only its size is read.
    """
    old, now = dict(leaves(before)), dict(leaves(recipe))
    allowed = {*_SIZES, _DROPOUT, *(["data.tokenizer"] if estimated else [])}
    for name, reason in (set_by_start(recipe) | without_effect(recipe)).items():
        if now[name] != old.get(name) and name not in allowed:
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect in the recipe {recipe.name!r}: got "
                f"{now[name]!r}, but {reason}; omit it"
            )


def unused_lines(recipe: Recipe, parts: Parts, start: LanguageModel | None = None) -> list[str]:
    """List the fields of a recipe whose value a run does not use, with a line for each.

    Args:
        recipe: the run.
        parts: the parts of the run, with the sizes in use.
        start: the model that the recipe starts from; None: random weights.
    """
    reasons, values = without_effect(recipe), dict(leaves(recipe))
    defaults = dict(leaves(Recipe(recipe.name, type(recipe.objective)())))
    lines = [
        f"{name} = {values[name]!r} has no effect: {reason}"
        for name, reason in reasons.items()
        if values[name] != defaults[name]
    ]
    return lines if start is None else lines + _differences(recipe, parts, start)


def _differences(recipe: Recipe, parts: Parts, start: LanguageModel) -> list[str]:
    """A line for each field whose value is that of the model to start from, if they differ."""
    traits, student, values = recipe.traits, parts.student, dict(leaves(recipe))
    name, used = traits.start, {_SEES: student.sees_alpha}
    if isinstance(student.network, DiT):
        shape = student.network.shape
        used |= {f"network.{field.name}": getattr(shape, field.name) for field in fields(shape)}
    depth = traits.depth_multiplier
    blocks = f"({depth} for each block of {name})" if depth > 1 else f"of {name}"
    fixed = set_by_start(recipe).keys() - without_effect(recipe).keys()
    lines = [
        f"{field} = {used[field]} {blocks if field == 'network.blocks' else f'of {name}'}, "
        f"not {values[field]}"
        for field in used
        if field in fixed and used[field] != values[field]
    ]
    if traits.distils:
        if parts.schedule != (own := recipe.schedule.build()):
            lines.append(f"schedule = {parts.schedule} of {name}, not {own}")
        if student.length != recipe.network.length:
            lines.append(
                f"network.length = {recipe.network.length} tokens in a row, but {name} was "
                f"trained on rows of {student.length}"
            )
    return lines + _other_text(recipe, start)


def _other_text(recipe: Recipe, start: LanguageModel) -> list[str]:
    """A line if the card of the model to start from names another text than the recipe."""
    if (card := text_of(start.card, recipe.traits.start)) is None:
        return []
    now = with_absolute_paths(recipe).data
    before = with_absolute_paths(replace(recipe, data=card)).data  # 0.1 wrote relative paths
    if (before.corpus, before.part) == (now.corpus, now.part):
        return []
    return [
        f"{recipe.traits.start} was trained on {before.part} of {before.corpus}, but this run "
        f"reads {now.part} of {now.corpus}"
    ]
