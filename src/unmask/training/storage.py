"""A `State` as files: safetensors, a folder a trained network; or, sharded, the parts that each process writes.

The parts are those of `torch.distributed.checkpoint`, which gives them to any number of processes. Either form is read
by a sharded training and by one that is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.models.ema import check
from unmask.training.sharding import copies, fill
from unmask.training.state import State

PARTS = "parts"  # the folder of a state that was written sharded
Files = dict[str, dict[str, Tensor]]  # file -> name -> tensor


def write_state(state: State, folder: Path, sharded: bool) -> dict[str, Any]:
    """Write weights, moments and averages; returns the facts that go into the cursor as JSON.

    sharded  all processes write, each its parts, into the same folder
    """
    files = _tensors(state)
    if sharded:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        try:
            save(_flat(files), checkpoint_id=folder / PARTS)
        except CheckpointException as error:  # a BaseException
            raise OSError(f"some process could not write its parts: {error}") from error
    else:
        for name, tensors in files.items():
            file = folder / f"{name}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(copies(tensors), file)  # tied weights share memory, and the format refuses that
    return {
        "learners": {
            name: {"ema": learner.ema and {"decay": learner.ema.decay, "updates": learner.ema.updates}}
            for name, learner in state.learners.items()
        },
        "frozen": sorted(state.frozen),
    }


def read_state(state: State, folder: Path, facts: Mapping[str, Any]) -> None:
    """Put saved values into a state of the same networks; ValueError or KeyError where they differ."""
    if set(facts["learners"]) != set(state.learners) or set(facts["frozen"]) != set(state.frozen):
        raise ValueError(
            f"saved are {sorted(facts['learners'])} and frozen {sorted(facts['frozen'])}, "
            f"wanted {sorted(state.learners)} and frozen {sorted(state.frozen)}"
        )
    for name, learner in state.learners.items():
        average = facts["learners"][name]["ema"]
        if (average is None) != (learner.ema is None):
            raise ValueError(f"a moving average of {name!r} is {'wanted' if learner.ema else 'saved'}, not both")
        if learner.ema is not None:
            learner.ema.decay, learner.ema.updates = float(average["decay"]), int(average["updates"])
    files = _tensors(state)
    if (folder / PARTS).is_dir():
        _read_parts(_flat(files), folder / PARTS)
        return
    for name, tensors in files.items():
        saved = load_file(folder / f"{name}.safetensors")
        check(saved, tensors, f"{name}.safetensors")
        for key, tensor in tensors.items():
            fill(tensor, saved[key])


def _tensors(state: State) -> Files:
    """Every tensor of a state where it lies, by the file that it belongs to."""
    files: Files = {}
    for name, learner in state.learners.items():
        files[f"{name}/model"] = learner.network.state_dict()
        files[f"{name}/optimizer"] = {
            f"{parameter}/{key}": moment
            for parameter, value in learner.parameters()
            for key, moment in learner.optimizer.state[value].items()
        }
        if learner.ema is not None:
            files[f"{name}/ema"] = learner.ema.shadow
    return files | {f"frozen/{name}": network.state_dict() for name, network in state.frozen.items()}


def _flat(files: Files) -> dict[str, Any]:
    return {f"{file}/{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


def _read_parts(tensors: dict[str, Any], folder: Path) -> None:
    """Read what belongs to this process, in place."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    found = reader.read_metadata().state_dict_metadata
    sizes = {name: facts.size for name, facts in found.items() if isinstance(facts, TensorStorageMetadata)}
    check({name: torch.empty(size, device="meta") for name, size in sizes.items()}, tensors, "the saved state")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")  # one process reads what several wrote
            load(tensors, storage_reader=reader)
    except CheckpointException as error:
        raise OSError(f"some process could not read its parts: {error}") from error
