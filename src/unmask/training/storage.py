"""A `State` as files: one folder a trained network, safetensors only, and the few plain numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.training.state import Learner, State


def write_state(state: State, folder: Path) -> dict[str, Any]:
    """Write weights, moments and averages; returns the facts that go into the cursor as JSON."""
    for name, learner in state.learners.items():
        _write(folder / name / "model.safetensors", learner.network.state_dict())
        _write(folder / name / "optimizer.safetensors", _moments(learner))
        if learner.ema is not None:
            _write(folder / name / "ema.safetensors", learner.ema.shadow)
    for name, network in state.frozen.items():
        _write(folder / "frozen" / f"{name}.safetensors", network.state_dict())
    return {
        "learners": {
            name: {"ema": learner.ema and {"decay": learner.ema.decay, "updates": learner.ema.updates}}
            for name, learner in state.learners.items()
        },
        "frozen": sorted(state.frozen),
    }


def read_state(state: State, folder: Path, facts: Mapping[str, Any]) -> None:
    """Put saved values into a state of the same networks; ValueError, KeyError or RuntimeError where they differ."""
    if set(facts["learners"]) != set(state.learners) or set(facts["frozen"]) != set(state.frozen):
        raise ValueError(
            f"saved are {sorted(facts['learners'])} and frozen {sorted(facts['frozen'])}, "
            f"wanted {sorted(state.learners)} and frozen {sorted(state.frozen)}"
        )
    for name, learner in state.learners.items():
        learner.network.load_state_dict(load_file(folder / name / "model.safetensors"))
        _load_moments(learner, load_file(folder / name / "optimizer.safetensors"))
        average = facts["learners"][name]["ema"]
        if (average is None) != (learner.ema is None):
            raise ValueError(f"a moving average of {name!r} is {'wanted' if learner.ema else 'saved'}, not both")
        if learner.ema is not None:
            learner.ema.load_state_dict({**average, "shadow": load_file(folder / name / "ema.safetensors")})
    for name, network in state.frozen.items():
        network.load_state_dict(load_file(folder / "frozen" / f"{name}.safetensors"))


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file; every tensor is copied, since tied weights share memory and the format refuses that."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, file)


def _moments(learner: Learner) -> dict[str, Tensor]:
    """AdamW's tensors by parameter name: `NAME/exp_avg` and so on."""
    names = [name for name, _ in learner.parameters()]
    saved = learner.optimizer.state_dict()["state"]
    return {f"{names[index]}/{key}": value for index, moments in saved.items() for key, value in moments.items()}


def _load_moments(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    index = {name: i for i, (name, _) in enumerate(learner.parameters())}
    moments: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        moments.setdefault(index[name], {})[key] = tensor
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": moments, "param_groups": groups})
