"""A `State` as files: safetensors, a folder a trained network; or, sharded, the parts that each process writes.

Either form is read by a sharded training and by one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.models.modules import check_same_shapes
from unmask.training.distributed import Engine
from unmask.training.parts import read_parts, write_parts
from unmask.training.sharding import copies, fill
from unmask.training.state import State

PARTS = "parts"  # the folder of a state that was written sharded
Files = dict[str, dict[str, Tensor]]  # file -> name -> tensor


def write_state(state: State, folder: Path, engine: Engine) -> dict[str, Any]:
    """Write weights, moments and averages; returns the facts that go into the cursor as JSON.

    Of a sharded training all processes write, each its parts, into the same folder.
    """
    files = _tensors(state)
    if engine.sharded:
        write_parts(_flat(files), folder / PARTS, engine)
    else:
        for name, tensors in files.items():
            file = folder / f"{name}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                copies(tensors), file
            )  # tied weights share memory, and the format refuses that
    return {
        "learners": {
            name: {
                "ema": learner.ema and {"decay": learner.ema.decay, "updates": learner.ema.updates}
            }
            for name, learner in state.learners.items()
        },
        "frozen": sorted(state.frozen),
    }


def read_state(state: State, folder: Path, facts: Mapping[str, Any], engine: Engine) -> None:
    """Put saved values into a state of the same networks; ValueError, KeyError or TypeError where they differ."""
    if set(facts["learners"]) != set(state.learners) or set(facts["frozen"]) != set(state.frozen):
        raise ValueError(
            f"saved are {sorted(facts['learners'])} and frozen {sorted(facts['frozen'])}, "
            f"wanted {sorted(state.learners)} and frozen {sorted(state.frozen)}"
        )
    for name, learner in state.learners.items():
        average = facts["learners"][name]["ema"]
        if (average is None) != (learner.ema is None):
            raise ValueError(
                f"a moving average of {name!r} is {'wanted' if learner.ema else 'saved'}, not both"
            )
        if learner.ema is not None:
            learner.ema.decay, learner.ema.updates = (
                float(average["decay"]),
                int(average["updates"]),
            )
    files = _tensors(state)
    if (folder / PARTS).is_dir():
        read_parts(_flat(files), folder / PARTS, engine)
        return
    for name, tensors in files.items():
        saved = load_file(folder / f"{name}.safetensors")
        check_same_shapes(saved, tensors, f"{name}.safetensors")
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
    return files | {
        f"frozen/{name}": network.state_dict() for name, network in state.frozen.items()
    }


def _flat(files: Files) -> dict[str, Tensor]:
    return {
        f"{file}/{name}": tensor
        for file, tensors in files.items()
        for name, tensor in tensors.items()
    }
