"""From a recipe to the objects that run it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from unmask.data.tokenizers import Tokenizer, check_vocabulary
from unmask.diffusion.schedules import NoiseSchedule
from unmask.models.checkpoints.weights import insert_blocks
from unmask.models.denoiser import CausalPredictor, NetworkDenoiser, PredictorModule, set_compute
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, LanguageModel, Model, load, own_network
from unmask.models.modules import without_weights
from unmask.objectives.base import Objective
from unmask.recipes.objective_settings import process_of
from unmask.recipes.schema import Recipe
from unmask.recipes.traits import Student
from unmask.rng import global_generators

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """The objects of a training run.

    Attributes:
        objective: the objective of `student`
        student: the trained network
        blank: the student without weights, made before sharding; finished models are copies of it
        schedule: noise schedule of the finished model
        tokenizer: tokenizer of the rows and of the finished model
        recipe: the run
    """

    objective: Objective
    student: Student
    blank: Student
    schedule: NoiseSchedule
    tokenizer: Tokenizer | None
    recipe: Recipe

    def model(self, student: Student) -> Model | CausalModel:
        """The finished model of a student on the CPU: float32, eval mode, without gradients."""
        student.eval().requires_grad_(False)
        set_compute(student, torch.float32)
        if isinstance(student, PredictorModule):
            return CausalModel.of(student, self.tokenizer)
        return Model(student, process_of(student), self.schedule, self.tokenizer)


def decided(recipe: Recipe, faster: Callable[[], bool]) -> Recipe:
    """Replace precision "fastest" by bfloat16 if `faster()` is True, else by float32."""
    if recipe.precision != "fastest":
        return recipe
    return replace(recipe, precision="bfloat16" if faster() else "float32")


def load_start(recipe: Recipe) -> LanguageModel | None:
    """Load the model that a recipe starts from; None: the weights start from random values.

    ValueError for a distillation that names no teacher.
    """
    traits = recipe.traits
    if traits.distils and not traits.start:
        raise ValueError(
            f"objective.teacher of the recipe {recipe.name!r} is empty: give objective.teacher, "
            "a directory or hub id"
        )
    return load(traits.start) if traits.start else None


def build(
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    vocab_size: int | None = None,
    start: LanguageModel | None = None,
) -> Parts:
    """Make the parts of a run.

    Args:
        recipe: the run; its precision is decided.
        tokenizer: tokenizer of the rows; None: they have none.
        vocab_size: vocabulary size of rows without a tokenizer; MASK is the last token.
        start: the model that the recipe starts from; by default it is loaded. It is copied.

    Raises:
        ValueError: the model has another noise process or another tokenizer than the recipe.
    """
    start = load_start(recipe) if start is None else start
    schedule = recipe.schedule.build()
    if start is None:
        student = _random_student(recipe, tokenizer, vocab_size)
    else:
        _check_kind(start, recipe)
        tokenizer = _shared_tokenizer(recipe, start, tokenizer)
        distils = recipe.traits.distils
        student = (_copied if distils else _continued)(start, recipe)
        schedule = start.schedule if distils and start.schedule is not None else schedule
    with global_generators(recipe.seed, 1):  # for weights of other networks, such as a critic
        objective = recipe.objective.build(student, schedule, tokenizer)
    return Parts(objective, student, without_weights(student), schedule, tokenizer, recipe)


def _random_student(recipe: Recipe, tokenizer: Tokenizer | None, vocab_size: int | None) -> Student:
    """A network with random weights that follow from the recipe's seed."""
    sizes, noise = recipe.network, recipe.traits.noise
    if tokenizer is not None:
        size, mask_id = tokenizer.vocab_size, tokenizer.mask_id
    elif vocab_size is not None:
        size, mask_id = vocab_size, vocab_size - 1
    else:
        raise ValueError("vocab_size is missing: give it, or a tokenizer, which determines it")
    if noise == "masked" and mask_id is None:
        size, mask_id = size + 1, size  # MASK is an additional last token, as in MDLM
    network = _initialized(sizes.shape(size, causal=noise is None), recipe)
    if noise is None:
        return CausalPredictor(network)
    return NetworkDenoiser(network, mask_id if noise == "masked" else None, sizes.sees_alpha)


def _copied(teacher: LanguageModel, recipe: Recipe) -> Student:
    """A trainable copy of the teacher, in the precision of the recipe."""
    student = copy.deepcopy(teacher.module).requires_grad_(True)
    set_compute(student, DTYPES[recipe.precision], recipe.checkpointing)
    return student


def _continued(start: LanguageModel, recipe: Recipe) -> Student:
    """The weights of `start` in a network with the recipe's row length, dropout and depth.

    New blocks are inserted by `insert_blocks`.
    """
    sizes, depth = recipe.network, recipe.traits.depth_multiplier
    old = own_network(start)
    blocks = depth * old.shape.blocks
    shape = replace(old.shape, length=sizes.length, dropout=sizes.dropout, blocks=blocks)
    network = _initialized(shape, recipe)
    network.load_state_dict(network.state_dict() | insert_blocks(old.state_dict(), depth))
    if recipe.traits.noise is None:
        return CausalPredictor(network)
    return NetworkDenoiser(network, start.mask_id, start.module.sees_alpha)


def _initialized(shape: Shape, recipe: Recipe) -> DiT:
    """A network with initial weights that follow from the recipe's seed."""
    with global_generators(recipe.seed):
        return DiT(shape, DTYPES[recipe.precision], recipe.checkpointing)


def _check_kind(model: LanguageModel, recipe: Recipe) -> None:
    """ValueError unless the model has the noise process of the recipe."""
    want = recipe.traits.noise or "autoregressive"
    if model.kind != want:
        raise ValueError(
            f"objective.{recipe.traits.start_field} of the recipe {recipe.name!r} "
            f"({recipe.objective.kind}) is a model of another kind: got {model.kind!r}, "
            f"want {want!r}; give another model or another recipe"
        )


def _shared_tokenizer(
    recipe: Recipe, model: LanguageModel, tokenizer: Tokenizer | None
) -> Tokenizer | None:
    """The common tokenizer of rows and model. ValueError if they have different ones."""
    own = model.tokenizer
    if tokenizer is not None and own is not None and tokenizer.digest != own.digest:
        raise ValueError(
            f"data.tokenizer of the recipe {recipe.name!r} is not the tokenizer of the model to "
            "start from: give the directory of that model as data.tokenizer"
        )
    shared = own or tokenizer
    if shared is not None:
        check_vocabulary(shared, model.vocab_size)
    return shared
