"""Judges: language models that say how surprising a text is, and the one rule by which their surprise is counted.

The default rule is that of MDLM and Duo (arXiv 2406.07524, 2506.10892): decode, retokenise with the judge's tokenizer,
add no start token, score each token after the first in float32, count an EOS token only the first time and text after
it all the same. Two repairs: no remainder of samples is dropped, and padding is never scored, so that a text's score
does not depend on its neighbours. A text longer than the context is read in windows. `huggingface` has a second rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unmask.diffusion.vocabulary_losses import cross_entropy
from unmask.evaluation import measure
from unmask.evaluation.measure import JudgeId, Measure
from unmask.models.modules import weights_digest
from unmask.prediction import Prediction
from unmask.types import PerToken, Tokens

CONTEXT = 1024
END_OF_TEXT = "<|endoftext|>"  # how texts spell EOS
EosRule: TypeAlias = Literal["first", "all", "removed"]
TextSet: TypeAlias = Tokens | Sequence[str]


@dataclass(frozen=True)
class Scores:
    """What a judge read, an entry a text: nats (float64 [n]), counted tokens [n], and, of texts, UTF-8 bytes [n].

    by_text  a perplexity weighs each text alike, however many tokens it has
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


class Judge(Protocol):
    """Texts, or ids [n, L] where `stamp.retokenised` is False, -> `Scores`, and features [n, D] to compare them by."""

    @property
    def stamp(self) -> JudgeId: ...

    def __call__(self, texts: TextSet) -> Scores: ...

    def features(self, texts: TextSet) -> Tensor: ...


@dataclass(frozen=True)
class LanguageModelJudge:
    """The rule above, around any next-token model.

    next_nats  ids [B, T] -> -log p of ids[:, 1:] given what stands before, [B, T - 1] nats
    encode     text -> ids, special tokens read from their spelling; None: this judge only reads ids
    hidden     ids [B, T] -> last hidden states [B, T, D]; None: it has no features
    eos_id     the token of `stamp.eos_rule`; None: there is none
    start_id   put before each text where `stamp.prefixed`
    """

    stamp: JudgeId
    vocab_size: int
    next_nats: Callable[[Tokens], PerToken]
    encode: Callable[[str], Sequence[int]] | None
    eos_id: int | None
    start_id: int | None = None
    batch_size: int = 8
    device: torch.device | str = "cpu"
    hidden: Callable[[Tokens], Tensor] | None = None

    def features(self, texts: TextSet) -> Tensor:
        """The last hidden state at the last token of each text, float32 [n, D]: of its first `context` tokens."""
        if self.hidden is None:
            raise ValueError(
                f"judge {self.stamp.name} has no hidden states to compare texts by: use another one"
            )
        start = [self.start_id] if self.stamp.prefixed and self.start_id is not None else []
        rows = [
            torch.cat([row.new_tensor(start), row])[: self.stamp.context]
            for row in self._rows(texts)[0]
        ]
        if not all(map(len, rows)):
            raise ValueError("a text without a token has no features: leave empty texts out")
        found = []
        for first in range(0, len(rows), self.batch_size):
            part = rows[first : first + self.batch_size]
            ends = torch.tensor([len(row) - 1 for row in part])
            states = self.hidden(pad_sequence(part, batch_first=True).to(self.device)).cpu()
            found.append(states[torch.arange(len(part)), ends].float())
        return torch.cat(found)

    def __call__(self, texts: TextSet) -> Scores:
        """Every text, whole. A text of one token counts none, unless a start token stands before it."""
        rows, size = self._rows(texts)
        nats = torch.zeros(len(rows), dtype=torch.float64)
        count = torch.zeros(len(rows), dtype=torch.int64)
        windows = [(owner, part) for owner, row in enumerate(rows) for part in self._windows(row)]
        for first in range(0, len(windows), self.batch_size):
            owners, parts = zip(*windows[first : first + self.batch_size], strict=True)
            ids = pad_sequence([ids for ids, _ in parts], batch_first=True)
            counted = pad_sequence([counted for _, counted in parts], batch_first=True)[:, 1:]
            surprise = self.next_nats(ids.to(self.device)).double().cpu()
            owner = torch.tensor(owners)
            nats.index_add_(0, owner, surprise.where(counted, 0.0).sum(dim=1))
            count.index_add_(0, owner, counted.sum(dim=1))
        return Scores(nats, count, size, self.stamp.average == "texts")

    def _rows(self, texts: TextSet) -> tuple[list[Tensor], Tensor | None]:
        if isinstance(texts, Tensor) == self.stamp.retokenised:
            reads, remedy = (
                ("texts", "decode the samples first")
                if self.stamp.retokenised
                else ("ids [n, L]", "encode")
            )
            raise ValueError(
                f"judge {self.stamp.name} was built to read {reads}: {remedy}, or build it with ids=..."
            )
        if isinstance(texts, Tensor):
            if texts.numel() and not 0 <= int(texts.min()) <= int(texts.max()) < self.vocab_size:
                raise ValueError(
                    f"ids are scored as they are: judge {self.stamp.name} knows 0 .. {self.vocab_size - 1}, got "
                    f"{int(texts.min())} .. {int(texts.max())}. Let it retokenise texts (ids=False)"
                )
            return list(texts.cpu()), None
        if self.encode is None:
            raise ValueError(
                f"judge {self.stamp.name} has no tokenizer to read texts with: build it with ids=True"
            )
        if self.stamp.eos_rule == "removed":
            texts = [text.replace(END_OF_TEXT, "").strip() for text in texts]
        rows = [torch.tensor(list(self.encode(text)), dtype=torch.int64) for text in texts]
        return rows, torch.tensor([len(text.encode()) for text in texts], dtype=torch.int64)

    def _windows(self, row: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """(ids, counted) of at most `context` + 1 ids, the last only a target; each token after the first counts once.

        The last window of a long row slides back to be full, so that its tokens have a context too.
        """
        counted = eos_weight(row, self.eos_id if self.stamp.eos_rule == "first" else None)
        if self.stamp.prefixed and self.start_id is not None:
            row = torch.cat([row.new_tensor([self.start_id]), row])
            counted = torch.cat([counted.new_tensor([False]), counted])
        context = self.stamp.context
        for first in range(0, len(row) - 1, context):
            start = max(0, min(first, len(row) - 1 - context))
            new = torch.arange(len(row)) > first
            yield row[start : start + context + 1], (counted & new)[start : start + context + 1]


def eos_weight(row: Tokens, eos_id: int | None) -> Tensor:
    """Which tokens of a row [..., T] count: all but EOS, and EOS the first time.

    >>> eos_weight(torch.tensor([5, 0, 6, 0, 7]), eos_id=0)
    tensor([ True,  True,  True, False,  True])
    """
    if eos_id is None:
        return torch.ones_like(row, dtype=torch.bool)
    eos = row == eos_id
    return ~eos | (eos.cumsum(dim=-1) == 1)


class NextTokenModel(Protocol):
    """ids [B, T] -> at each position, the law of the token after it."""

    def __call__(self, ids: Tokens) -> Prediction: ...


class TextCodec(Protocol):
    """What a judge asks of `text.tokenizers.Tokenizer`."""

    @property
    def eos_id(self) -> int | None: ...

    @property
    def bos_id(self) -> int | None: ...

    def encode(self, text: str, specials: bool = False) -> list[int]: ...


def hidden_states(predictor: NextTokenModel, ids: Tokens) -> Tensor:
    """The last hidden states of a next-token model, [B, T, D]."""
    with torch.no_grad():
        return predictor(ids).hidden


def predictor_nats(predictor: NextTokenModel, ids: Tokens) -> PerToken:
    """-log p(ids[:, 1:]), [B, T - 1] nats, a chunk of vocabulary rows at a time."""
    with torch.no_grad():
        prediction = predictor(ids[:, :-1])
        return cross_entropy(prediction, ids[:, 1:], prediction.rows(None)).view(prediction.shape)


def causal_judge(
    predictor: NextTokenModel,
    vocab_size: int,
    tokenizer: TextCodec | None,
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
    """Our own autoregressive model as a judge: `CausalModel.predictor` in evaluation mode, and its tokenizer.

    weights  the network's state dict, for the stamp
    context  tokens that it reads at a time: at most as many as a row of its training has
    ids      True: score ids as they are (model and judge share the tokenizer); False: retokenise texts
    eos_id   where there is no tokenizer to ask
    """
    if tokenizer is None and not ids:
        raise ValueError(
            f"judge {name} has no tokenizer to read texts with: build it with ids=True"
        )
    eos_id = eos_id if tokenizer is None else tokenizer.eos_id
    start_id = eos_id if tokenizer is None or tokenizer.bos_id is None else tokenizer.bos_id
    if prefixed and start_id is None:
        raise ValueError(
            f"judge {name} has neither BOS nor EOS to put before a text: build it with prefixed=False"
        )
    return LanguageModelJudge(
        JudgeId(
            name,
            weights_digest(weights),
            weights_dtype(weights),
            context,
            not ids,
            prefixed,
            eos_rule,
        ),
        vocab_size,
        lambda rows: predictor_nats(predictor, rows),
        None if tokenizer is None else lambda text: tokenizer.encode(text, specials=True),
        eos_id,
        start_id,
        batch_size,
        device,
        lambda rows: hidden_states(predictor, rows),
    )


def check_context(context: int, longest: int, name: str) -> None:
    """ValueError unless a judge reads so many tokens at a time."""
    if not 2 <= context <= longest:
        raise ValueError(
            f"context is out of range: got {context}, want 2 .. {longest} (the tokens that judge {name} reads at a "
            "time); a longer text is read in windows"
        )


def weights_dtype(weights: Mapping[str, Tensor]) -> str:
    """The precision of the weights: "float32", or "bfloat16+float32" where they differ."""
    kinds = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in weights.values()
        if tensor.is_floating_point()
    }
    return "+".join(sorted(kinds))


def perplexity(scores: Scores, unit: str = "perplexity") -> Measure:
    """exp(all nats / all tokens), or of the mean over texts (`by_text`), with a bootstrap standard error over texts."""
    nats, weights = scores.terms
    return measure.perplexity(nats.numpy(), weights.numpy(), unit)


def bits_per_byte(scores: Scores) -> Measure:
    """Nats of the counted tokens / (ln 2 x UTF-8 bytes of the texts): what a token is does not matter to it.

    Without a start token the first token of a text is free.
    """
    if scores.bytes is None:
        raise ValueError("bits per byte needs texts: a judge built with ids=True never saw any")
    bits = scores.nats / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return measure.pooled(bits.numpy(), scores.bytes.numpy(), "bits per byte")


def generative_perplexity(tokens_or_texts: TextSet, judge: Judge) -> Measure:
    """Perplexity of samples under a judge. Never print it alone: repetition scores better than good text."""
    return perplexity(judge(tokens_or_texts), f"perplexity under {judge.stamp.name}")
