"""Build the judge of a name, such as "unmask:judge" or "gpt2-large"."""

from __future__ import annotations

from pathlib import Path

import torch

from unmask.data.hub import PACKAGE_PREFIX, local_or_hub
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import read_json
from unmask.evaluation.huggingface import huggingface_judge, sdtt_judge
from unmask.evaluation.judges import Judge, causal_judge
from unmask.evaluation.smollm2 import smollm2_judge
from unmask.models.model import CausalModel, causal_model, load

SDTT = "sdtt:"  # prefix of a Hugging Face model that scores by the rule of SDTT


def judge_of(model: CausalModel, length: int, name: str = "demo-judge") -> Judge:
    """A judge that shares the judged model's tokenizer: it scores ids, after a start token.

    Args:
        model: an autoregressive model of ours.
        length: tokens of a text; a text longer than the rows of the judge's training is scored in
            windows of their length.
        name: the judge's name.
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


def judge(
    name: str,
    tokenizer: Tokenizer | None = None,
    length: int | None = None,
    device: torch.device | str = "cpu",
) -> Judge:
    """A judge by name.

    Args:
        name: "unmask:judge", "smollm2", "sdtt:NAME", or the directory or hub id of an
            autoregressive model (of ours or of Hugging Face). "sdtt:NAME" is a Hugging Face model
            by the rule of SDTT and of table 3 of the MCD paper (`evaluation.huggingface`).
        tokenizer: the judged model's. A judge of ours with the same tokenizer scores token ids;
            every other judge scores texts.
        length: tokens of a text, for a judge that scores token ids; None: the length of the judge's
            training rows.
        device: device of the judge.

    Returns:
        The judge. It scores texts, or token ids if the models share a tokenizer.
    """
    if name == "smollm2":
        return smollm2_judge(device=device)
    if name.startswith(SDTT):
        return sdtt_judge(name.removeprefix(SDTT), device=device)
    if not (Path(name).exists() or name.startswith(PACKAGE_PREFIX)):
        return huggingface_judge(name, device=device)
    directory = local_or_hub(name, ())
    file = directory / "config.json"
    content = read_json(file) if file.exists() else {}
    if not isinstance(content, dict):
        raise ValueError(
            f"judge {name}: {file} has the wrong type: got {content!r:.40}, want a JSON object"
        )
    if not str(content.get("format", "")).startswith("unmask"):
        return huggingface_judge(name, device=device)
    name = content.get("card", {}).get("recipe", {}).get("name", name)
    model = causal_model(
        load(directory, device=device),
        f"judge {name} is a diffusion model: want an autoregressive model",
    )
    own = model.tokenizer
    if own is not None and tokenizer is not None and own.digest == tokenizer.digest:
        return judge_of(model, model.length if length is None else length, name=name)
    return causal_judge(
        model.predictor,
        model.vocab_size,
        own,
        model.network.state_dict(),
        name=name,
        context=model.length,
        device=device,
    )
