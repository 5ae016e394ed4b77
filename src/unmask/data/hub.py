"""A directory by its path or, where there is none, by its name on the Hugging Face hub."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from unmask.data.corpus_files import abbreviated
from unmask.dataclass_json import read_json

PACKAGE_PREFIX = "unmask:"  # before the name of a model that comes with this package
HUB_PREFIX = "hub:"  # before the name of a data set
_NAME = r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?"
TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")


def non_empty(name: str, argument: str) -> str:
    """A name as it is; ValueError where it is empty, which as a path would be the working directory."""
    if not name.strip():
        raise ValueError(
            f"{argument} is empty: got {name!r}, want a name or a path; give . for the working directory"
        )
    return name


def shipped() -> Path:
    """The directory of the models that come with this package."""
    return Path(str(resources.files("unmask"))) / "assets"


def _shipped(name: str) -> Path:
    found = sorted(path.parent.name for path in shipped().glob("*/config.json"))
    if name not in found:
        raise ValueError(
            f"the models of this package are {', '.join(PACKAGE_PREFIX + each for each in found)}: got {PACKAGE_PREFIX}{name}"
        )
    return shipped() / name


def local_or_hub(
    path_or_hub_id: str | Path, files: Sequence[str], revision: str | None = None
) -> Path:
    """An existing path; anything else is fetched from the hub, those of its files that match `files`.

    A run directory stands for the model that it holds, unmask:NAME for a model of this package, HUB_ID@REVISION for a
    hub id at that revision. ValueError in plain words: no such path or repository, gated, no such revision, no network.
    """
    asked = non_empty(str(path_or_hub_id), "model or tokenizer")
    path = Path(path_or_hub_id).expanduser()
    own = asked.startswith(PACKAGE_PREFIX)
    if revision is not None and (own or path.exists()):
        raise ValueError(
            f"revision names a version on the hub, and {asked} is a local model: got {revision!r}; omit it"
        )
    if own:
        return _shipped(asked.removeprefix(PACKAGE_PREFIX))
    if path.exists():
        inside = path / "model"
        if (path / "config.json").exists():
            return path
        if (inside / "config.json").exists():
            return inside
        if (path / "recipe.json").exists():
            raise ValueError(_unfinished(path))
        return path
    told = re.fullmatch(rf"({_NAME})(?:@([^@\s]+))?", asked)
    if told is None or asked.startswith("runs/") or told[1].endswith((".ckpt", ".safetensors")):
        raise ValueError(
            f"there is no file or directory {asked}, and it is no name of a repository on the hub"
        )
    name, behind = told[1], told[2]
    if behind and revision not in (None, behind):
        raise ValueError(
            f"{asked} names a revision, and {revision!r} is given besides: leave one of them out"
        )
    revision = revision or behind
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub's client passes on whatever its transports raise
        raise ValueError(
            f"there is no file or directory {asked}; and as a repository on the Hugging Face hub: "
            f"{_why(error, revision)}"
        ) from error


def _unfinished(run: Path) -> str:
    """The step of the training in a run directory that holds no model yet."""
    told = read_json(run / "recipe.json")
    done = max((int(name.name[-8:]) for name in run.glob("state/step-" + "[0-9]" * 8)), default=0)
    match told:
        case {"steps": int(steps), "objective": dict(objective)}:
            verb = "distill" if "teacher" in objective else "train"
            return (
                f"{run} is a training that has not ended, and holds no model yet: step {done} of {steps} is saved; "
                f"`unmask {verb} {shlex.quote(str(run))}` goes on"
            )
    return f"{run} holds no model, and its recipe.json is not that of a training"


def resolve_dataset(name: str) -> tuple[str, str | None, str]:
    """Repository, configuration and commit of the data set hub:OWNER/NAME[:CONFIGURATION][@REVISION].

    The hub is asked which commit a revision is, unless it is one. ValueError in plain words.
    """
    told = re.fullmatch(rf"{HUB_PREFIX}({_NAME})(?::([^:@\s]+))?(?:@([^@\s]+))?", name)
    if told is None:
        raise ValueError(
            f"a data set of the hub is {HUB_PREFIX}OWNER/NAME[:CONFIGURATION][@REVISION]: got {name!r}"
        )
    path, configuration, revision = told.groups()
    check_not_shadowed(path)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return path, configuration, revision
    from huggingface_hub import HfApi

    try:
        return path, configuration, str(HfApi().dataset_info(path, revision=revision).sha)
    except Exception as error:  # as above
        raise ValueError(
            f"the data set {path} on the Hugging Face hub: {_why(error, revision)}"
        ) from error


def check_not_shadowed(repository: str) -> None:
    """ValueError where a path has the name of a repository: `datasets` would read that path, and not the hub."""
    if Path(repository).exists():
        raise ValueError(
            f"the data set {repository} of the hub has the name of a path in the working directory, which `datasets` "
            f"would read in its place: give ./{repository} for the path, or start in another directory"
        )


def check_no_file_left_out(repository: str, commit: str, read: Sequence[str]) -> None:
    """ValueError where files of a data set are left out because `datasets` takes a word in a name for a split.

    read  the addresses of the files that are read; empty: they are not known, and nothing is checked. Nothing is
          checked either where the card of the data set assigns files to splits.
    """
    if not read:
        return
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(repository, revision=commit)
    except Exception as error:  # as above
        raise ValueError(
            f"the data set {repository} on the Hugging Face hub: {_why(error, commit)}"
        ) from error
    if info.card_data is not None and info.card_data.get("configs"):
        return
    suffixes = {Path(file).suffix for file in read}
    names = [
        entry.rfilename for entry in info.siblings or () if Path(entry.rfilename).suffix in suffixes
    ]
    left = [
        name
        for name in names
        if not any(file == name or file.endswith(f"/{name}") for file in read)
    ]
    if left:
        raise ValueError(
            f"the data set {repository} has {len(left)} files that `datasets` leaves out, since it takes words in the "
            f"names of others for splits: {abbreviated(left)}; download it, and give the folder of its files"
        )


def _why(error: Exception, revision: str | None) -> str:
    """In plain words, why the hub did not answer."""
    from huggingface_hub import errors

    why: tuple[tuple[type[Exception], str], ...] = (
        (
            errors.GatedRepoError,
            "it is gated: accept its conditions on its page, then log in with `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError,
            "there is none of this name (or it is private: log in with `hf auth login`)",
        ),
        (errors.RevisionNotFoundError, f"it has no revision {revision!r}"),
        (
            errors.LocalEntryNotFoundError,
            "the hub cannot be reached, and it is not in the cache of earlier downloads",
        ),
        (
            errors.OfflineModeIsEnabled,
            "HF_HUB_OFFLINE is set: name a commit, OWNER/NAME@COMMIT, or unset it",
        ),
    )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"what is downloaded cannot be written ({error}): set HF_HOME to a directory that can be written"
    return next(
        (words for kind, words in why if isinstance(error, kind)), f"the download failed: {error}"
    )
