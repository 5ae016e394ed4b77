"""The model "unmask" of EleutherAI's lm-evaluation-harness (extra `lm-eval`).

Log-likelihoods of diffusion models are Monte Carlo bounds; those of autoregressive models are
exact. Texts are drawn in batches by any sampler. `harness()` registers the model, as
`unmask eval lm-harness` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, repeat
from typing import Any

import torch

from unmask.data.tokenizers import Tokenizer, start_token
from unmask.evaluation.conditional_likelihood import continuations
from unmask.extras import needs_extra
from unmask.models.model import CausalModel, Model, load
from unmask.samplers.inputs import FREE
from unmask.samplers.sample import sample


@cache
def harness() -> Any:
    """The class that lm-eval registers as "unmask"; ModuleNotFoundError without the extra."""
    with needs_extra("lm-eval"):
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model

    class Harness(HarnessModel, LM):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            LM.__init__(self)
            HarnessModel.__init__(self, *arguments, **options)

    return register_model("unmask")(Harness)


class HarnessModel:
    """The request methods of an lm-eval model.

    A log-likelihood depends on its text only, and the i-th drawn text is sample i. So neither
    depends on `batch_size`, except for the rounding of products. With batch_size = 1 there is no
    exception. `notes` maps each kind of change to the number of requests that it changed.

    Args:
        model: a run or model directory, a hub id, unmask:teacher; or a loaded model.
        draws: noise levels per log-likelihood of a diffusion model.
        greedy: also compute whether a continuation is the greedy one, at one network call per
            token; accuracy on LAMBADA needs it. Without it the answer is always False. Uniform
            diffusion has no greedy continuation, so there it is also always False.
        steps: steps of a drawn text, which has the length of a training row.
        sampler: sampler of drawn texts.
        seed: seed of noise and latents.
        batch_size: rows per network call.
        device: device of the model.
        max_gen_toks: maximum tokens of a drawn answer. None: the task's maximum, or half of the
            model's length if the task's exceeds the length after a start token.
        wrap: True: the training rows of an autoregressive model of ours began with BOS
            (`data.wrap`), so BOS follows the start token. None: as the model's card says.
    """

    def __init__(
        self,
        model: str | Model | CausalModel,
        draws: int = 32,
        greedy: bool = True,
        steps: int = 32,
        sampler: str | None = None,
        seed: int = 0,
        batch_size: int | str = 32,
        device: str | None = "cpu",
        max_gen_toks: int | None = None,
        wrap: bool | None = None,
        **ignored: object,
    ) -> None:
        if unknown := sorted(ignored.keys() - {"max_batch_size"}):  # lm-eval always passes this
            raise ValueError(f"model_args has unknown names: got {', '.join(unknown)}; omit them")
        if not str(batch_size).isdigit():
            raise ValueError(
                f"batch_size is not a number: got {batch_size!r}, want the rows of a network call"
            )
        self.model = load(model, device=device or "cpu") if isinstance(model, str) else model
        self.draws, self.greedy = draws, greedy
        self.steps, self.sampler, self.seed = steps, sampler, seed
        self.rows, self.max_gen_toks = int(batch_size), max_gen_toks
        self.notes = Counter[str]()
        self.wrap = _wraps_rows(self.model.card) if wrap is None else wrap
        self._continuations = continuations(
            self.model, draws=draws, batch_size=self.rows, seed=seed
        )
        # `sample` puts a start token before each text of an autoregressive model.
        self._added = 0 if self.model.draws_in_steps else 1
        if sampler is not None and not self.model.draws_in_steps:
            raise ValueError(
                f"sampler has no effect: got {sampler!r}, and the model is autoregressive; leave "
                "it out"
            )
        if max_gen_toks is not None and not 1 <= max_gen_toks <= self._max_answer:
            raise ValueError(
                f"max_gen_toks is out of range: got {max_gen_toks}, want 1 .. {self._max_answer}, "
                "the model's length after a start token"
            )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log p of the continuation given the context, whether it is greedy) of each request."""
        return [self._score_continuation(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of whole texts, in lm-eval's windows; each token is scored once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        results = []
        for request in requests:
            ids = self._tokenizer.encode(request.args[0])
            windows = map(
                make_disjoint_window, get_rolling_token_windows(ids, self._start, self._window, 1)
            )
            prefixes = chain([self._prefix], repeat(None))  # only the first window has a prefix
            nats = math.fsum(
                self._continuations.nats([*(prefix or context), *target], len(target))
                for prefix, (context, target) in zip(prefixes, windows, strict=False)
            )
            results.append(-nats)
        return results

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Texts after the contexts, cut before the first of the `until` strings."""
        from lm_eval.models.utils import normalize_gen_kwargs

        default = min(256, self._length // 2)
        options = [
            normalize_gen_kwargs(_with_temperature(dict(request.args[1])), default)
            for request in requests
        ]
        limits = [self._answer_limit(one["max_gen_toks"]) for one in options]
        groups: dict[tuple[tuple[str, Any], ...], list[int]] = {}  # equal sampling options
        for i, one in enumerate(options):
            groups.setdefault(tuple(sorted(_sampling_options(one).items())), []).append(i)
        answers = [""] * len(requests)
        for sampling, members in groups.items():
            contexts = [self._context(requests[i].args[0], limits[i]) for i in members]
            rows = self._draw(contexts, dict(sampling))
            for i, context, row in zip(members, contexts, rows, strict=True):
                text = self._tokenizer.decode(row[len(context) : len(context) + limits[i]])
                answers[i] = _cut(text, options[i]["until"], self._eos_string)
        return answers

    @property
    def words(self) -> str:
        """The method of scoring and drawing, in words."""
        if not self.model.draws_in_steps:
            return f"exact log-likelihoods, one network call per token of a text, seed {self.seed}"
        by = "" if self.sampler is None else f" by {self.sampler}"
        return (
            f"{self.draws} draws per log-likelihood, {self.steps} steps per text{by}, "
            f"seed {self.seed}"
        )

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.model.tokenizer is None:
            raise ValueError(
                "model has no tokenizer, which tasks need: `unmask convert --tokenizer` adds one"
            )
        return self.model.tokenizer

    @property
    def _eos_string(self) -> str:
        eos_id = self._tokenizer.eos_id
        return "" if eos_id is None else self._tokenizer.decode([eos_id])

    @property
    def _length(self) -> int:
        return self.model.length

    @property
    def _start(self) -> int:
        """The start token, as in training."""
        return start_token(self._tokenizer, self.model.vocab_size, self.model.mask_id)

    @property
    def _prefix(self) -> list[int]:
        """The tokens before every text: the start token, and BOS if training rows have it."""
        return [self._start] * (1 + self.wrap * self._added)

    @property
    def _max_answer(self) -> int:
        """Maximum tokens of an answer in a row of the model's length."""
        return self._length - len(self._prefix)

    @property
    def _window(self) -> int:
        """Tokens scored at once; the last one of an autoregressive model is only a target."""
        return self._max_answer + self._added

    def _answer_limit(self, allowed: int) -> int:
        """Maximum tokens of an answer for which the task allows `allowed`."""
        limit = self._length // 2 if allowed > self._max_answer else allowed
        if self.max_gen_toks is not None:
            limit = min(allowed, self.max_gen_toks)
        if limit < allowed:
            self.notes[f"answers of {limit} tokens at most, where the task allows {allowed}"] += 1
        return limit

    def _context(self, text: str, answer_tokens: int) -> list[int]:
        """The prefix and the last tokens of a context that leave room for the answer."""
        ids = self._tokenizer.encode(text)
        return [*self._prefix, *ids[max(0, len(ids) - (self._max_answer - answer_tokens)) :]]

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context and of its continuation, as in lm-eval.

        Blanks at the end of the context belong to the continuation. Both are cut from the tokens of
        the whole text. If a token spans the border, both are encoded separately, so that exactly
        the continuation is scored.
        """
        stem = context.rstrip()
        rest = context[len(stem) :] + continuation
        before, whole = self._tokenizer.encode_batch([stem, stem + rest])
        if not rest:
            raise ValueError(
                f"continuation is empty: got {continuation!r} after {context[-40:]!r}, want a text"
            )
        if whole[: len(before)] == before and len(whole) > len(before):
            return before, whole[len(before) :]
        self.notes[
            "continuations encoded separately, because a token spans their border with the context"
        ] += 1
        return before, self._tokenizer.encode(rest)

    def _score_continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        before, rest = self._split(context, continuation)
        text, window, step = [*before, *rest], self._window, len(rest)
        if step > window:
            step = window // 2
            self.notes[f"continuations of more than {window} tokens, scored {step} at a time"] += 1
        nats, greedy = 0.0, self.greedy
        for first in range(len(before), len(text), step):
            end = min(first + step, len(text))
            ids, count = [*self._prefix, *text[max(0, end - window) : end]], end - first
            nats += self._continuations.nats(ids, count)
            greedy = greedy and self._continuations.is_greedy(ids, count)
        return -nats, greedy

    def _draw(self, contexts: Sequence[Sequence[int]], options: dict[str, Any]) -> list[list[int]]:
        """Rows that begin with the contexts [start token, ...] and end with drawn tokens."""
        pinned = torch.full((len(contexts), self._length), FREE)
        for row, context in zip(pinned, contexts, strict=True):
            row[: len(context)] = torch.tensor(context)
        drawn = sample(
            self.model,
            len(pinned),
            self._length - self._added,
            self.steps,
            self.seed,
            pinned=pinned[:, self._added :],
            batch_size=self.rows,
            sampler=self.sampler,
            device=self.model.device,
            **options,
        )
        return torch.cat([pinned[:, : self._added], drawn.tokens.cpu()], dim=1).tolist()


def _wraps_rows(card: Mapping[str, object]) -> bool:
    """Whether the training rows had BOS and EOS at their ends, by the model's card."""
    match card:
        case {"recipe": {"data": {"wrap": bool(wrap)}}}:
            return wrap
    return False


def _with_temperature(options: dict[str, Any]) -> dict[str, Any]:
    """`do_sample` without a temperature means temperature 1."""
    if options.get("do_sample") and "temperature" not in options:
        return options | {"temperature": 1.0}
    return options


def _sampling_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `sample` from lm-eval's; without `do_sample` the most probable token is taken."""
    if not options.get("do_sample") or not options.get("temperature"):
        return {"top_k": 1}
    top_k, top_p = int(options.get("top_k") or 0), options.get("top_p")
    sampling = {
        "temperature": float(options["temperature"]),
        "top_p": 1.0 if top_p is None else float(top_p),
    }
    return sampling | ({"top_k": top_k} if top_k > 0 else {})


def _cut(text: str, until: Iterable[str], end: str) -> str:
    """The text before the first of the strings that end it."""
    positions = [text.find(mark) for mark in (*until, end) if mark]
    return text[: min((position for position in positions if position >= 0), default=len(text))]
