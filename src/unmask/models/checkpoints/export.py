"""Write the Lightning checkpoint that Duo's code, with its MDLM and AR, reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmask.atomic_files import writing
from unmask.diffusion.schedules import LogLinear
from unmask.models.checkpoints.config import CARD, CheckpointConfig
from unmask.models.denoiser import AUTOREGRESSIVE, MASKED, UNIFORM
from unmask.models.dit import Shape
from unmask.models.model import LanguageModel, own_network
from unmask.models.modules import check_same_shapes
from unmask.models.saving import check_checkpoint

# Duo's names: kind -> (algorithm, parameterization).
_ALGORITHMS = {
    MASKED: ("mdlm", "subs"),
    UNIFORM: ("duo_base", "mean"),
    AUTOREGRESSIVE: ("ar", "ar"),
}
_EMA_DECAY = 0.9999  # of Duo's and MDLM's training (arXiv 2506.10892, 2406.07524)
_LIGHTNING = "2.2.1"  # the version in their requirements


def save_lightning(model: LanguageModel, file: str | Path, *, raw: nn.Module | None = None) -> None:
    """Write a .ckpt file for Duo's code.

    Duo's code opens it with `load_from_checkpoint(file, tokenizer=..., config=...)`.

    `state_dict` holds the raw weights under "backbone.". `ema.shadow_params` holds the EMA weights
    as a list in the network's order, without buffers. The number of EMA updates is unknown, so
    `num_updates` is None and Duo's code uses the full decay. There is no optimizer state. So a
    training in Duo's code restarts from these weights, by `training.finetune_path` or
    `eval.checkpoint_path`. The card is among the hyper-parameters, where `load` finds it. The file
    is plain data, which `torch.load(weights_only=True)` reads.

    Duo's code computes V, the number of rows, from a tokenizer. With MASK, V is
    `tokenizer.vocab_size` (without added tokens) plus 1. With uniform noise, V is `len(tokenizer)`
    after adding [PAD]. With GPT-2's tokenizer V = 50258.

    Args:
        model: The model, with a network of this library.
        file: A new or empty file, or a checkpoint to replace.
        raw: The raw network whose EMA the model holds. None: both sets are the model's weights.

    Raises:
        ValueError: The schedule is not log-linear, a uniform-state network does not get the noise
            level, or the network is foreign. Or the file is not a checkpoint.
        OSError: The file could not be written; its old contents are unchanged.
    """
    network = own_network(model)
    if raw is not None:
        check_same_shapes(raw.state_dict(), network.state_dict(), "raw")
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
        "hyper_parameters": {
            "config": _duo_config(model.checkpoint_config(), network.shape)
            | {CARD: dict(model.card)}
        },
        "loops": {"fit_loop": {"epoch_progress": counters, "epoch_loop.batch_progress": counters}},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    file = check_checkpoint(file)
    try:
        with writing(file) as temporary:
            torch.save(checkpoint, temporary)
    # torch's zip writer reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{file} could not be written; its old contents are unchanged: {error}"
        ) from error


def _duo_config(use: CheckpointConfig, shape: Shape) -> dict[str, Any]:
    """The part of Duo's configuration that describes the weights."""
    schedule = use.schedule
    if schedule is not None and not isinstance(schedule, LogLinear):
        raise ValueError(
            f"schedule cannot be expressed in a checkpoint of Duo: got {schedule}, want LogLinear"
        )
    if use.kind == UNIFORM and not use.sees_alpha:
        raise ValueError(
            "sees_alpha cannot be expressed in a checkpoint of Duo: got False for a uniform-state "
            "model, want True"
        )
    name, parameterization = _ALGORITHMS[use.kind]
    return {
        "algo": {
            "name": name,
            "parameterization": parameterization,
            "time_conditioning": use.sees_alpha,
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
        **({} if use.mask_id is None else {"mask_index": use.mask_id}),
    }
