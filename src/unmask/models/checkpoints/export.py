"""Models in other people's layouts: the Lightning checkpoint that the code of Duo, and so its MDLM and AR, reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unmask.atomic_files import writing
from unmask.diffusion.schedules import LogLinear
from unmask.models.checkpoints.config import AUTOREGRESSIVE, CARD, MASKED, UNIFORM, CheckpointConfig
from unmask.models.dit import DiT
from unmask.models.model import CausalModel, Model
from unmask.models.saving import check_checkpoint

_ALGORITHMS = {
    MASKED: ("mdlm", "subs"),
    UNIFORM: ("duo_base", "mean"),
    AUTOREGRESSIVE: ("ar", "ar"),
}
_EMA_DECAY = 0.9999  # of Duo's and MDLM's training (arXiv 2506.10892, 2406.07524)
_LIGHTNING = "2.2.1"  # the version that their requirements name


def save_lightning(model: Model | CausalModel, file: str | Path, *, raw: DiT | None = None) -> None:
    """Write a .ckpt file that Duo's code opens with `load_from_checkpoint(file, tokenizer=..., config=...)`.

    raw  the weights of which the model's are the moving average; None: the model's stand for both

    `state_dict` holds the raw weights under "backbone.", `ema.shadow_params` the averages as a list in the order of the
    network's parameters, without buffers. How often they were updated is not known: `num_updates` None tells their
    code to average with the full decay. No optimizer state: training there begins anew from these weights, by
    `training.finetune_path` or `eval.checkpoint_path`. Everything is plain data, which `torch.load(weights_only=True)`
    reads. That code builds its network from a tokenizer: as many rows as `tokenizer.vocab_size` (added tokens not
    counted) and one for MASK, or for uniform noise `len(tokenizer)` after adding [PAD]; with GPT-2's, V = 50258.

    ValueError for what that layout has no place for: another schedule than log-linear, a uniform-state network that
    is not told the noise level; and for a file that is there and is no checkpoint. OSError where the file cannot be
    written, what was there before is unchanged. The card is kept in the hyper-parameters, where `load` finds it.
    """
    facts, network = model.facts(), model.network
    if raw is not None and raw.shape != network.shape:
        raise ValueError(
            f"raw holds the weights that were averaged: want the shape {network.shape}, got {raw.shape}"
        )
    counters = {"current": {"completed": 0}}
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": _LIGHTNING,
        "state_dict": {
            f"backbone.{name}": tensor.detach().cpu()
            for name, tensor in (raw or network).state_dict().items()
        },
        "ema": {
            "decay": _EMA_DECAY,
            "num_updates": None,
            "shadow_params": [parameter.detach().cpu() for parameter in network.parameters()],
        },
        "hyper_parameters": {"config": _config(facts, network) | {CARD: dict(model.card)}},
        "loops": {"fit_loop": {"epoch_progress": counters, "epoch_loop.batch_progress": counters}},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    file = check_checkpoint(file)
    try:
        with writing(file) as temporary:
            torch.save(checkpoint, temporary)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch's own zip writer speaks of a full disk in a RuntimeError
        raise OSError(
            f"{file} could not be written, what was there is unchanged: {error}"
        ) from error


def _config(facts: CheckpointConfig, network: DiT) -> dict[str, Any]:
    """What of Duo's configuration says something about the weights."""
    schedule, shape = facts.schedule, network.shape
    if schedule is not None and not isinstance(schedule, LogLinear):
        raise ValueError(
            f"that layout names the log-linear schedule only, and this model was trained under {schedule}"
        )
    if facts.kind == UNIFORM and not facts.sees_alpha:
        raise ValueError(
            "Duo's networks are told the noise level, and this uniform-state one is not (sees_alpha)"
        )
    name, parameterization = _ALGORITHMS[facts.kind]
    return {
        "algo": {
            "name": name,
            "parameterization": parameterization,
            "time_conditioning": facts.sees_alpha,
        },
        "model": {
            "hidden_size": shape.width,
            "cond_dim": shape.cond_dim,
            "length": shape.length,
            "n_blocks": shape.blocks,
            "n_heads": shape.heads,
            "dropout": shape.dropout,
        },
        **({} if schedule is None else {"noise": {"type": "log-linear", "eps": schedule.eps}}),
        **({} if facts.mask_id is None else {"mask_index": facts.mask_id}),
    }
