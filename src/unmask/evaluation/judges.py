"""Judges: language models that score texts, and the scoring rule.

The default rule is that of MDLM and Duo (arXiv 2406.07524, 2506.10892). Decode the samples, encode
them with the judge's tokenizer, add no start token, and score each token after the first in
float32. The first EOS is scored and later ones are not; text after the first EOS is scored too.

This module corrects the rule in two points: no incomplete batch is dropped, and padding is never
scored. So a text's score does not depend on its batch. A text longer than the context is scored in
windows. `huggingface` has a second rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unmask.data.tokenizers import Tokenizer
from unmask.diffusion.vocabulary_losses import cross_entropy
from unmask.evaluation import measure
from unmask.evaluation.measure import JudgeId, Measure
from unmask.models.modules import weights_digest
from unmask.prediction import Prediction
from unmask.types import PerToken, Tokens

CONTEXT = 1024
END_OF_TEXT = "<|endoftext|>"  # the string of EOS in texts
EosRule: TypeAlias = Literal["first", "all", "removed"]
TextSet: TypeAlias = Tokens | Sequence[str]


@dataclass(frozen=True)
class Scores:
    """A judge's scores, one entry per text.

    Attributes:
        nats: -log p of the scored tokens, float64 [n]
        tokens: number of scored tokens, [n]
        bytes: UTF-8 bytes of each text, [n]; None for token ids
        by_text: True: each text has the same weight in a perplexity; False: each token has
    """

    nats: Tensor
    tokens: Tensor
    bytes: Tensor | None = None
    by_text: bool = False

    @property
    def terms(self) -> tuple[Tensor, Tensor]:
        """Nats and weights, [n] each: a perplexity is exp(sum of nats / sum of weights)."""
        if not self.by_text:
            return self.nats, self.tokens
        return self.nats / self.tokens.clamp(min=1), (self.tokens > 0).long()


@runtime_checkable
class Judge(Protocol):
    """A function texts -> `Scores`; ids [n, L] -> `Scores` if `identity.retokenised` is False."""

    @property
    def identity(self) -> JudgeId:
        """The judge's name and scoring rule."""
        ...

    def __call__(self, texts: TextSet) -> Scores: ...

    def features(self, texts: TextSet) -> Tensor:
        """A vector per text, [n, D], for comparing sets of texts."""
        ...


@dataclass(frozen=True)
class LanguageModelJudge:
    """A judge that scores by the rule of this module, from any next-token model.

    Attributes:
        next_nats: ids [B, T] -> -log p of ids[:, 1:] given the earlier ids, [B, T - 1] nats
        encode: text -> ids, with special tokens parsed from their strings; None: ids only
        eos_id: the token of `identity.eos_rule`; None: no such token
        start_id: token before each text if `identity.prefixed`
        hidden: ids [B, T] -> last hidden states [B, T, D]; None: no features
    """

    identity: JudgeId
    vocab_size: int
    next_nats: Callable[[Tokens], PerToken]
    encode: Callable[[str], Sequence[int]] | None
    eos_id: int | None
    start_id: int | None = None
    batch_size: int = 8
    device: torch.device | str = "cpu"
    hidden: Callable[[Tokens], Tensor] | None = None

    def features(self, texts: TextSet) -> Tensor:
        """The last hidden state of each text, cut to `context` tokens: float32 [n, D]."""
        if self.hidden is None:
            raise ValueError(
                f"judge has no hidden states: got {self.identity.name}, want a judge with features"
            )
        start = [self.start_id] if self.identity.prefixed and self.start_id is not None else []
        rows = [
            torch.cat([row.new_tensor(start), row])[: self.identity.context]
            for row in self._encoded(texts)[0]
        ]
        if not all(map(len, rows)):
            raise ValueError("texts has an entry without tokens, which has no features: omit it")
        features = []
        for first in range(0, len(rows), self.batch_size):
            batch = rows[first : first + self.batch_size]
            last = torch.tensor([len(row) - 1 for row in batch])
            states = self.hidden(pad_sequence(batch, batch_first=True).to(self.device)).cpu()
            features.append(states[torch.arange(len(batch)), last].float())
        return torch.cat(features)

    def __call__(self, texts: TextSet) -> Scores:
        """Score every text in full. Without a start token the first token is not scored."""
        rows, sizes = self._encoded(texts)
        nats = torch.zeros(len(rows), dtype=torch.float64)
        count = torch.zeros(len(rows), dtype=torch.int64)
        windows = [(owner, part) for owner, row in enumerate(rows) for part in self._windows(row)]
        for first in range(0, len(windows), self.batch_size):
            owners, parts = zip(*windows[first : first + self.batch_size], strict=True)
            ids = pad_sequence([ids for ids, _ in parts], batch_first=True)
            scored = pad_sequence([scored for _, scored in parts], batch_first=True)[:, 1:]
            token_nats = self.next_nats(ids.to(self.device)).double().cpu()
            owner = torch.tensor(owners)
            nats.index_add_(0, owner, token_nats.where(scored, 0.0).sum(dim=1))
            count.index_add_(0, owner, scored.sum(dim=1))
        return Scores(nats, count, sizes, self.identity.average == "texts")

    def _encoded(self, texts: TextSet) -> tuple[list[Tensor], Tensor | None]:
        """The ids of each text, and its UTF-8 bytes [n] (None for ids)."""
        name = self.identity.name
        if isinstance(texts, Tensor) == self.identity.retokenised:
            raise ValueError(
                f"tokens_or_texts has the wrong kind: got ids, and judge {name} scores texts; give "
                "samples.texts, or build the judge with the model's tokenizer"
                if self.identity.retokenised
                else f"tokens_or_texts has the wrong kind: got texts, and judge {name} scores ids "
                "[n, L]; give samples.tokens, or build the judge without a tokenizer"
            )
        if isinstance(texts, Tensor):
            if texts.numel() and not 0 <= int(texts.min()) <= int(texts.max()) < self.vocab_size:
                raise ValueError(
                    f"tokens_or_texts has ids outside the vocabulary of judge {name}: want 0 .. "
                    f"{self.vocab_size - 1}, got {int(texts.min())} .. {int(texts.max())}; give "
                    "it texts (ids=False)"
                )
            return list(texts.cpu()), None
        if self.encode is None:
            raise ValueError(
                f"judge {name} has no tokenizer and cannot score texts: build it with ids=True"
            )
        if self.identity.eos_rule == "removed":
            texts = [text.replace(END_OF_TEXT, "").strip() for text in texts]
        rows = [torch.tensor(list(self.encode(text)), dtype=torch.int64) for text in texts]
        return rows, torch.tensor([len(text.encode()) for text in texts], dtype=torch.int64)

    def _windows(self, row: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Windows (ids, scored) of at most `context` + 1 ids; each later token is scored once.

        The last id of a window is only a target. The last window of a long row is moved back until
        it is full, so that its tokens have a context too.
        """
        scored = eos_weight(row, self.eos_id if self.identity.eos_rule == "first" else None)
        if self.identity.prefixed and self.start_id is not None:
            row = torch.cat([row.new_tensor([self.start_id]), row])
            scored = torch.cat([scored.new_tensor([False]), scored])
        context = self.identity.context
        for first in range(0, len(row) - 1, context):
            start = max(0, min(first, len(row) - 1 - context))
            new = torch.arange(len(row)) > first
            yield row[start : start + context + 1], (scored & new)[start : start + context + 1]


def eos_weight(row: Tokens, eos_id: int | None) -> Tensor:
    """Mask of the scored tokens of a row [..., T]: False only at an EOS after the first one.

    >>> eos_weight(torch.tensor([5, 0, 6, 0, 7]), eos_id=0)
    tensor([ True,  True,  True, False,  True])
    """
    if eos_id is None:
        return torch.ones_like(row, dtype=torch.bool)
    eos = row == eos_id
    return ~eos | (eos.cumsum(dim=-1) == 1)


class NextTokenModel(Protocol):
    """A function ids [B, T] -> prediction of the next token at each position."""

    def __call__(self, ids: Tokens) -> Prediction: ...


def hidden_states(predictor: NextTokenModel, ids: Tokens) -> Tensor:
    """The last hidden states of a next-token model, [B, T, D]."""
    with torch.no_grad():
        return predictor(ids).hidden


def predictor_nats(predictor: NextTokenModel, ids: Tokens) -> PerToken:
    """-log p(ids[:, 1:]), [B, T - 1] nats, computed in chunks of vocabulary rows."""
    with torch.no_grad():
        prediction = predictor(ids[:, :-1])
        return cross_entropy(prediction, ids[:, 1:], prediction.rows(None)).view(prediction.shape)


def causal_judge(
    predictor: NextTokenModel,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    weights: Mapping[str, Tensor],
    *,
    name: str,
    context: int,
    ids: bool = False,
    prefixed: bool = False,
    eos_rule: EosRule = "first",
    eos_id: int | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> LanguageModelJudge:
    """A judge from an autoregressive model of ours.

    Args:
        predictor: `CausalModel.predictor` in evaluation mode.
        vocab_size: V of its ids.
        tokenizer: its tokenizer; None requires `ids`.
        weights: the network's state dict, for the judge's digest.
        name: the judge's name.
        context: tokens in one window, at most the length of a training row.
        ids: True: score token ids, for models that share the tokenizer; False: encode texts.
        prefixed: True: put a start token (BOS, else EOS) before each text.
        eos_rule: see `JudgeId`.
        eos_id: id of EOS if there is no tokenizer.
        batch_size: windows per network call.
        device: device of the network.
    """
    if tokenizer is None and not ids:
        raise ValueError(
            f"judge {name} has no tokenizer and cannot score texts: build it with ids=True"
        )
    eos_id = eos_id if tokenizer is None else tokenizer.eos_id
    start_id = eos_id if tokenizer is None or tokenizer.bos_id is None else tokenizer.bos_id
    if prefixed and start_id is None:
        raise ValueError(
            f"judge {name} has neither BOS nor EOS as start token: build it with prefixed=False"
        )
    return LanguageModelJudge(
        JudgeId(
            name,
            weights_digest(weights),
            weights_dtype(weights),
            context,
            retokenised=not ids,
            prefixed=prefixed,
            eos_rule=eos_rule,
        ),
        vocab_size,
        next_nats=lambda rows: predictor_nats(predictor, rows),
        encode=None if tokenizer is None else lambda text: tokenizer.encode(text, specials=True),
        eos_id=eos_id,
        start_id=start_id,
        batch_size=batch_size,
        device=device,
        hidden=lambda rows: hidden_states(predictor, rows),
    )


def check_context(context: int, longest: int, name: str) -> None:
    """ValueError unless a judge's window of `context` tokens is within 2 .. `longest`."""
    if not 2 <= context <= longest:
        raise ValueError(
            f"context is out of range: got {context}, want 2 .. {longest} (the most tokens that "
            f"judge {name} can process at once); longer texts are scored in windows"
        )


def weights_dtype(weights: Mapping[str, Tensor]) -> str:
    """The number format of the weights: "float32", or "bfloat16+float32" for a mixture."""
    kinds = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in weights.values()
        if tensor.is_floating_point()
    }
    return "+".join(sorted(kinds))


def perplexity(scores: Scores, unit: str = "perplexity") -> Measure:
    """exp(all nats / all tokens), or of the mean over texts (`by_text`), with a bootstrap error."""
    nats, weights = scores.terms
    return measure.perplexity(nats.numpy(), weights.numpy(), unit)


def bits_per_byte(scores: Scores) -> Measure:
    """Nats of the scored tokens / (ln 2 x UTF-8 bytes of the texts): comparable across tokenizers.

    Without a start token the first token of a text costs nothing.
    """
    if scores.bytes is None:
        raise ValueError("scores has no bytes: bits per byte needs texts, not a judge of ids")
    bits = scores.nats / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return measure.pooled(bits.numpy(), scores.bytes.numpy(), "bits per byte")


def generative_perplexity(tokens_or_texts: TextSet, judge: Judge) -> Measure:
    """Perplexity of samples under a judge.

    Always print an entropy beside it: repetitive text scores better than good text.

    Args:
        tokens_or_texts: texts, or ids [n, L] for a judge that shares the model's tokenizer.
        judge: a judge, such as `unmask.judge("gpt2-large")`.
    """
    if not isinstance(judge, Judge):
        raise ValueError(
            f"judge is not a judge: got a {type(judge).__name__}, want a judge such as "
            'unmask.judge("unmask:judge") or unmask.judge(PATH_OF_AN_AUTOREGRESSIVE_MODEL)'
        )
    return perplexity(judge(tokens_or_texts), f"perplexity under {judge.identity.name}")
