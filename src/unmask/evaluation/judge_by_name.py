"""Judges by name: the one place that knows every kind."""

from __future__ import annotations

from pathlib import Path

import torch

from unmask.data.hub import PACKAGE_PREFIX, local_or_hub
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import read_json
from unmask.evaluation.huggingface import huggingface_judge, sdtt_judge
from unmask.evaluation.judges import Judge, causal_judge
from unmask.evaluation.smollm2 import smollm2_judge
from unmask.models.model import CausalModel, load

SDTT = "sdtt:"  # before the name of a Hugging Face model: the rule by which it scores


def judge_of(model: CausalModel, length: int, name: str = "demo-judge") -> Judge:
    """A judge that shares the tokenizer of what it judges: it reads ids, a start token stands before each text.

    length  of the texts; a text longer than the rows that the judge was trained on is read in windows of their length
    """
    return causal_judge(
        model.predictor,
        model.vocab_size,
        model.tokenizer,
        model.network.state_dict(),
        name=name,
        context=min(length, model.length),
        ids=True,
        prefixed=True,
        eos_rule="all",
        batch_size=32,
        device=model.device,
    )


def judge_named(
    name: str, tokenizer: Tokenizer | None, length: int, device: torch.device | str = "cpu"
) -> Judge:
    """A judge by name: "smollm2", the directory of one of our autoregressive models, or any Hugging Face model.

    One of ours reads ids where its tokenizer is that of the judged model, and texts otherwise. "sdtt:NAME" is a Hugging
    Face model that scores by the rule of SDTT and of MCD's table 3 (`evaluation.huggingface`).
    """
    if name == "smollm2":
        return smollm2_judge(device=device)
    if name.startswith(SDTT):
        return sdtt_judge(name.removeprefix(SDTT), device=device)
    if not (Path(name).exists() or name.startswith(PACKAGE_PREFIX)):
        return huggingface_judge(name, device=device)
    directory = local_or_hub(name, ())
    file = directory / "config.json"
    told = read_json(file) if file.exists() else {}
    if not isinstance(told, dict):
        raise ValueError(
            f"judge {name}: {file} holds the fields of a model: want a JSON object, got {told!r:.40}"
        )
    if not str(told.get("format", "")).startswith("unmask"):
        return huggingface_judge(name, device=device)
    name = told.get("card", {}).get("recipe", {}).get("name", name)
    model = load(directory, device=device)
    if not isinstance(model, CausalModel):
        raise ValueError(f"a judge is autoregressive, and {name} is a diffusion model")
    if (
        model.tokenizer is not None
        and tokenizer is not None
        and model.tokenizer.digest == tokenizer.digest
    ):
        return judge_of(model, length, name=name)
    weights = model.network.state_dict()
    return causal_judge(
        model.predictor,
        model.vocab_size,
        model.tokenizer,
        weights,
        name=name,
        context=model.length,
        device=device,
    )
