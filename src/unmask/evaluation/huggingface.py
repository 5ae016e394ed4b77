"""A model of transformers as a judge, by one of two named rules.

`huggingface_judge` has the rule of `judges`. `sdtt_judge` scores as SDTT's released code does with Llama 3 (Deschenaux
and Gulcehre 2024, arXiv 2410.21035, run_eval.py), and MCD's table 3 after it: remove each <|endoftext|> from a text,
strip blanks at its ends, put the judge's BOS before it, score each token after BOS, in one window. The perplexity is
exp of the mean over texts of nats a token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.evaluation.judges import (
    CONTEXT,
    EosRule,
    LanguageModelJudge,
    check_context,
    weights_dtype,
)
from unmask.evaluation.measure import JudgeId
from unmask.models.modules import weights_digest
from unmask.types import PerToken, Tokens


def huggingface_judge(
    path_or_hub_id: str,
    *,
    revision: str | None = None,
    ids: bool = False,
    context: int | None = None,
    eos_rule: EosRule = "first",
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> LanguageModelJudge:
    """Any `AutoModelForCausalLM` as a judge, by hub id ("gpt2-large") or directory, in float32; runs no code of theirs.

    context: `CONTEXT` tokens, or as many as the model reads where it reads fewer.
    """
    network, tokenizer = _load(path_or_hub_id, revision, ids, device)
    name, longest = _name(path_or_hub_id), _positions(network)
    context = min(longest, CONTEXT) if context is None else context
    check_context(context, longest, name)
    weights, ends = network.state_dict(), network.config.get_text_config().eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    stamp = JudgeId(
        name, weights_digest(weights), weights_dtype(weights), context, retokenised=not ids, prefixed=False,
        eos_rule=eos_rule,
    )  # fmt: skip
    return _judge(
        network,
        tokenizer,
        stamp,
        end if tokenizer is None else tokenizer.eos_token_id,
        None,
        batch_size,
    )


def sdtt_judge(
    path_or_hub_id: str,
    *,
    revision: str | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> LanguageModelJudge:
    """The same by the rule of SDTT, whose context is all that the model reads; ValueError without a BOS token."""
    network, tokenizer = _load(path_or_hub_id, revision, False, device)
    name, start = _name(path_or_hub_id), tokenizer.bos_token_id
    if start is None:
        raise ValueError(
            f"the rule of SDTT puts BOS before a text, and the tokenizer of {name} has none: leave sdtt: out"
        )
    weights, context = network.state_dict(), _positions(network)
    check_context(context, context, name)
    stamp = JudgeId(
        name, weights_digest(weights), weights_dtype(weights), context, retokenised=True, prefixed=True,
        eos_rule="removed", average="texts",
    )  # fmt: skip
    return _judge(network, tokenizer, stamp, None, start, batch_size)


def _load(
    path_or_hub_id: str, revision: str | None, ids: bool, device: torch.device | str
) -> tuple[Any, Any]:
    """The network in float32, and the tokenizer where texts are read."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Without an explicit False, transformers asks on the standard input whether to run the code of a directory.
    source = {
        "pretrained_model_name_or_path": path_or_hub_id,
        "revision": revision,
        "trust_remote_code": False,
    }
    network = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return network.eval().to(device), None if ids else AutoTokenizer.from_pretrained(**source)


def _name(path_or_hub_id: str) -> str:
    return path_or_hub_id.rstrip("/").rsplit("/", 1)[-1]


def _positions(network: Any) -> int:
    """How many tokens the network was trained to read, by its configuration; `CONTEXT` where it does not say."""
    told = network.config.get_text_config()
    positions = told.attribute_map.get(
        "max_position_embeddings", "max_position_embeddings"
    )  # GPT-2: n_positions
    said: int | None = told.to_dict().get(positions)
    return CONTEXT if said is None else said


def _judge(
    network: Any,
    tokenizer: Any,
    stamp: JudgeId,
    end: int | None,
    start: int | None,
    batch_size: int,
) -> LanguageModelJudge:
    def next_nats(rows: Tokens) -> PerToken:
        with torch.no_grad():
            logits = network(input_ids=rows[:, :-1], use_cache=False).logits
        pairs = zip(
            logits, rows[:, 1:], strict=True
        )  # a row at a time: float32 log-softmax of [B, T, V] is gigabytes
        return torch.stack(
            [F.cross_entropy(row.float(), target, reduction="none") for row, target in pairs]
        )

    def hidden(rows: Tokens) -> Tensor:
        with torch.no_grad():
            states: Tensor = network.base_model(input_ids=rows, use_cache=False).last_hidden_state
        return states

    return LanguageModelJudge(
        stamp,
        network.get_input_embeddings().num_embeddings,
        next_nats,
        None
        if tokenizer is None
        else lambda text: tokenizer.encode(text, add_special_tokens=False),
        end,
        start,
        batch_size,
        network.device,
        hidden,
    )
