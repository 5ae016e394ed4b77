"""The beginning of a run, kept in its directory: the run continues only with the same text, tokenizer and weights.

    NAME/ start.json  tokenizer/

`start.json` holds digests of the text, the tokenizer and the first weights, and what rounding depends on (`machine`).
A resume encodes with the tokenizer of the run directory: one that is trained on the text is trained once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unmask.atomic_files import replacing, write_text
from unmask.data.corpora import Corpus, is_corpus_path
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import read_json, to_json
from unmask.recipes.build import starts_from
from unmask.recipes.data import TrainingData, documents
from unmask.recipes.schema import DataSettings, DistillationSettings, Recipe, recipe_of
from unmask.training import RunError
from unmask.training.distributed import Engine
from unmask.training.run_directory import differences

START, TOKENIZER = "start.json", "tokenizer"
MACHINE = "machine"  # in start.json: what rounding depends on
TEXT_OF_0_1 = "text"  # how version 0.1 called the digest of a streamed text


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of the files and folders that it names and that are there."""
    data, objective = recipe.data, recipe.objective
    corpus = _absolute(data.corpus) if is_corpus_path(data.corpus) else data.corpus
    data = replace(data, corpus=corpus, tokenizer=_absolute(data.tokenizer))
    if isinstance(objective, DistillationSettings):
        return replace(
            recipe, data=data, objective=replace(objective, teacher=_absolute(objective.teacher))
        )
    return replace(recipe, data=data, objective=replace(objective, init=_absolute(objective.init)))


def _absolute(name: str) -> str:
    return (
        os.path.abspath(Path(name).expanduser())
        if name and Path(name).expanduser().exists()
        else name
    )


def as_saved(recipe: Recipe, directory: Path) -> Any:
    """The recipe as JSON; as `directory` holds it, where that reads as the same recipe (fields come with defaults)."""
    file = directory / "recipe.json"
    same = file.exists() and resolved(recipe_of(directory)) == recipe
    return read_json(file) if same else to_json(recipe)


def refuse_more_steps(recipe: Recipe, directory: Path) -> None:
    """RunError where the finished run of a directory is to take more steps: its model can begin another run."""
    if not all((directory / name).exists() for name in ("model", "recipe.json")):
        return
    begun = resolved(recipe_of(directory))
    if recipe.steps <= begun.steps:
        return
    distils = isinstance(recipe.objective, DistillationSettings)
    verb, flag = ("distill", "--objective.teacher") if distils else ("train", "--objective.init")
    raise RunError(
        f"steps of a finished run are fixed: got {recipe.steps}, and {directory} ended after {begun.steps}; its model "
        f"can begin another run: unmask {verb} {recipe.name} {flag} {shlex.quote(str(directory))} --out ANOTHER. "
        "Fields that differ (there -> now):\n  "
        + "\n  ".join(differences(to_json(begun), to_json(recipe)))
    )


def with_own_tokenizer(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe with the tokenizer that its run directory holds, where there is one."""
    own = directory / TOKENIZER
    return (
        replace(recipe, data=replace(recipe.data, tokenizer=str(own))) if own.exists() else recipe
    )


def text_digest(data: DataSettings) -> str:
    """`Texts.text_digest` of the text that a recipe names, without its rows."""
    train = documents(data).train
    return (
        train.digest
        if isinstance(train, Corpus) and train.identity is None
        else str(train.identity)
    )


def digests(data: TrainingData, weights: str | None) -> dict[str, str]:
    """The digests of text, tokenizer and first weights (None: they are random), which stay the same in a run."""
    own = {"text_digest": data.text_digest, "tokenizer_digest": data.tokenizer_digest}
    return own if weights is None else {"weights": weights, **own}


def read_start(directory: Path) -> dict[str, Any]:
    """The contents of start.json, {} where there is none. RunError where it is damaged."""
    file = directory / START
    if not file.exists():
        return {}
    advice = "put it back, or remove it, and what it held is not checked"
    try:
        known = read_json(file)
    except ValueError as error:
        raise RunError(f"{error}; {advice}") from error
    if not isinstance(known, dict):
        raise RunError(f"{file} holds no JSON object: got {known!r}; {advice}")
    if wrong := [
        name
        for name, value in known.items()
        if not isinstance(value, dict if name == MACHINE else str)
    ]:
        raise RunError(
            f"{file} holds no digest or no machine: got {wrong[0]} = {known[wrong[0]]!r}; {advice}"
        )
    if TEXT_OF_0_1 in known:
        known.setdefault("text_digest", known.pop(TEXT_OF_0_1))
    return known


def checked_start(
    directory: Path, found: Mapping[str, str], recipe: Recipe, engine: Engine
) -> dict[str, Any]:
    """The contents of start.json; RunError where it, or another process, has other digests than `found`."""
    known = read_start(directory)
    for name, digest in found.items():
        number = int(hashlib.sha256(digest.encode()).hexdigest()[:15], 16)
        if engine.same(number) != number:
            raise RunError(
                f"{name} of process {engine.rank} is {digest[:12]}, and that of process 0 is another: give all "
                f"processes of a training the same files ({recipe.data.corpus})"
            )
    for name, digest in found.items():
        if known.get(name, digest) != digest:
            raise RunError(_not_as_begun(name, known[name][:12], digest[:12], directory, recipe))
    return known


def _not_as_begun(name: str, want: str, got: str, directory: Path, recipe: Recipe) -> str:
    match name:
        case "weights":
            return (
                f"the run in {directory} started from weights {want}, and {starts_from(recipe)} holds {got}: it "
                "was trained again since; choose another run directory, or remove this one"
            )
        case "text_digest":
            return (
                f"data.corpus has another text than {directory} began with: got text {got} in {recipe.data.corpus}, "
                f"want {want}; it was edited, its files have other names, sizes or times, or a branch of the hub has "
                "another commit: put the text back (cp -p keeps times), name the commit (hub:OWNER/NAME@COMMIT), or "
                "choose another run directory"
            )
    return (
        f"data.tokenizer is another one than {directory} began with, and ids would change their meaning: got tokenizer "
        f"{got}, want {want}; put {directory / TOKENIZER} back, or choose another run directory"
    )


def changes(
    known: Mapping[str, Any], found: Mapping[str, str], machine: Mapping[str, str | int], step: int
) -> list[str]:
    """A line for each fact that cannot be checked, or that changes rounding, in a run that continues at `step`."""
    if not step:
        return []
    lines = []
    if missing := [name for name in (*found, MACHINE) if name not in known]:
        lines.append(
            f"this run has no {', '.join(missing)} in its {START} (version 0.1 wrote none): whether these are as they "
            "were cannot be checked now; from now on it is"
        )
    if changed := differences(known.get(MACHINE, machine), machine):
        lines.append(
            f"what rounding depends on has changed since the run began ({'; '.join(changed)}): its weights will not "
            "be, to the bit, those of a run without a stop"
        )
    return lines


def keep_start(
    directory: Path,
    known: Mapping[str, Any],
    found: Mapping[str, str],
    machine: Mapping[str, str | int],
    tokenizer: Tokenizer,
    step: int,
) -> None:
    """Write down the beginning of a run, where `directory` does not hold it yet."""
    first = known.get(MACHINE, machine) if step else machine
    start = {**found, MACHINE: first}
    try:
        if known != start:
            write_text(directory / START, json.dumps(start, indent=1) + "\n")
        if not (directory / TOKENIZER).exists():
            with replacing(directory / TOKENIZER) as folder:
                tokenizer.save(folder)
    except OSError as error:
        raise RunError(
            f"{directory} could not keep what its run began with: {error}; no step was taken"
        ) from error
