"""Judges by name: the one place that knows every kind."""

from __future__ import annotations

from pathlib import Path

from unmask.evaluation.judges import Judge, causal_judge, huggingface_judge
from unmask.evaluation.smollm2 import smollm2_judge
from unmask.models.pretrained import CausalModel, load
from unmask.text.tokenizers import Tokenizer


def judge_of(model: CausalModel, length: int, name: str = "demo-judge") -> Judge:
    """A judge that shares the tokenizer of what it judges: it reads ids, a start token stands before each text."""
    return causal_judge(
        model.predictor,
        model.network.shape.vocab_size,
        model.tokenizer,
        model.network.state_dict(),
        name=name,
        context=length,
        ids=True,
        prefixed=True,
        eos_rule="all",
        batch_size=32,
    )


def judge_named(name: str, tokenizer: Tokenizer | None, length: int) -> Judge:
    """A judge by name: "smollm2", the directory of one of our autoregressive models, or any Hugging Face model.

    One of ours reads ids where its tokenizer is that of the judged model, and texts otherwise.
    """
    if name == "smollm2":
        return smollm2_judge()
    inside = Path(name) / "model"
    directory = inside if inside.exists() else Path(name)
    config = directory / "config.json"
    if not config.exists() or '"unmask' not in config.read_text("utf-8"):
        return huggingface_judge(name)
    model = load(directory)
    if not isinstance(model, CausalModel):
        raise ValueError(f"a judge is autoregressive, and {name} is a diffusion model")
    if model.tokenizer is not None and tokenizer is not None and model.tokenizer.digest == tokenizer.digest:
        return judge_of(model, length, name=directory.name)
    weights, size = model.network.state_dict(), model.network.shape
    return causal_judge(
        model.predictor, size.vocab_size, model.tokenizer, weights, name=directory.name, context=size.length
    )
