"""A recipe is data: JSON and back without loss, and an error names a wrong field."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.dataclass_json import from_json, to_json
from unmask.recipes.catalog import RECIPES
from unmask.recipes.objective_settings import (
    AutoregressiveSettings,
    ConsistencySettings,
    CurriculumSettings,
    NelboSettings,
    SdttSettings,
)
from unmask.recipes.schema import DataSettings, NetworkSettings, Recipe, Schedule, recipe_from_json
from unmask.training.optim import AdamW

positive = st.floats(1e-9, 1e3, allow_subnormal=False)
gammas = st.tuples(st.floats(-5, -2), st.floats(-1, 9))
objectives = st.one_of(
    st.builds(
        NelboSettings, t_min=st.floats(0, 0.5), process=st.sampled_from(["masked", "uniform"])
    ),
    st.builds(AutoregressiveSettings),
    st.builds(
        CurriculumSettings,
        soft_steps=st.integers(0, 10**9),
        gamma=gammas,
        temperature=positive,
        top_k=st.integers(1, 99),
    ),
    st.builds(
        SdttSettings,
        teacher=st.text(),
        count=st.integers(1, 9),
        teacher_steps=st.integers(1, 9),
        divergence=st.sampled_from(["reverse", "forward", "mse", "tvd"]),
        time_grid=st.sampled_from(["paper", "released"]),
    ),
    st.builds(
        ConsistencySettings,
        teacher=st.text(),
        round_steps=st.integers(1, 10**6),
        temperatures=st.lists(positive, min_size=1, max_size=9).map(tuple),
        direction=st.sampled_from(["reverse", "forward"]),
        coupling=st.sampled_from(["locked", "independent"]),
        order=st.sampled_from(["random", "spread"]),
        gamma=st.none() | gammas,
    ),
    st.builds(
        ConsistencySettings,
        revealed=st.sampled_from(["cross_entropy", "divergence", "none"]),
        revealed_weight=positive,
        reduction=st.sampled_from(["tokens", "masked"]),
    ),
    st.builds(ConsistencySettings, process=st.just("uniform")),
)
recipes = st.builds(
    Recipe,
    name=st.text(min_size=1, max_size=20).filter(
        lambda name: name not in (".", "..") and not {"/", "\0"} & {*name}
    ),
    objective=objectives,
    network=st.builds(NetworkSettings, dropout=st.floats(0, 0.5), sees_alpha=st.booleans()),
    data=st.builds(
        DataSettings, corpus=st.text(), part=st.sampled_from(["all", "first half", "second half"])
    ),
    schedule=st.builds(
        Schedule,
        st.sampled_from(["log-linear", "cosine", "polynomial"]),
        st.floats(0, 0.5),
        positive,
    ),
    optim=st.builds(
        AdamW,
        lr=positive,
        clip_norm=st.none() | positive,
        ema_decay=st.none() | st.floats(0, 0.999),
    ),
    precision=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(-(2**63), 2**63 - 1),
)


@given(recipes)
def test_json_and_back(recipe: Recipe) -> None:
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe))), "recipe") == recipe


@pytest.mark.parametrize("function", RECIPES, ids=lambda function: function.__name__)
def test_named_recipes_and_back(function) -> None:  # type: ignore[no-untyped-def]
    recipe = function()
    read = from_json(Recipe, json.loads(json.dumps(to_json(recipe))), "recipe")
    assert read == recipe and repr(read) == repr(recipe), (
        "types too: 1e-3 is no integer, tuples are no lists"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.steps = 1


def test_the_old_name_of_the_time_grid_is_read() -> None:
    content = to_json(Recipe("x", SdttSettings(time_grid="released")))
    old = {**content, "objective": {**content["objective"]}}
    old["objective"]["faithful"] = old["objective"].pop("time_grid")
    assert recipe_from_json(old) == recipe_from_json(content)
    old["objective"]["faithful"] = "no"
    with pytest.raises(ValueError, match=r"objective\.time_grid .*'no'"):
        recipe_from_json(old)


def test_fields_that_are_left_out_have_their_defaults() -> None:
    assert from_json(Recipe, {"name": "x"}, "recipe") == Recipe("x")
    content = {
        "name": "x",
        "objective": {"kind": "consistency", "temperatures": [1, 0.5]},
        "optim": {"lr": 1},
    }
    recipe = from_json(Recipe, content, "recipe")
    assert recipe.objective == ConsistencySettings(
        temperatures=(1.0, 0.5)
    ) and recipe.optim == AdamW(lr=1.0)
    assert [type(tau) for tau in recipe.objective.temperatures] == [float, float], (
        "whole numbers are numbers"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "recipe.name is missing: recipe has name, objective"),
        ([], r"recipe has the wrong type: got \[\], want an object with the fields of Recipe"),
        ({"name": "x", "step": 5}, "recipe has no field 'step', did you mean 'steps'?"),
        ({"name": "x", "zzz": 5}, "recipe has no field 'zzz': it has name, objective, network"),
        ({"name": "x", "optim": {"learning": 1}}, "recipe.optim has no field 'learning'"),
        ({"name": "x", "optim": {"warmup_step": 1}}, "'warmup_step', did you mean 'warmup"),
        ({"name": 5}, "recipe.name .*got 5, want str"),
        ({"name": "x", "steps": 1.5}, "recipe.steps .*got 1.5, want int"),
        ({"name": "x", "steps": True}, "recipe.steps .*got True, want int"),
        ({"name": "x", "steps": None}, "recipe.steps .*got None, want int"),
        ({"name": "x", "optim": {"lr": "1e-3"}}, "recipe.optim.lr .*got '1e-3', want float"),
        ({"name": "x", "optim": {"clip_norm": "no"}}, "optim.clip_norm .*got 'no', want float"),
        ({"name": "x", "optim": {"betas": [0.9]}}, r"betas .*got \[0.9\], want a list of 2"),
        ({"name": "x", "optim": {"betas": 0.9}}, "recipe.optim.betas .*got 0.9, want a list"),
        ({"name": "x", "optim": {"betas": [0.9, "a"]}}, r"betas\[1\] .*got 'a', want float"),
        ({"name": "x", "optim": 3}, "recipe.optim .*got 3, want an object"),
        ({"name": "x", "network": {"sees_alpha": 1}}, "network.sees_alpha .*got 1, want bool"),
        ({"name": "x", "precision": "float16"}, "precision .*got 'float16', .*'fastest'"),
        ({"name": "x", "precision": ["float32"]}, "recipe.precision is unknown: got"),
        ({"name": "x", "objective": {"kind": "x"}}, "kind .*got 'x', .*'nelbo', .*'sdtt'"),
        ({"name": "x", "objective": {}}, "recipe.objective.kind is unknown: got None"),
        ({"name": "x", "objective": "nelbo"}, "recipe.objective.kind is unknown: got None"),
        ({"name": "x", "objective": {"kind": "nelbo", "teacher": "y"}}, "no field 'teacher'"),
        (
            {"name": "x", "objective": {"kind": "consistency", "direction": "both"}},
            "direction is unknown: got 'both', want one of 'reverse', ",
        ),
        ({"name": "x", "steps": 0}, "steps of the recipe 'x' .*got 0, want steps >= 1"),
        ({"name": "x", "batch_size": 10, "accumulation": 4}, "accumulation .*4 .*batch_size = 10"),
    ],
)
def test_wrong_json(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Recipe, content, "recipe")


def test_an_objective_without_its_methods_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class WithoutTraits:
        kind: str = "mine"

    with pytest.raises(TypeError, match=r"objective of the recipe 'x' .*WithoutTraits.*traits"):
        Recipe("x", objective=WithoutTraits())


def test_settings_without_effect_are_refused() -> None:
    for change in ({"revealed": "none"}, {"revealed_weight": 4.0}, {"reduction": "masked"}):
        with pytest.raises(
            ValueError,
            match=f"{next(iter(change))} .*process = 'uniform'",
        ):
            ConsistencySettings(process="uniform", **change)
        ConsistencySettings(**change)
    for name in ("count", "teacher_steps"):
        with pytest.raises(ValueError, match=f"{name} .*got 0"):
            SdttSettings(**{name: 0})


WRONG = {
    "optim.lr": [0.0, -1.0],
    "optim.betas": [(0.9, 1.0), (-0.1, 0.9)],
    "optim.eps": [0.0, -1.0],
    "optim.weight_decay": [-1.0],
    "optim.clip_norm": [0.0, -1.0],
    "optim.ema_decay": [1.0, -0.1],
    "optim.warmup_steps": [-1],
    "schedule.eps": [1.0, -0.1],
    "schedule.power": [0.0, -1.0],
    "network.dropout": [1.0, -0.1],
    "network.length": [0],
    "network.width": [0],
    "network.blocks": [0],
    "network.heads": [0],
    "network.cond_dim": [0],
    "objective.t_min": [1.0, -0.1],
    "objective.soft_steps": [-1],
    "objective.temperature": [0.0, -1.0],
    "objective.top_k": [0],
    "objective.gamma": [(-1.0, -1.0), (0.0, -1.0)],
    "objective.round_steps": [0],
    "objective.delta0": [0.0, 1.0, -1.0],
    "objective.temperatures": [(), (0.9, 0.0), (-1.0,), (0.9,) * 10],
    "objective.revealed_weight": [-1.0],
    "objective.count": [0, 11, 10**9],
    "objective.teacher_steps": [0],
    "objective.deeper": [0],
    "batch_size": [0, -4],
    "accumulation": [0],
    "steps": [0],
    "save_every": [0],
    "seed": [2**63, -(2**63) - 1],
    "name": ["", ".", "..", "a/b", "a\0b", "x" * 201, "ü" * 101],
}


def with_field(content: dict, path: str, value: object) -> dict:
    """The JSON of a recipe with one field changed."""
    first, _, rest = path.partition(".")
    return content | {first: with_field(content[first], rest, value) if rest else value}


def fields_of(kind: type, path: str = "") -> dict[str, object]:
    """The leaves of the JSON of a recipe of an objective, by dotted names."""
    record = to_json(Recipe("x", kind()))
    return {
        f"{outer}.{inner}" if isinstance(value, dict) else outer: leaf
        for outer, value in record.items()
        for inner, leaf in (value.items() if isinstance(value, dict) else [("", value)])
    }


@pytest.mark.parametrize(
    "kind",
    [NelboSettings, CurriculumSettings, AutoregressiveSettings, ConsistencySettings, SdttSettings],
)
def test_every_number_and_text_of_a_recipe_is_one_that_files_keep(kind: type) -> None:
    """No NaN or infinity, no integer beyond 64 bits, no text without a form in UTF-8."""
    content, numbers = to_json(Recipe("x", kind())), 0
    for path, value in fields_of(kind).items():
        if path.endswith("kind") or isinstance(value, bool):
            continue
        if path == "optim.decay_steps":
            bad = [2**63]
        elif isinstance(value, int):
            bad = [2**63, -(2**63) - 1]
        elif isinstance(value, float) or path == "optim.clip_norm":
            bad = [float("nan"), float("inf"), -float("inf")]
        elif isinstance(value, list) or path == "objective.gamma":
            bad = [[-1.0, float("nan")], [float("-inf"), 1.0]]
        else:
            bad = ["\udcff"]
        for wrong in bad:
            with pytest.raises(ValueError, match=path.rpartition(".")[2]):
                from_json(Recipe, with_field(content, path, wrong), "recipe")
            numbers += 1
    assert numbers > 40


@pytest.mark.parametrize("path", WRONG)
def test_a_value_out_of_its_range_is_refused_at_the_start(path: str) -> None:
    kinds = [
        kind
        for kind in (
            NelboSettings,
            CurriculumSettings,
            AutoregressiveSettings,
            ConsistencySettings,
            SdttSettings,
        )
        if path in fields_of(kind)
    ]
    assert kinds
    for kind in kinds:
        content = to_json(Recipe("x", kind()))
        for wrong in WRONG[path]:
            with pytest.raises(ValueError, match=path.rpartition(".")[2]):
                from_json(
                    Recipe, with_field(content, path, json.loads(json.dumps(wrong))), "recipe"
                )


def test_numbers_of_a_recipe_have_a_range_or_a_reason() -> None:
    """A new numeric field joins `WRONG`, or `free` with the reason why all its values are valid."""
    free = {"optim.decay_steps"}  # None, or more than warmup_steps
    for kind in (
        NelboSettings,
        CurriculumSettings,
        AutoregressiveSettings,
        ConsistencySettings,
        SdttSettings,
    ):
        for path, value in fields_of(kind).items():
            if isinstance(value, int | float | list) and not isinstance(value, bool):
                assert path in WRONG or path in free, path
