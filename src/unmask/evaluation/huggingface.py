"""A model of transformers as a judge, by one of two named rules.

"mdlm": the rule of `judges`. "sdtt": how SDTT's released code scores with Llama 3 (Deschenaux and Gulcehre 2024,
arXiv 2410.21035, run_eval.py), and MCD's table 3 after it: remove each <|endoftext|> from a text, strip blanks at its
ends, put the judge's BOS before it, score each token after BOS, in one window. Then exp of the mean over texts of nats
a token.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.evaluation.judges import (
    CONTEXT,
    EosRule,
    LanguageModelJudge,
    check_context,
    weights_digest,
    weights_dtype,
)
from unmask.evaluation.measure import Stamp
from unmask.types import PerToken, Tokens

Rule: TypeAlias = Literal["mdlm", "sdtt"]


def huggingface_judge(
    path_or_hub_id: str,
    *,
    revision: str | None = None,
    ids: bool = False,
    context: int | None = None,
    eos_rule: EosRule = "first",
    rule: Rule = "mdlm",
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> LanguageModelJudge:
    """Any `AutoModelForCausalLM` as a judge, by hub id ("gpt2-large") or directory, in float32; runs no code of theirs.

    context  `CONTEXT` tokens, or as many as the model reads where it reads fewer; by the rule "sdtt" all that it reads
    rule     see above; "sdtt" reads texts, and takes no eos_rule of its own
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if rule == "sdtt" and (ids or eos_rule != "first"):
        raise ValueError(f"rule 'sdtt' reads texts and removes EOS: got ids = {ids}, eos_rule = {eos_rule!r}")
    # Without an explicit False, transformers asks on the standard input whether to run the code of a directory.
    source = {"pretrained_model_name_or_path": path_or_hub_id, "revision": revision, "trust_remote_code": False}
    network = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    network = network.eval().to(device)
    tokenizer = None if ids else AutoTokenizer.from_pretrained(**source)
    weights = network.state_dict()
    config = network.config.get_text_config()
    positions = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")  # GPT-2: n_positions
    longest = config.to_dict().get(positions) or CONTEXT
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    name = path_or_hub_id.rstrip("/").rsplit("/", 1)[-1]
    start = None if rule == "mdlm" or tokenizer is None else tokenizer.bos_token_id
    if rule == "sdtt" and start is None:
        raise ValueError(f"rule 'sdtt' puts BOS before a text: the tokenizer of {name} has none; use rule 'mdlm'")
    context = context or (longest if rule == "sdtt" else min(longest, CONTEXT))
    check_context(context, longest, name)

    def next_nats(rows: Tokens) -> PerToken:
        with torch.no_grad():
            logits = network(input_ids=rows[:, :-1], use_cache=False).logits
        pairs = zip(logits, rows[:, 1:], strict=True)  # a row at a time: float32 log-softmax of [B, T, V] is gigabytes
        return torch.stack([F.cross_entropy(row.float(), target, reduction="none") for row, target in pairs])

    def hidden(rows: Tokens) -> Tensor:
        with torch.no_grad():
            states: Tensor = network.base_model(input_ids=rows, use_cache=False).last_hidden_state
        return states

    return LanguageModelJudge(
        Stamp(
            name,
            weights_digest(weights),
            weights_dtype(weights),
            context,
            retokenised=not ids,
            prefixed=rule == "sdtt",
            eos_rule="removed" if rule == "sdtt" else eos_rule,
            average="texts" if rule == "sdtt" else "tokens",
        ),
        network.get_input_embeddings().num_embeddings,
        next_nats,
        None if tokenizer is None else lambda text: tokenizer.encode(text, add_special_tokens=False),
        ends[0] if tokenizer is None else tokenizer.eos_token_id,
        start,
        batch_size=batch_size,
        device=device,
        hidden=hidden,
    )
