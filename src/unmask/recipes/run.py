"""Carry a recipe out: in a run directory (`run`), or in memory for a caller who holds model and rows (`distill`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.evaluation.judges import weights_digest
from unmask.files import write_text
from unmask.models.dit import DiT
from unmask.models.parameterization import CausalPredictor, NetworkDenoiser
from unmask.models.pretrained import Model, load
from unmask.models.weights import gather_blocks
from unmask.plain import to_json
from unmask.recipes.build import Parts, build, decided, deeper_by, distillation, starts_from
from unmask.recipes.estimate import check_memory
from unmask.recipes.schema import Distillation, Recipe, recipe_of
from unmask.recipes.texts import Texts, texts
from unmask.recipes.unused import not_used
from unmask.text.packing import Rows, Windows, batch_at, check_rows
from unmask.training import STUDENT, RunDir, RunError, State, Update, fit, launch, recorded, stop_signals
from unmask.training.engine import Engine, faster_in_bfloat16
from unmask.training.sharding import copies

START = "start.json"  # of a run directory: what tells the weights and the streamed text that the run began with


def run(
    recipe: Recipe,
    directory: str | Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    data: Texts | None = None,
    resume: bool = True,
    device: str | None = None,
    sharded: bool = False,
) -> Iterator[Update]:
    """Train what `recipe` says in `directory`, from its newest state where there is one; yields every update.

    The update that ends a round, or the run, carries `.student`: the model of the averaged weights. After the last
    step `directory/model` holds it, with the raw weights beside them. `say` gets one line about where the run starts.
    sharded  each of several processes holds a part of every weight (FSDP2) and not all of them; only the first one's
             updates carry a student
    """
    engine = launch(device, sharded)
    recipe = as_begun(recipe, Path(directory), engine)
    check_memory(recipe, engine.device, engine.world if engine.sharded else 1)
    data = texts(recipe, say) if data is None else data
    parts = build(recipe, data.tokenizer)
    batches = _batches(recipe, data.train, parts, engine)
    began = {"weights": _digest(parts.student.network, recipe)} if starts_from(recipe) else {}
    began |= {} if data.identity is None else {"text": data.identity}
    state = State.begin(parts.objective, parts.student, recipe.optim, engine)
    with (
        RunDir.open(directory, _as_saved(recipe, Path(directory)), resume=resume, engine=engine) as run_dir,
        stop_signals() as stop,
        closing(data),
    ):
        _check_start(Path(directory) / START, began, recipe, engine)
        say(str(run_dir.restore(state)))
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
            stop=stop,
        )
        for update in recorded(updates, run_dir, state, every=recipe.save_every):
            yield with_student(update, parts, state, engine.main or not engine.sharded)
        if state.step >= recipe.steps:
            raw, mean = (student_of(state, engine.main, own) for own in (True, False))
            if raw is not None and mean is not None:
                run_dir.publish(partial(_publish, parts, raw, mean, state.step))
        engine.wait()  # no process goes on before the model is there


def _batches(recipe: Recipe, rows: Rows | Windows, parts: Parts, engine: Engine) -> Callable[[int], Tensor]:
    """Step -> the rows of this process. Rows are checked now where they are there, else when they come."""
    student = parts.student
    take = partial(batch_at, rows, batch_size=recipe.batch_size, seed=recipe.seed, rank=engine.rank, world=engine.world)
    if not isinstance(rows, Windows):
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
    begun, start = recipe_of(directory), directory / START
    if begun != (replace(recipe, precision=begun.precision) if recipe.precision == "fastest" else recipe):
        return False
    if not (starts_from(recipe) and start.exists()):
        return True
    digest = weights_digest(load(starts_from(recipe)).network.state_dict())
    return bool(json.loads(start.read_text("utf-8"))["weights"] == digest)


def _as_saved(recipe: Recipe, directory: Path) -> Any:
    """The recipe as JSON; as `directory` holds it, where that reads as the same recipe (fields come with defaults)."""
    file = directory / "recipe.json"
    same = file.exists() and recipe_of(directory) == recipe
    return json.loads(file.read_text("utf-8")) if same else to_json(recipe)


def _check_start(file: Path, began: Mapping[str, str], recipe: Recipe, engine: Engine) -> None:
    """A run goes on from the weights and in the text that it began with, all processes in the same, or not at all: a
    name may stand for others by now.
    """
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for name, digest in began.items():
        number = int(digest[:15], 16)
        if engine.same(number) == number and known.get(name, digest) == digest:
            continue
        if name == "weights":
            raise RunError(
                f"the run in {file.parent} started from weights {known.get(name, 'of another process')[:12]}, and "
                f"{starts_from(recipe)} holds {digest[:12]}: it was trained again since; choose another run directory, "
                "or remove this one"
            )
        raise RunError(
            f"the run in {file.parent} began to read another {recipe.data.corpus}, or another process does: files have "
            "other names, sizes or times, or a branch of the hub has another commit; name the commit "
            "(hub:OWNER/NAME@COMMIT), give the files their times again (cp -p), or choose another run directory"
        )
    if engine.main and known != began:
        write_text(file, json.dumps(began) + "\n")


def as_begun(recipe: Recipe, directory: Path, engine: Engine) -> Recipe:
    """The recipe with a precision: that of the run which `directory` holds, else the faster one of this machine."""
    if recipe.precision != "fastest":
        return recipe
    begun = (directory / "recipe.json").exists()
    faster = recipe_of(directory).precision == "bfloat16" if begun else faster_in_bfloat16(engine.device)
    return decided(recipe, lambda: bool(engine.same(faster)))  # all processes ask, and take the first one's answer


def distill(model: Model, ids: Tensor, recipe: Recipe) -> Iterator[Update]:
    """Distil a diffusion `model` on rows `ids` [n, L] by a recipe of distillation (MCD, DCD, SDTT); nothing is saved.

    Yields an `Update` a step; the one that ends a round, or the run, carries `.student`, a Model of the averaged
    weights. The recipe's data, teacher, network and schedule are not read: `ids` and `model` have their own.
    (Latent Shadows, arXiv 2602.00792, Algorithm 1.)
    """
    objective = recipe.objective
    if not isinstance(objective, Distillation):
        raise ValueError(f"distill wants a recipe of distillation, {recipe.name!r} is {recipe.objective.kind}")
    if ids.dim() != 2 or not len(ids):
        raise ValueError(f"ids holds rows of tokens [n, L], at least one: got shape {tuple(ids.shape)}")
    engine = launch(str(ids.device) if ids.is_cuda else "cpu")
    recipe = decided(recipe, lambda: bool(engine.same(faster_in_bfloat16(engine.device))))
    parts = distillation(recipe, objective, model)
    check_rows(ids, parts.student.vocab_size, parts.student.mask_id)
    state = State.begin(parts.objective, parts.student, recipe.optim, engine)
    batches = partial(
        batch_at, ids, batch_size=recipe.batch_size, seed=recipe.seed, rank=engine.rank, world=engine.world
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
    round_ends = isinstance(recipe.objective, Distillation) and update.step % recipe.objective.round_steps == 0
    if not (round_ends or update.step == recipe.steps):
        return update
    student = student_of(state, keep)
    return update if student is None else replace(update, student=parts.finished(student))


def _publish(
    parts: Parts,
    raw: NetworkDenoiser | CausalPredictor,
    mean: NetworkDenoiser | CausalPredictor,
    steps: int,
    folder: Path,
) -> None:
    """Write the finished model: averaged weights as the model, raw weights beside them."""
    parts.finished(mean).save(folder, raw=parts.finished(raw).network, recipe=to_json(parts.recipe), steps=steps)


def _digest(network: DiT, recipe: Recipe) -> str:
    """The digest of the weights that a run begins with, as they were in the model that it starts from."""
    return weights_digest(gather_blocks(network.state_dict(), deeper_by(recipe)))


def student_of(state: State, keep: bool = True, raw: bool = False) -> NetworkDenoiser | CausalPredictor | None:
    """A copy of the student on the CPU, with the moving average for weights (raw: its own, as where none is kept).

    Of sharded weights all processes make it together; who is not to `keep` it has nothing.
    """
    student, ema = state.student, state.learners[STUDENT].ema
    if not isinstance(student, NetworkDenoiser | CausalPredictor):
        raise TypeError(f"a student is a denoiser or a next-token predictor, not {type(student).__name__}")
    weights = copies({**student.state_dict(), **({} if raw or ema is None else ema.shadow)}, keep)
    if not keep:
        return None
    with torch.device("meta"):
        network = DiT(student.network.shape, student.network.compute_dtype)
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()}, assign=True)
    if isinstance(student, CausalPredictor):
        return CausalPredictor(network, student.mask_id)
    return NetworkDenoiser(network, student.mask_id, student.sees_alpha)
