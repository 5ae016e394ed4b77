"""Judges from models of the package transformers, by one of two scoring rules.

`huggingface_judge` follows the rule of `judges`. `sdtt_judge` follows SDTT's released code for
Llama 3 (Deschenaux and Gulcehre 2024, arXiv 2410.21035, run_eval.py), which table 3 of the MCD
paper uses. It removes each <|endoftext|> from a text, strips blanks at both ends, and puts the
judge's BOS first. It scores each token after BOS in one window. The perplexity is exp of the mean
over texts of nats per token.
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
    """A judge from any `AutoModelForCausalLM`, in float32; the directory's code is not run.

    Args:
        path_or_hub_id: a directory or a hub id such as "gpt2-large".
        revision: branch, tag or commit of a hub id.
        ids: True: score token ids; False: encode texts.
        context: tokens in one window; None: `CONTEXT`, or the model's maximum if that is less.
        eos_rule: see `JudgeId`.
        batch_size: windows per network call.
        device: device of the network.
    """
    network, tokenizer = _load(path_or_hub_id, revision, ids, device)
    eos_ids = network.config.get_text_config().eos_token_id
    if tokenizer is not None:
        eos_ids = tokenizer.eos_token_id
    return _judge(
        path_or_hub_id,
        network,
        tokenizer,
        context=min(_max_positions(network), CONTEXT) if context is None else context,
        eos_rule=eos_rule,
        average="tokens",
        eos_id=eos_ids[0] if isinstance(eos_ids, list) else eos_ids,
        start_id=None,
        batch_size=batch_size,
    )


def sdtt_judge(
    path_or_hub_id: str,
    *,
    revision: str | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> LanguageModelJudge:
    """A judge by SDTT's rule, with the model's maximum context; ValueError without a BOS token.

    Args:
        path_or_hub_id: a directory or a hub id.
        revision: branch, tag or commit of a hub id.
        batch_size: windows per network call.
        device: device of the network.
    """
    network, tokenizer = _load(path_or_hub_id, revision, False, device)
    if tokenizer.bos_token_id is None:
        raise ValueError(
            f"judge {_name(path_or_hub_id)} has no BOS token, which the rule of SDTT puts before a "
            'text: leave "sdtt:" out'
        )
    return _judge(
        path_or_hub_id,
        network,
        tokenizer,
        context=_max_positions(network),
        eos_rule="removed",
        average="texts",
        eos_id=None,
        start_id=tokenizer.bos_token_id,
        batch_size=batch_size,
    )


def _load(
    path_or_hub_id: str, revision: str | None, ids: bool, device: torch.device | str
) -> tuple[Any, Any]:
    """The network in float32, and the tokenizer (None for a judge of ids)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Without an explicit False, transformers reads from stdin whether to run code of the directory.
    source = {
        "pretrained_model_name_or_path": path_or_hub_id,
        "revision": revision,
        "trust_remote_code": False,
    }
    network = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return network.eval().to(device), None if ids else AutoTokenizer.from_pretrained(**source)


def _name(path_or_hub_id: str) -> str:
    return path_or_hub_id.rstrip("/").rsplit("/", 1)[-1]


def _max_positions(network: Any) -> int:
    """The network's maximum number of positions by its configuration, else `CONTEXT`."""
    text_config = network.config.get_text_config()
    key = text_config.attribute_map.get(  # GPT-2: n_positions
        "max_position_embeddings", "max_position_embeddings"
    )
    positions: int | None = text_config.to_dict().get(key)
    return CONTEXT if positions is None else positions


def _judge(
    path_or_hub_id: str,
    network: Any,
    tokenizer: Any,
    *,
    context: int,
    eos_rule: EosRule,
    average: str,
    eos_id: int | None,
    start_id: int | None,
    batch_size: int,
) -> LanguageModelJudge:
    """A judge of texts, or of ids if `tokenizer` is None; `start_id`, if given, precedes each."""
    name, weights = _name(path_or_hub_id), network.state_dict()
    check_context(context, _max_positions(network), name)

    def next_nats(rows: Tokens) -> PerToken:
        with torch.no_grad():
            logits = network(input_ids=rows[:, :-1], use_cache=False).logits
        # One row at a time: a float32 log-softmax of [B, T, V] takes gigabytes.
        pairs = zip(logits, rows[:, 1:], strict=True)
        return torch.stack(
            [F.cross_entropy(row.float(), target, reduction="none") for row, target in pairs]
        )

    def hidden(rows: Tokens) -> Tensor:
        with torch.no_grad():
            states: Tensor = network.base_model(input_ids=rows, use_cache=False).last_hidden_state
        return states

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return LanguageModelJudge(
        JudgeId(
            name,
            weights_digest(weights),
            weights_dtype(weights),
            context,
            retokenised=tokenizer is not None,
            prefixed=start_id is not None,
            eos_rule=eos_rule,
            average=average,
        ),
        network.get_input_embeddings().num_embeddings,
        next_nats,
        encode=None if tokenizer is None else encode,
        eos_id=eos_id,
        start_id=start_id,
        batch_size=batch_size,
        device=network.device,
        hidden=hidden,
    )
