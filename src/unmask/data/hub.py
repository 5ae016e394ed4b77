"""Names of models and data sets: paths, models of this package, repositories of the hub.

The hub is huggingface.co. Errors of its client become a ValueError that states the cause.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from unmask.data.corpus_files import abbreviated
from unmask.dataclass_json import read_json

PACKAGE_PREFIX = "unmask:"  # begins the name of a model that comes with this package
HUB_PREFIX = "hub:"  # begins the name of a data set
_NAME = r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?"
TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")


def non_empty(name: str, argument: str) -> str:
    """Return the name; ValueError if it is empty, because "" as a path is the working directory."""
    if not name.strip():
        raise ValueError(
            f"{argument} is empty: got {name!r}, want a name or path (. is the working directory)"
        )
    return name


def shipped() -> Path:
    """The directory with the models that come with this package."""
    return Path(str(resources.files("unmask"))) / "assets"


def local_or_hub(
    path_or_hub_id: str | Path, files: Sequence[str], revision: str | None = None
) -> Path:
    """Find the directory of a model or tokenizer; download it if the path does not exist.

    Args:
        path_or_hub_id: a path; a run directory, which holds a model; unmask:NAME, a model of this
            package; HUB_ID or HUB_ID@REVISION.
        files: patterns of the files to download.
        revision: a version on the hub. A local model has no revision.

    Raises:
        ValueError: there is no such path, repository or revision; the repository is gated; there
            is no network.
    """
    name, path = str(path_or_hub_id), Path(path_or_hub_id).expanduser()
    in_package = non_empty(name, "model or tokenizer").startswith(PACKAGE_PREFIX)
    if revision is not None and (in_package or path.exists()):
        raise ValueError(f"revision {revision!r} has no effect: {name} is a local model; omit it")
    if in_package:
        return _package_model(name.removeprefix(PACKAGE_PREFIX))
    if path.exists():
        return _model_directory(path)
    match = re.fullmatch(rf"({_NAME})(?:@([^@\s]+))?", name)
    if match is None or name.startswith("runs/") or match[1].endswith((".ckpt", ".safetensors")):
        raise ValueError(
            f"there is no file or directory {name}, and this is not the name of a repository "
            "either: give a path or OWNER/NAME"
        )
    repository, suffix = match.groups()
    if suffix and revision not in (None, suffix):
        raise ValueError(f"revision {revision!r} contradicts the one in {name}: give only one")
    revision = revision or suffix
    from huggingface_hub import snapshot_download

    own = f" (this package has {PACKAGE_PREFIX}{name})" if name in package_models() else ""
    with _plain_errors(f"there is no file or directory {name}{own}; and on the hub", revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))


def resolve_dataset(name: str) -> tuple[str, str | None, str]:
    """Find repository, configuration and commit of hub:OWNER/NAME[:CONFIGURATION][@REVISION].

    If the revision is not a commit, its commit is looked up on the hub. ValueError if that fails.
    """
    match = re.fullmatch(rf"{HUB_PREFIX}({_NAME})(?::([^:@\s]+))?(?:@([^@\s]+))?", name)
    if match is None:
        raise ValueError(
            f"data set {name!r} is not a valid name: want "
            f"{HUB_PREFIX}OWNER/NAME[:CONFIGURATION][@REVISION]"
        )
    repository, configuration, revision = match.groups()
    check_not_shadowed(repository)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return repository, configuration, revision
    from huggingface_hub import HfApi

    with _plain_errors(f"the data set {repository} on the hub", revision):
        commit = HfApi().dataset_info(repository, revision=revision).sha
    return repository, configuration, str(commit)


def check_not_shadowed(repository: str) -> None:
    """ValueError if a local path has the repository's name, because `datasets` would read it."""
    if Path(repository).exists():
        raise ValueError(
            f"data set {repository} of the hub has the name of a path in the working directory, "
            f"which `datasets` would read. Give ./{repository} for that path, or change to another "
            "directory"
        )


def check_no_file_left_out(repository: str, commit: str, read: Sequence[str]) -> None:
    """ValueError if `datasets` omits files because it takes a word in a file name for a split.

    Nothing is checked if the card of the data set assigns files to splits.

    Args:
        repository: the data set's repository.
        commit: the version that is read.
        read: addresses of the files that `datasets` reads. If it is empty, nothing is checked.
    """
    if not read:
        return
    from huggingface_hub import HfApi

    with _plain_errors(f"the data set {repository} on the hub", commit):
        info = HfApi().dataset_info(repository, revision=commit)
    if info.card_data is not None and info.card_data.get("configs"):
        return
    suffixes = {Path(file).suffix for file in read}
    left_out = [
        entry.rfilename
        for entry in info.siblings or ()
        if Path(entry.rfilename).suffix in suffixes
        and not any(f"/{file}".endswith(f"/{entry.rfilename}") for file in read)
    ]
    if left_out:
        raise ValueError(
            f"data set {repository} would be read in part: `datasets` leaves out {len(left_out)} "
            f"files ({abbreviated(left_out)}), because it takes words in the other names for "
            "splits. Download the data set and give its folder"
        )


def package_models() -> list[str]:
    """The names NAME of the models unmask:NAME of this package."""
    return sorted(path.parent.name for path in shipped().glob("*/config.json"))


def _package_model(name: str) -> Path:
    names = package_models()
    if name not in names:
        models = ", ".join(PACKAGE_PREFIX + model for model in names)
        raise ValueError(f"this package has no model {PACKAGE_PREFIX}{name}: want one of {models}")
    return shipped() / name


def _model_directory(path: Path) -> Path:
    """The path itself, or if it is a run directory, the model inside it."""
    if (path / "config.json").exists():
        return path
    if (path / "model" / "config.json").exists():
        return path / "model"
    if not (path / "recipe.json").exists():
        return path
    recipe = read_json(path / "recipe.json")
    saved = max((int(step.name[-8:]) for step in path.glob("state/step-" + "[0-9]" * 8)), default=0)
    match recipe:
        case {"steps": int(steps), "objective": dict(objective)}:
            verb = "distill" if "teacher" in objective else "train"
            raise ValueError(
                f"{path} holds no model yet, because its training has not ended: step {saved} of "
                f"{steps} is saved; `unmask {verb} {shlex.quote(str(path))}` continues it"
            )
    raise ValueError(
        f"{path} holds no model, and its recipe.json is not that of a training: give a run or "
        "model directory"
    )


@contextmanager
def _plain_errors(subject: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of the hub's client and its transports into a ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{subject}: {_cause(error, revision)}") from error


def _cause(error: Exception, revision: str | None) -> str:
    from huggingface_hub import errors

    match error:
        case OSError(errno=int(), filename=str() | bytes()):
            return f"a download cannot be written ({error}): set HF_HOME to a writable directory"
        case errors.GatedRepoError():
            return "it is gated: accept its conditions on its page, then run `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "no repository has this name (or it is private: run `hf auth login`)"
        case errors.RevisionNotFoundError():
            return f"it has no revision {revision!r}: give another, or omit it"
        case errors.LocalEntryNotFoundError():
            return (
                "the hub cannot be reached, and the cache has no earlier download of this name: "
                "connect to a network, or give a path"
            )
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: name a commit, OWNER/NAME@COMMIT, or unset it"
    return f"the download failed: {error}"
