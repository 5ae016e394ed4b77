"""From a recipe to the objects that run it: the one place that knows every class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import assert_never

import torch
from torch import nn

from unmask.data.hub import local_or_hub
from unmask.data.tokenizers import Tokenizer, check_vocabulary, start_token
from unmask.dataclass_json import from_json, read_json
from unmask.diffusion.correlated_masking import parse_structure
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import Cosine, GaussianArgmax, LogLinear, NoiseSchedule, Polynomial
from unmask.models.checkpoints.weights import insert_blocks
from unmask.models.denoiser import (
    CausalPredictor,
    DenoiserModule,
    NetworkDenoiser,
    PredictorModule,
    set_compute,
)
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, LanguageModel, Model, load, own_network, process_of
from unmask.models.modules import without_weights
from unmask.objectives.autoregressive import NextToken
from unmask.objectives.base import Objective
from unmask.objectives.consistency import Consistency
from unmask.objectives.curriculum import Curriculum
from unmask.objectives.nelbo import Nelbo
from unmask.objectives.sdtt import Sdtt
from unmask.recipes import schema
from unmask.recipes.schema import DataSettings, Noise, Recipe
from unmask.rng import global_generators
from unmask.training.distributed import faster_in_bfloat16

HELD_OUT = "held_out_digest"  # in the card of a model: of the documents that its training held out
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """What a training loop needs: `student` is trained on `objective`; `model(network)` wraps its weights for use.

    blank  the student without its weights, from before they are sharded: copies are made of it
    """

    objective: Objective
    student: DenoiserModule | PredictorModule
    schedule: NoiseSchedule
    tokenizer: Tokenizer | None
    recipe: Recipe
    blank: DenoiserModule | PredictorModule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blank", without_weights(self.student))

    def model(self, student: nn.Module) -> Model | CausalModel:
        """A model of the given student's weights as `load` would give it: on the CPU, in float32, in eval mode."""
        if not isinstance(student, DenoiserModule | PredictorModule):
            raise TypeError(
                f"a student is a denoiser or a next-token predictor, not {type(student).__name__}"
            )
        return self.finished(copy.deepcopy(student).to("cpu"))

    def finished(self, student: DenoiserModule | PredictorModule) -> Model | CausalModel:
        """As `model`, of a student on the CPU that nobody trains any more: its weights are not copied."""
        student.eval().requires_grad_(False)
        set_compute(student, torch.float32)
        if isinstance(student, PredictorModule):
            return CausalModel.of(student, self.tokenizer)
        return Model(student, _process(student), self.schedule, self.tokenizer)


def schedule(recipe: schema.Schedule) -> NoiseSchedule:
    match recipe.name:
        case "log-linear":
            return LogLinear(recipe.eps)
        case "cosine":
            return Cosine(recipe.eps)
        case "polynomial":
            return Polynomial(recipe.power, recipe.eps)
        case name:
            assert_never(name)


def decided(recipe: Recipe, faster: Callable[[], bool] | None = None) -> Recipe:
    """The recipe with a precision of its own: "fastest" is bfloat16 where `faster` says so (asked here by default)."""
    if recipe.precision != "fastest":
        return recipe
    ask = partial(faster_in_bfloat16, torch.device("cpu")) if faster is None else faster
    return replace(recipe, precision="bfloat16" if ask() else "float32")


def build(recipe: Recipe, tokenizer: Tokenizer | None, vocab_size: int | None = None) -> Parts:
    """The parts of a run. `vocab_size` is for rows without a tokenizer: its last token is MASK.

    Weights are initialised from `recipe.seed` or, where the objective names a model to start from, from that model:
    then the sizes are that model's. A distillation starts from its teacher.
    """
    recipe, levels = decided(recipe), schedule(recipe.schedule)
    match recipe.objective:
        case schema.NelboSettings(process=noise, t_min=t_min, init=init):
            student, tokenizer = _teacher(recipe, noise, init, tokenizer, vocab_size)
            return Parts(
                Nelbo(_process(student), levels, t_min), student, levels, tokenizer, recipe
            )
        case schema.CurriculumSettings() as told:
            student, tokenizer = _teacher(recipe, "uniform", told.init, tokenizer, vocab_size)
            uniform = UniformProcess(student.vocab_size)
            path = GaussianArgmax(student.vocab_size, *told.gamma)
            curriculum = Curriculum(
                uniform, levels, path, told.soft_steps, told.temperature, told.top_k, told.t_min
            )
            return Parts(curriculum, student, levels, tokenizer, recipe)
        case schema.AutoregressiveSettings(init=init):
            if init:
                baseline = _causal(load(init))
                tokenizer = _shared_tokenizer(recipe, baseline, tokenizer)
                network = _resized(baseline, recipe)
            else:
                vocab = tokenizer.vocab_size if tokenizer is not None else _known(vocab_size)
                network = _network(recipe, vocab, causal=True)
            start = start_token(tokenizer, network.shape.vocab_size, None)
            return Parts(NextToken(start), CausalPredictor(network), levels, tokenizer, recipe)
        case schema.ConsistencySettings() | schema.SdttSettings() as settings:
            if not settings.teacher:
                raise ValueError(
                    "a distillation needs its teacher: give objective.teacher, a directory or hub id"
                )
            return distillation(recipe, settings, load(settings.teacher), tokenizer)
        case other:
            assert_never(other)


def _teacher(
    recipe: Recipe, noise: Noise, init: str, tokenizer: Tokenizer | None, vocab_size: int | None
) -> tuple[NetworkDenoiser, Tokenizer | None]:
    """A denoiser to train on an evidence bound, from random weights or from those of `init`; and its tokenizer."""
    if init:
        model = _diffusion(load(init), noise, recipe)
        tokenizer = _shared_tokenizer(recipe, model, tokenizer)
        return NetworkDenoiser(
            _resized(model, recipe), model.denoiser.mask_id, model.denoiser.sees_alpha
        ), tokenizer
    if noise == "masked":
        size, mask_id = _with_mask(tokenizer, vocab_size)
    else:
        size, mask_id = _known(vocab_size) if tokenizer is None else tokenizer.vocab_size, None
    return NetworkDenoiser(
        _network(recipe, size, causal=False), mask_id, recipe.network.sees_alpha
    ), tokenizer


def distillation(
    recipe: Recipe,
    settings: schema.DistillationSettings,
    teacher: Model | CausalModel,
    tokenizer: Tokenizer | None = None,
) -> Parts:
    """The parts of a distillation of `teacher`, which is copied: the student starts as its equal."""
    recipe = decided(recipe)
    teacher = _diffusion(
        teacher,
        settings.process if isinstance(settings, schema.ConsistencySettings) else "masked",
        recipe,
    )
    tokenizer = _shared_tokenizer(recipe, teacher, tokenizer)
    student = copy.deepcopy(teacher.denoiser).requires_grad_(True)
    old = copy.deepcopy(teacher.denoiser).eval().requires_grad_(False)
    set_compute(student, DTYPES[recipe.precision], recipe.checkpointing)
    set_compute(old, DTYPES[recipe.precision])
    return Parts(_distilled(settings, teacher, old), student, teacher.schedule, tokenizer, recipe)


def _distilled(
    settings: schema.DistillationSettings, teacher: Model, old: DenoiserModule
) -> Objective:
    """The objective that a recipe of distillation names; `old` is the copy of `teacher` that it reads."""
    process = _process(old)
    match settings:
        case schema.SdttSettings() as told:
            if not isinstance(process, MaskedProcess):
                raise TypeError("SDTT walks through MASKs, and this process has none")
            return Sdtt(
                process,
                teacher.schedule,
                old,
                told.rounds(),
                told.teacher_steps,
                told.divergence,
                told.faithful,
            )
        case schema.ConsistencySettings() as told:
            return Consistency(
                process,
                teacher.schedule
                if told.gamma is None
                else GaussianArgmax(old.vocab_size, *told.gamma),
                old,
                told.rounds(),
                direction=told.direction,
                revealed=told.revealed,
                coupling=told.coupling,
                reduction=told.reduction,
                revealed_weight=told.revealed_weight,
                structure=parse_structure(told.structure),
            )


def starts_from(recipe: Recipe) -> str:
    """The model whose weights a run starts from, a directory or hub id; empty where they are random."""
    match recipe.objective:
        case schema.ConsistencySettings(teacher=name) | schema.SdttSettings(teacher=name):
            return name
        case (
            schema.NelboSettings(init=name)
            | schema.CurriculumSettings(init=name)
            | schema.AutoregressiveSettings(init=name)
        ):
            return name
        case other:
            assert_never(other)


def deeper_by(recipe: Recipe) -> int:
    """How many blocks the network has for each block of the model that it starts from."""
    return recipe.objective.deeper if isinstance(recipe.objective, schema.NelboSettings) else 1


def trained_on(name: str) -> DataSettings | None:
    """The text that the card of a model names, by directory, hub id or unmask:NAME; None where it names none."""
    file = local_or_hub(name, ("config.json",)) / "config.json"
    match read_json(file) if file.exists() else None:
        case {"card": dict(card)}:
            return text_of(card, name)
    return None


def text_of(card: Mapping[str, object], name: str) -> DataSettings | None:
    """The text that a card names, `name` being that of its model; None where it names none."""
    match card:
        case {"recipe": {"data": told}}:
            return from_json(DataSettings, told, f"data in the card of {name}")
    return None


def _diffusion(model: Model | CausalModel, noise: Noise, recipe: Recipe) -> Model:
    """The model, if it is one of diffusion with this noise."""
    kind = model.kind
    if not isinstance(model, Model) or kind != noise:
        raise ValueError(
            f"the recipe {recipe.name!r} ({recipe.objective.kind}) starts from a model of {noise} diffusion, and this "
            f"one is {kind}: give another model, or a recipe for {kind} ones"
        )
    return model


def _process(denoiser: DenoiserModule) -> Process:
    """The noise that a denoiser removes."""
    return process_of(denoiser.vocab_size, denoiser.mask_id)


def _causal(model: Model | CausalModel) -> CausalModel:
    if not isinstance(model, CausalModel):
        raise ValueError(
            "next-token training needs an autoregressive model to start from; this one is a diffusion model"
        )
    return model


def _shared_tokenizer(
    recipe: Recipe, model: Model | CausalModel, tokenizer: Tokenizer | None
) -> Tokenizer | None:
    """The tokenizer of rows and model, which must be one and the same."""
    if (
        tokenizer is not None
        and model.tokenizer is not None
        and tokenizer.digest != model.tokenizer.digest
    ):
        raise ValueError(
            "the rows were encoded by another tokenizer than that of the model to start from: point data.tokenizer of "
            f"the recipe {recipe.name!r} at that model's directory"
        )
    tokenizer = model.tokenizer or tokenizer
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.vocab_size)
    return tokenizer


def _resized(model: LanguageModel, recipe: Recipe) -> DiT:
    """The model's weights, to train on rows of the recipe's length with the recipe's dropout; see `insert_blocks`."""
    source, told, deeper = own_network(model), recipe.network, deeper_by(recipe)
    old = source.shape
    network = _initial(
        replace(old, length=told.length, dropout=told.dropout, blocks=deeper * old.blocks), recipe
    )
    network.load_state_dict(network.state_dict() | insert_blocks(source.state_dict(), deeper))
    return network


def _network(recipe: Recipe, vocab_size: int, causal: bool) -> DiT:
    sizes = recipe.network
    shape = Shape(
        vocab_size,
        sizes.length,
        sizes.width,
        sizes.blocks,
        sizes.heads,
        sizes.cond_dim,
        sizes.dropout,
        causal=causal,
    )
    return _initial(shape, recipe)


def _initial(shape: Shape, recipe: Recipe) -> DiT:
    """A network with the first weights of the recipe's seed."""
    with global_generators(recipe.seed):
        return DiT(shape, DTYPES[recipe.precision], recipe.checkpointing)


def _with_mask(tokenizer: Tokenizer | None, vocab_size: int | None) -> tuple[int, int]:
    """(V, MASK) of a masked model: the tokenizer's own MASK, else one more token behind its last, as in MDLM."""
    if tokenizer is None:
        return _known(vocab_size), _known(vocab_size) - 1
    if tokenizer.mask_id is None:
        return tokenizer.vocab_size + 1, tokenizer.vocab_size
    return tokenizer.vocab_size, tokenizer.mask_id


def _known(vocab_size: int | None) -> int:
    if vocab_size is None:
        raise ValueError(
            "without a tokenizer the size of the vocabulary is unknown: give vocab_size"
        )
    return vocab_size
