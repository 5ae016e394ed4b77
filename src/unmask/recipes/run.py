"""Carry a recipe out: in a run directory (`run`), or in memory for a caller who holds model and rows (`distill`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from unmask.data.packing import Rows, StreamedRows, batch_at, check_rows
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import to_json
from unmask.models.checkpoints.weights import original_blocks
from unmask.models.denoiser import DenoiserModule, PredictorModule, own_networks
from unmask.models.model import Model, load
from unmask.models.modules import weights_digest, with_weights
from unmask.recipes.build import (
    HELD_OUT,
    Parts,
    build,
    decided,
    deeper_by,
    distillation,
    starts_from,
)
from unmask.recipes.data import TrainingData, texts
from unmask.recipes.estimate import check_memory
from unmask.recipes.schema import DistillationSettings, Recipe, recipe_of
from unmask.recipes.start import (
    as_saved,
    changes,
    checked_start,
    digests,
    keep_start,
    read_start,
    refuse_more_steps,
    resolved,
    text_digest,
    with_own_tokenizer,
)
from unmask.recipes.unused_settings import not_used
from unmask.training import STUDENT, RunDir, State, Update, fit, launch, recorded, stop_signals
from unmask.training.distributed import Engine, faster_in_bfloat16
from unmask.training.sharding import copies


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
    """Train what `recipe` says in `directory`, from its newest state where there is one; yields every update.

    The update that ends a round, or the run, carries `.student`: the model of the averaged weights. After the last
    step `directory/model` holds it, with the raw weights beside them, and the states go: a finished run takes no more
    steps, and no command reads them. `say` gets a line about where the run starts and its precision, and about what is
    not as it was.
    sharded  each of several processes holds a part of every weight (FSDP2) and not all of them; only the first one's
             updates carry a student
    stop     as in `fit`; a signal stops the run too (`stop_signals`). The state is saved then
    """
    engine, directory = launch(device, sharded), Path(directory)
    recipe = as_begun(recipe, directory, engine)
    check_memory(recipe, engine.device, engine.world if engine.sharded else 1)
    data = texts(with_own_tokenizer(recipe, directory), say) if data is None else data
    parts = build(recipe, data.tokenizer)
    batches = _batches(recipe, data.train, parts, engine)
    found = digests(data, _digest(parts.student.network, recipe) if starts_from(recipe) else None)
    state = State.begin(parts.objective, parts.student, recipe.optim, engine)
    with (
        RunDir.open(
            directory, as_saved(recipe, directory), resume=resume, engine=engine
        ) as run_dir,
        stop_signals() as signalled,
        closing(data),
    ):
        if not _resumed(run_dir, state, found, recipe, data.tokenizer, say):
            return
        if engine.world > recipe.accumulation:
            say(f"accumulation = {recipe.accumulation}: each of {engine.world} processes has a micro-batch of its own, "
                "and noise other than that of fewer processes")  # fmt: skip
        for line in not_used(recipe, parts):
            say(line)
        updates = fit(
            parts.objective,
            state,
            batches,
            steps=recipe.steps,
            accumulation=engine.share(recipe.accumulation),
            seed=recipe.seed,
            engine=engine,
            stop=lambda: stop() or signalled(),
        )
        for update in recorded(updates, run_dir, state, every=recipe.save_every):
            yield with_student(update, parts, state, engine.main or not engine.sharded)
        if state.step >= recipe.steps:
            _publish(run_dir, parts, state, data.digest)
        engine.wait()  # no process goes on before the model is there


def _resumed(
    run_dir: RunDir,
    state: State,
    found: Mapping[str, str],
    recipe: Recipe,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> bool:
    """Bring a state to where the run stands, and say what is not as it was; False where all steps are done."""
    engine = run_dir.engine
    known, machine = checked_start(run_dir.path, found, recipe, engine), engine.machine()
    if engine.same(int(run_dir.model.exists())):
        say(
            f"all {recipe.steps} steps are done; {run_dir.model} holds the model and is left as it is"
        )
        run_dir.drop_states()
        return False
    restored = run_dir.restore(state, every=recipe.save_every)
    for line in (
        f"{restored}, matrix products in {recipe.precision}",
        *changes(known, found, machine, restored.step),
    ):
        say(line)
    if engine.main:
        keep_start(run_dir.path, known, found, machine, tokenizer, restored.step)
    return True


def _batches(
    recipe: Recipe, rows: Rows | StreamedRows, parts: Parts, engine: Engine
) -> Callable[[int], Tensor]:
    """Step -> the rows of this process. Rows are checked now where they are there, else when they come."""
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


def finished(recipe: Recipe, directory: Path) -> bool:
    """Whether `run` has nothing left to do or to refuse: then the model is only read, by any number of processes."""
    if not all((directory / name).exists() for name in ("model", "recipe.json")):
        return False
    begun, recipe, start = resolved(recipe_of(directory)), resolved(recipe), read_start(directory)
    if begun != (
        replace(recipe, precision=begun.precision) if recipe.precision == "fastest" else recipe
    ):
        return False
    if "text_digest" in start and start["text_digest"] != text_digest(recipe.data):
        return False
    if not starts_from(recipe) or "weights" not in start:
        return True
    return bool(start["weights"] == load(starts_from(recipe)).digest)


def as_begun(recipe: Recipe, directory: Path, engine: Engine) -> Recipe:
    """The recipe with absolute paths and a precision: that of the run in `directory`, else the faster one here.

    RunError for more steps than a finished run has.
    """
    recipe = resolved(recipe)
    refuse_more_steps(recipe, directory)
    if recipe.precision != "fastest":
        return recipe
    begun = (directory / "recipe.json").exists()
    faster = (
        recipe_of(directory).precision == "bfloat16" if begun else faster_in_bfloat16(engine.device)
    )
    return decided(
        recipe, lambda: bool(engine.same(faster))
    )  # all processes ask, and take the first one's answer


def distill(model: Model, ids: Tensor, recipe: Recipe) -> Iterator[Update]:
    """Distil a diffusion `model` on rows `ids` [n, L] by a recipe of distillation (MCD, DCD, SDTT); nothing is saved.

    Yields an `Update` a step; the one that ends a round, or the run, carries `.student`, a Model of the averaged
    weights. The recipe's data, teacher, network and schedule are not read: `ids` and `model` have their own.
    (Latent Shadows, arXiv 2602.00792, Algorithm 1.)
    """
    objective = recipe.objective
    if not isinstance(objective, DistillationSettings):
        raise ValueError(
            f"distill wants a recipe of distillation, {recipe.name!r} is {recipe.objective.kind}"
        )
    if ids.dim() != 2 or not len(ids):
        raise ValueError(
            f"ids holds rows of tokens [n, L], at least one: got shape {tuple(ids.shape)}"
        )
    engine = launch(str(ids.device) if ids.is_cuda else "cpu")

    def faster() -> bool:  # a foreign network computes in the precision of its weights
        own = bool(own_networks(model.module))
        return bool(engine.same(own and faster_in_bfloat16(engine.device)))

    recipe = decided(recipe, faster)
    parts = distillation(recipe, objective, model)
    check_rows(ids, parts.student.vocab_size, parts.student.mask_id)
    state = State.begin(parts.objective, parts.student, recipe.optim, engine)
    batches = partial(
        batch_at,
        ids,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        rank=engine.rank,
        world=engine.world,
    )
    updates = fit(
        parts.objective,
        state,
        batches,
        steps=recipe.steps,
        accumulation=engine.share(recipe.accumulation),
        seed=recipe.seed,
        engine=engine,
    )
    for update in updates:
        yield with_student(update, parts, state)


def with_student(update: Update, parts: Parts, state: State, keep: bool = True) -> Update:
    """The update, with the student as it stands if a round or the run ends here and this process is to `keep` it."""
    recipe = parts.recipe
    round_ends = (
        isinstance(recipe.objective, DistillationSettings)
        and update.step % recipe.objective.round_steps == 0
    )
    if not (round_ends or update.step == recipe.steps):
        return update
    student = student_of(parts, state, keep)
    return update if student is None else replace(update, student=parts.finished(student))


def _publish(run_dir: RunDir, parts: Parts, state: State, held_out: str) -> None:
    """Write the finished model, averaged weights and raw ones beside them; no command reads the states any more.

    held_out  digest of the held-out documents, by which a measurement sees that the text has changed
    """
    raw, mean = (student_of(parts, state, run_dir.engine.main, own) for own in (True, False))
    if raw is not None and mean is not None:
        model, beside = parts.finished(mean), parts.finished(raw).network
        card = {"recipe": to_json(parts.recipe), "steps": state.step, HELD_OUT: held_out}
        run_dir.publish(partial(model.save, raw=beside, **card))
        run_dir.drop_states()


def _digest(network: nn.Module, recipe: Recipe) -> str:
    """The digest of the weights that a run begins with, as they were in the model that it starts from."""
    return weights_digest(original_blocks(network.state_dict(), deeper_by(recipe)))


def student_of(
    parts: Parts, state: State, keep: bool = True, raw: bool = False
) -> DenoiserModule | PredictorModule | None:
    """A copy of the student on the CPU, with its EMA weights, or its raw ones if it has no EMA.

    Every process must call this if the weights are sharded.

    Args:
        parts: Its blank student is copied.
        state: Holds the weights.
        keep: Whether this process needs the copy; else the result is None.
        raw: Take the raw weights.
    """
    ema = state.learners[STUDENT].ema
    shadow = {} if raw or ema is None else ema.shadow
    weights = copies({**state.student.state_dict(), **shadow}, keep)
    return with_weights(parts.blank, weights) if keep else None
