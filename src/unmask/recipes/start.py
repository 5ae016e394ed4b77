"""The start of a run: it resumes only with the same training text, tokenizer and initial weights.

    NAME/ start.json  tokenizer/

`start.json` holds digests of the training text, the tokenizer and the initial weights, and the
facts that rounding depends on (`machine`). A resume encodes with the tokenizer of the run
directory. So a tokenizer that is trained on the text is trained once.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unmask.data.corpora import Corpus, is_corpus_path
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import to_json
from unmask.models.model import LanguageModel, load
from unmask.recipes.build import decided
from unmask.recipes.data import TrainingData, documents
from unmask.recipes.schema import DataSettings, Recipe, recipe_from_json, recipe_of
from unmask.recipes.traits import ObjectiveSettings
from unmask.training import Engine, RunDir, RunError, State
from unmask.training.distributed import faster_in_bfloat16
from unmask.training.run_files import MACHINE, START, differences, read_start

TOKENIZER = "tokenizer"


def as_started(recipe: Recipe, directory: Path, engine: Engine) -> Recipe:
    """The recipe of a run with absolute paths and a decided precision.

    Precision "fastest" becomes that of an existing run in the directory, else the faster one.
    RunError if a finished run would take more steps.
    """
    recipe = with_absolute_paths(recipe)
    _refuse_more_steps(recipe, directory)
    if recipe.precision != "fastest":
        return recipe
    if (directory / "recipe.json").exists():
        faster = recipe_of(directory, recipe.objective).precision == "bfloat16"
    else:
        faster = faster_in_bfloat16(engine.device)
    # Every process measures, and all use the result of the first one.
    return decided(recipe, lambda: bool(engine.broadcast_int(faster)))


def resume_or_start(
    run_dir: RunDir,
    state: State,
    now: Mapping[str, str],
    recipe: Recipe,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> bool:
    """Restore the newest state of a run, and report the changes since its start.

    Args:
        run_dir: the open run directory.
        state: receives the saved values.
        now: the `digests` of this start.
        recipe: the run.
        tokenizer: its tokenizer, kept in the run directory.
        say: receives the lines of the report.

    Returns:
        False if all steps are done.

    Raises:
        RunError: text, tokenizer or initial weights have changed, or no good state is left.
    """
    engine = run_dir.engine
    _check_digests(run_dir.path, now, recipe, engine)
    if engine.broadcast_int(int(run_dir.model.exists())):
        say(f"all {recipe.steps} steps are done; {run_dir.model} holds the model and is unchanged")
        run_dir.drop_states()
        return False
    restored = run_dir.restore(state, every=recipe.save_every)
    say(f"{restored}, matrix products in {recipe.precision}")
    saved, machine = read_start(run_dir.path), engine.machine()
    for line in _changes(saved, now, machine, restored.step):
        say(line)
    if engine.main:
        if restored.step:
            machine = saved.get(MACHINE, machine)
        run_dir.write_start({**now, MACHINE: machine})
        if not (run_dir.path / TOKENIZER).exists():
            run_dir.publish(TOKENIZER, tokenizer.save)
    return True


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with the absolute paths of the existing files and folders that it names."""
    data, field = recipe.data, recipe.traits.start_field
    corpus = _absolute(data.corpus) if is_corpus_path(data.corpus) else data.corpus
    data = replace(data, corpus=corpus, tokenizer=_absolute(data.tokenizer))
    start: dict[str, Any] = {field: _absolute(recipe.traits.start)} if recipe.traits.start else {}
    return replace(recipe, data=data, objective=replace(recipe.objective, **start))


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return os.path.abspath(path) if name and path.exists() else name


def as_written_now(saved: Any, objective: ObjectiveSettings) -> Any:
    """The content of a recipe.json with all fields of this version and absolute paths."""
    return to_json(with_absolute_paths(recipe_from_json(saved, objective=objective)))


def _refuse_more_steps(recipe: Recipe, directory: Path) -> None:
    """RunError if the run of a directory is finished and `recipe` has more steps."""
    if not _has_model(directory):
        return
    old = with_absolute_paths(recipe_of(directory, recipe.objective))
    if recipe.steps <= old.steps:
        return
    verb, flag = recipe.traits.verb, f"--objective.{recipe.traits.start_field}"
    raise RunError(
        f"steps of a finished run are fixed: got {recipe.steps}, and {directory} ended after "
        f"{old.steps}. Start another run from its model: unmask {verb} {recipe.name} {flag} "
        f"{shlex.quote(str(directory))} --out ANOTHER. Fields that differ (there -> now):\n  "
        + "\n  ".join(differences(to_json(old), to_json(recipe)))
    )


def _has_model(directory: Path) -> bool:
    return all((directory / name).exists() for name in ("model", "recipe.json"))


def finished(recipe: Recipe, directory: Path) -> bool:
    """True if the run is complete and matches `recipe`, so its model can be read without a lock."""
    if not _has_model(directory):
        return False
    recipe = with_absolute_paths(recipe)
    old = with_absolute_paths(recipe_of(directory, recipe.objective))
    if recipe.precision == "fastest":
        recipe = replace(recipe, precision=old.precision)
    if old != recipe:
        return False
    saved = read_start(directory)
    if "text_digest" in saved and saved["text_digest"] != text_digest(recipe.data):
        return False
    start = recipe.traits.start
    return not start or "weights" not in saved or bool(saved["weights"] == load(start).digest)


def with_own_tokenizer(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe with the tokenizer of its run directory, if the directory holds one."""
    own = directory / TOKENIZER
    if not own.exists():
        return recipe
    return replace(recipe, data=replace(recipe.data, tokenizer=str(own)))


def text_digest(data: DataSettings) -> str:
    """The `TrainingData.text_digest` of the text that `data` names, without making rows."""
    train = documents(data).train
    if isinstance(train, Corpus) and train.identity is None:
        return train.digest
    return str(train.identity)


def digests(data: TrainingData, start: LanguageModel | None) -> dict[str, str]:
    """Digests of text, tokenizer and initial weights (unless random), constant during a run."""
    own = {"text_digest": data.text_digest, "tokenizer_digest": data.tokenizer.behaviour}
    return own if start is None else {"weights": start.digest, **own}


def _check_digests(directory: Path, now: Mapping[str, str], recipe: Recipe, engine: Engine) -> None:
    """RunError if start.json, or another process, has other digests than `now`."""
    saved = read_start(directory)
    for name, digest in now.items():
        number = int(hashlib.sha256(digest.encode()).hexdigest()[:15], 16)
        if engine.broadcast_int(number) != number:
            raise RunError(
                f"{name} differs between processes: process {engine.rank} has {digest[:12]}, "
                "process 0 has another; give all processes of a training the same files "
                f"({recipe.data.corpus})"
            )
    for name, digest in now.items():
        if saved.get(name, digest) != digest:
            raise RunError(_changed(name, saved[name][:12], digest[:12], directory, recipe))


def _changed(name: str, want: str, got: str, directory: Path, recipe: Recipe) -> str:
    field = f"objective.{recipe.traits.start_field}"
    messages = {
        "weights": f"{field} has other weights than {directory} started from: got {got} in "
        f"{recipe.traits.start}, want {want}; that model was trained again since. Choose another "
        "run directory, or remove this one",
        "text_digest": f"data.corpus has another text than {directory} started with: got text "
        f"{got} in {recipe.data.corpus}, want {want}. The text was edited, its files have other "
        "names, sizes or times, or a branch of the hub has another commit. Restore the text "
        "(cp -p keeps times), name the commit (hub:OWNER/NAME@COMMIT), or choose another run "
        "directory",
        "tokenizer_digest": f"data.tokenizer is not the tokenizer that {directory} started with, "
        f"so ids would change their meaning: got tokenizer {got}, want {want}. Restore "
        f"{directory / TOKENIZER}, or choose another run directory",
    }
    return messages[name]


def _changes(
    saved: Mapping[str, Any], now: Mapping[str, str], machine: Mapping[str, str | int], step: int
) -> list[str]:
    """At a resume, a line for the facts that cannot be checked, or that change the rounding."""
    if not step:
        return []
    lines = []
    if missing := [name for name in (*now, MACHINE) if name not in saved]:
        lines.append(
            f"{START} of this run lacks {', '.join(missing)} (version 0.1 wrote none). A change "
            "since the start cannot be detected; later changes can be"
        )
    if changed := differences(saved.get(MACHINE, machine), machine):
        lines.append(
            f"the machine has changed since the run started ({'; '.join(changed)}). Rounding may "
            "differ, so the weights will not equal those of an uninterrupted run bit for bit"
        )
    return lines
