"""Run a recipe: in a run directory (`run`), or on rows in memory (`train`, `distill`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from unmask.data.packing import Rows, StreamedRows, batch_at, check_rows
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import to_json
from unmask.models.denoiser import own_networks
from unmask.models.model import CausalModel, LanguageModel, Model, not_a_model
from unmask.models.modules import with_weights
from unmask.recipes.build import Parts, build, decided, load_start
from unmask.recipes.data import TrainingData, training_data
from unmask.recipes.estimate import check_memory
from unmask.recipes.schema import HELD_OUT, Recipe
from unmask.recipes.start import (
    as_started,
    as_written_now,
    digests,
    finished,
    resume_or_start,
    with_own_tokenizer,
)
from unmask.recipes.traits import Student
from unmask.recipes.unused_settings import unused_lines
from unmask.training import (
    STUDENT,
    Engine,
    RunDir,
    State,
    Update,
    fit,
    launch,
    stop_signals,
    with_checkpoints,
)
from unmask.training.distributed import copies, faster_in_bfloat16

__all__ = ["distill", "finished", "run", "train"]


def run(
    recipe: Recipe,
    directory: str | Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    data: TrainingData | None = None,
    resume: bool = True,
    device: str | None = None,
    sharded: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Update]:
    """Train a recipe in a run directory, from its newest saved state if it has one.

    After the last step `directory/model` holds the model with averaged weights, and the raw weights
    beside it. The saved states are removed, because a finished run takes no more steps.

    Args:
        recipe: the run.
        directory: the run directory; it is created if needed.
        say: receives lines about the first step, settings without effect, and changed facts.
        data: the rows; by default they are made from `recipe.data`.
        resume: if False, a directory that already holds a run is refused.
        device: "cpu", "cuda" or "cuda:N"; by default the best available.
        sharded: each process holds a part of every weight (FSDP2). Only the updates of the first
            process then have a student.
        stop: called once a step. If it returns True, the state is saved and the run ends. A signal
            has the same effect (`stop_signals`).

    Yields:
        An `Update` for each step. At the end of a round and of the run, its `.student` is the model
        of the averaged weights.
    """
    engine, directory = launch(device, sharded), Path(directory)
    recipe = as_started(recipe, directory, engine)
    check_memory(recipe, engine.device, engine.world if engine.sharded else 1)
    start = load_start(recipe)
    if data is None:
        data = training_data(with_own_tokenizer(recipe, directory), say, start)
    parts = build(recipe, data.tokenizer, start=start)
    batches = _batches(recipe, data.train, parts, engine)
    digests_now, notes = digests(data, start), _notes(recipe, parts, start, engine)
    del start  # the student is a copy, and a second copy of the weights costs memory
    state, saved = _begin(parts, engine), to_json(recipe)
    rewrite = partial(as_written_now, objective=recipe.objective)
    with (
        RunDir.open(directory, saved, resume=resume, engine=engine, update=rewrite) as run_dir,
        stop_signals() as signalled,
        closing(data),
    ):
        if not resume_or_start(run_dir, state, digests_now, recipe, data.tokenizer, say):
            return
        for line in notes:
            say(line)
        updates = _fit(parts, state, batches, engine, stop=lambda: stop() or signalled())
        for update in with_checkpoints(updates, run_dir, state, every=recipe.save_every):
            yield _with_student(update, parts, state, engine.main or not engine.sharded)
        if state.step >= recipe.steps:
            _publish(run_dir, parts, state, data.digest)
        engine.wait()  # for the process that writes the model


def _notes(recipe: Recipe, parts: Parts, start: LanguageModel | None, engine: Engine) -> list[str]:
    """Lines about settings without effect, and about a small accumulation."""
    lines = unused_lines(recipe, parts, start)
    if engine.world <= recipe.accumulation:
        return lines
    more_processes = (
        f"accumulation = {recipe.accumulation} is less than the number of processes, "
        f"{engine.world}: each process has its own micro-batch, so noise differs from a run with "
        "fewer processes"
    )
    return [more_processes, *lines]


def _batches(
    recipe: Recipe, rows: Rows | StreamedRows, parts: Parts, engine: Engine
) -> Callable[[int], Tensor]:
    """The function step -> rows of this process.

    Streamed rows are checked when they are read, others at once.
    """
    student = parts.student
    take = partial(
        batch_at,
        rows,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        rank=engine.rank,
        world=engine.world,
    )
    if not isinstance(rows, StreamedRows):
        check_rows(rows, student.vocab_size, student.mask_id)
        return take

    def checked(step: int) -> Tensor:
        x0 = take(step)
        check_rows(x0, student.vocab_size, student.mask_id)
        return x0

    return checked


def _begin(parts: Parts, engine: Engine) -> State:
    """The state before the first step; each trained network has its own optimizer settings."""
    optims = {STUDENT: parts.recipe.optim, **parts.recipe.traits.optims}
    return State.begin(parts.objective, parts.student, optims, engine)


def _fit(
    parts: Parts,
    state: State,
    batches: Callable[[int], Tensor],
    engine: Engine,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Update]:
    recipe = parts.recipe
    return fit(
        parts.objective,
        state,
        batches,
        steps=recipe.steps,
        accumulation=engine.local_micro_batches(recipe.accumulation),
        seed=recipe.seed,
        engine=engine,
        stop=stop,
    )


def distill(model: Model | CausalModel, ids: Tensor, recipe: Recipe) -> Iterator[Update]:
    """Distill a diffusion model in memory (MCD, DCD, SDTT). Nothing is saved.

    MCD is Algorithm 1 of Latent Shadows, arXiv 2602.00792.

    Args:
        model: the teacher; it is copied. An autoregressive model is refused.
        ids: rows [n, L] to train on.
        recipe: a recipe of distillation. Its data, teacher, network and schedule are not used.

    Yields:
        An `Update` for each step. At the end of a round and of the run, its `.student` is the model
        of the averaged weights.
    """
    if not isinstance(model, LanguageModel):
        raise not_a_model(model)
    _check_arguments(recipe, ids)
    if not recipe.traits.distils:
        raise ValueError(
            f"recipe {recipe.name!r} does not distill: got objective {recipe.objective.kind!r}, "
            "want a recipe with a teacher; use unmask.train(recipe, ids)"
        )
    yield from _in_memory(recipe, ids, model)


def train(
    recipe: Recipe,
    ids: Tensor,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
) -> Iterator[Update]:
    """Train a model in memory (MDLM, Duo, an autoregressive model). Nothing is saved.

    The weights start from random values, or from the model that the recipe names as `init`.

    Args:
        recipe: a recipe of training. Its data are not used, and L replaces its `network.length`.
        ids: rows [n, L] to train on.
        tokenizer: tokenizer of the rows and of the model. None: the model has no tokenizer.
        vocab_size: V, if there is no tokenizer. The last token is MASK in masked diffusion, and the
            start token of an autoregressive model. None: the smallest V for these rows.

    Yields:
        An `Update` for each step. The `.student` of the last one is the model of the averaged
        weights.
    """
    _check_arguments(recipe, ids)
    if recipe.traits.distils:
        raise ValueError(
            f"recipe {recipe.name!r} distills a teacher: got objective {recipe.objective.kind!r}, "
            "want a recipe without a teacher; use unmask.distill(model, ids, recipe)"
        )
    if vocab_size is None:
        vocab_size = int(ids.max()) + (1 if recipe.traits.noise == "uniform" else 2)
    recipe = replace(recipe, network=replace(recipe.network, length=ids.shape[1]))
    yield from _in_memory(recipe, ids, load_start(recipe), tokenizer, vocab_size)


def _in_memory(
    recipe: Recipe,
    ids: Tensor,
    start: LanguageModel | None,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
) -> Iterator[Update]:
    """Run a recipe on rows [n, L] without a run directory."""
    engine = launch(str(ids.device) if ids.is_cuda else "cpu")

    def faster() -> bool:  # A user's own network computes in the precision of its weights.
        own = start is None or bool(own_networks(start.module))
        return bool(engine.broadcast_int(own and faster_in_bfloat16(engine.device)))

    parts = build(decided(recipe, faster), tokenizer, vocab_size, start)
    batches, state = _batches(parts.recipe, ids, parts, engine), _begin(parts, engine)
    for update in _fit(parts, state, batches, engine):
        yield _with_student(update, parts, state)


def _check_arguments(recipe: Recipe, ids: Tensor) -> None:
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe is not a recipe: got {recipe!r:.40}, want a Recipe; use unmask.recipe(name)"
        )
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids has a wrong shape: got {got}, want a tensor of rows [n, L], n >= 1")


def _with_student(update: Update, parts: Parts, state: State, keep: bool = True) -> Update:
    """The update, with the student at the end of a round or of the run.

    If `keep` is False, this process only helps others to gather the student.
    """
    recipe, round_steps = parts.recipe, parts.recipe.traits.round_steps
    round_ends = round_steps is not None and update.step % round_steps == 0
    if not (round_ends or update.step == recipe.steps):
        return update
    student = student_of(parts, state, keep)
    return update if student is None else replace(update, student=parts.model(student))


def _publish(run_dir: RunDir, parts: Parts, state: State, held_out: str) -> None:
    """Write the finished model, averaged and raw weights, and remove the states.

    Args:
        run_dir: the run directory.
        parts: the parts of the run.
        state: the state after the last step.
        held_out: digest of the held-out documents, for the card of the model. A measurement
            compares it with the digest of its text.
    """
    raw, ema = (student_of(parts, state, run_dir.engine.main, raw) for raw in (True, False))
    if raw is not None and ema is not None:
        model, raw_network = parts.model(ema), parts.model(raw).network
        card = {"recipe": to_json(parts.recipe), "steps": state.step, HELD_OUT: held_out}
        run_dir.publish(run_dir.model.name, partial(model.save, raw=raw_network, **card))
        run_dir.drop_states()


def student_of(parts: Parts, state: State, keep: bool = True, raw: bool = False) -> Student | None:
    """A copy of the student on the CPU, with averaged weights if there is an average.

    With sharded weights every process must call this.

    Args:
        parts: the parts of the run, with the student without weights.
        state: the state of the training.
        keep: False: only help other processes to gather the weights, and return None.
        raw: True: copy the raw weights.
    """
    ema = state.trained[STUDENT].ema
    average = {} if raw or ema is None else ema.shadow
    weights = copies({**state.student.state_dict(), **average}, keep)
    return with_weights(parts.blank, weights) if keep else None
