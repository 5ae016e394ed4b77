"""Every named recipe runs in miniature: two steps on the CPU, then save, load and sample."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unmask
from toy_recipes import LENGTH, VOCABULARY, shrink
from unmask.dataclass_json import from_json
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.models.model import CausalModel, Model
from unmask.recipes.catalog import RECIPES, recipe
from unmask.recipes.objective_settings import (
    AutoregressiveSettings,
)
from unmask.recipes.run import run
from unmask.recipes.schema import Recipe

NAMES = [function().name for function in RECIPES]


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_trains_two_steps_and_its_model_draws_text(
    name: str, text: Path, masked: Path, uniform: Path, causal: Path, tmp_path: Path
) -> None:
    plan = recipe(name)
    models = {"masked": masked, "uniform": uniform, None: causal}
    start = models[plan.traits.noise] if plan.traits.start else None
    small = shrink(
        plan,
        text,
        start,
        tokens=masked if isinstance(plan.objective, AutoregressiveSettings) else None,
    )
    updates = list(run(small, tmp_path / "run", device="cpu"))
    assert [update.step for update in updates] == [1, 2]
    assert all(math.isfinite(update.loss) and update.grad_norm > 0 for update in updates)
    assert updates[0].tokens == 4 * LENGTH

    saved = json.loads((tmp_path / "run" / "recipe.json").read_text("utf-8"))
    assert saved["precision"] in ("float32", "bfloat16"), "decided when the run began"
    decided = replace(small, precision=saved["precision"])
    assert from_json(Recipe, saved, "recipe") == decided, (
        "recipe.json is the recipe and nothing else"
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [update.loss for update in updates]

    models = [
        unmask.load(tmp_path / "run" / "model", weights=weights) for weights in ("ema", "raw")
    ]
    assert [type(model) for model in models] == [
        CausalModel if isinstance(small.objective, AutoregressiveSettings) else Model
    ] * 2
    processes = {"masked": MaskedProcess, "uniform": UniformProcess}
    for model in models:
        if isinstance(model, Model):
            assert type(model.process) is processes[small.traits.noise]
            assert model.denoiser.sees_alpha == (small.traits.noise == "uniform")
        assert not model.network.training and model.tokenizer is not None
        assert model.vocab_size == model.tokenizer.vocab_size == VOCABULARY
    drawn = [unmask.sample(models[0], n=2, length=8, steps=3, seed=1) for _ in range(2)]
    assert drawn[0].tokens.shape == (2, 8) and len(drawn[0].texts) == 2
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)
    weights = [model.network.state_dict() for model in models]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0]), (
        "the average is not the last"
    )
