"""Our models in EleutherAI's lm-evaluation-harness, registered there as "unmask". Needs the extra `lm-eval`.

Log-likelihoods of diffusion models are bounds, by Monte Carlo; those of autoregressive models are exact. Texts are
drawn by any sampler, a batch at a time. `harness()` registers the model: `unmask eval lm-harness` does it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, repeat
from typing import Any

import torch

from unmask.data.tokenizers import Tokenizer, start_token
from unmask.evaluation.conditional_likelihood import conditional_nats, conditional_nelbo
from unmask.models.model import CausalModel, Model, load
from unmask.rng import generator
from unmask.samplers.inputs import FREE
from unmask.samplers.sample import sample


@cache
def harness() -> Any:
    """The class of `Answers` that lm-eval knows as the model "unmask"; ModuleNotFoundError without the extra."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the harness is the package lm-eval: pip install 'unmask[lm-eval]' ({error})"
        ) from error

    class Harness(Answers, LM):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            LM.__init__(self)
            Answers.__init__(self, *given, **named)

    return register_model("unmask")(Harness)


class Answers:
    """The answers of a model to the requests of lm-eval.

    model       a run or model directory, a hub id, unmask:teacher; or a loaded model
    draws       noise levels behind each log-likelihood of a diffusion model
    greedy      also find out whether a continuation is the greedy one, a call a token: what accuracy on LAMBADA needs;
                False answers "no" throughout, and so does uniform diffusion, which has no such continuation
    steps, sampler  how texts are drawn; the canvas is a row of the model's length
    seed        of noise and latents: a log-likelihood depends on its text only, the i-th text drawn is sample i;
                neither depends on batch_size, but for the rounding of products (exactly so with batch_size = 1)
    max_gen_toks  tokens of a drawn answer at most. None: those of the task; where these do not fit into the model's
                length behind a start token, half of the length
    wrap        whether an autoregressive model of ours was trained on rows that begin with BOS (`data.wrap`): then BOS
                stands behind the start token. None: as the model's card says

    `notes` counts the requests that were not read as the task has them, by the change that was made.
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
        **_ignored_by_us: object,  # stock lm-eval passes max_batch_size to every model
    ) -> None:
        if unknown := sorted(_ignored_by_us.keys() - {"max_batch_size"}):
            raise ValueError(f"the model 'unmask' takes no argument {', '.join(unknown)}")
        self.model = load(model, device=device or "cpu") if isinstance(model, str) else model
        self.draws, self.greedy, self.steps, self.sampler, self.seed = (
            draws,
            greedy,
            steps,
            sampler,
            seed,
        )
        if not str(batch_size).isdigit():
            raise ValueError(
                f"batch_size is the number of rows a network call: want a number, got {batch_size!r}"
            )
        self.rows = int(batch_size)
        self.max_gen_toks, self.notes = max_gen_toks, Counter[str]()
        self.wrap = _wrapped(self.model.card) if wrap is None else wrap
        if sampler is not None and isinstance(self.model, CausalModel):
            raise ValueError(
                f"sampler has no effect: got {sampler!r}, and the model is autoregressive; leave it out"
            )
        if max_gen_toks is not None and not 1 <= max_gen_toks <= self._longest:
            raise ValueError(
                f"max_gen_toks is out of range: got {max_gen_toks}, want 1 .. {self._longest}, the tokens that the "
                "model's length leaves behind a start token"
            )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log p of the continuation given the context, whether it is the greedy continuation) of each request."""
        return [self._continued(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of whole texts, in lm-eval's windows: the first behind the start token, each token counted once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        answers = []
        for request in requests:
            ids = self._tokenizer.encode(request.args[0])
            windows = map(
                make_disjoint_window, get_rolling_token_windows(ids, self._start, self._room, 1)
            )
            befores = chain([self._before], repeat(None))  # of the first window
            pairs = (
                (before or given, told)
                for before, (given, told) in zip(befores, windows, strict=False)
            )
            answers.append(
                -math.fsum(self._nats([*given, *told], len(told)) for given, told in pairs)
            )
        return answers

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Texts behind the contexts, cut before the first of the `until` strings."""
        from lm_eval.models.utils import normalize_gen_kwargs

        answers: list[str] = [""] * len(requests)
        asked = [dict(request.args[1]) for request in requests]
        wanted = [
            normalize_gen_kwargs(_sampled(each), min(256, self._length // 2)) for each in asked
        ]
        wanted = [each | {"max_gen_toks": self._most(each["max_gen_toks"])} for each in wanted]
        settings: dict[tuple[tuple[str, Any], ...], list[int]] = {}
        for i, options in enumerate(wanted):
            settings.setdefault(tuple(sorted(_drawn(options).items())), []).append(i)
        for drawn_by, places in settings.items():
            contexts = [
                self._context(requests[i].args[0], wanted[i]["max_gen_toks"]) for i in places
            ]
            drawn = self._fill(contexts, dict(drawn_by))
            for i, context, row in zip(places, contexts, drawn, strict=True):
                text = self._tokenizer.decode(
                    row[len(context) : len(context) + wanted[i]["max_gen_toks"]]
                )
                answers[i] = _cut(text, wanted[i]["until"], self._end)
        return answers

    @property
    def words(self) -> str:
        """How answers are scored and drawn."""
        if isinstance(self.model, CausalModel):
            return f"exact log-likelihoods, a call a token of a text, seed {self.seed}"
        by = "" if self.sampler is None else f" by {self.sampler}"
        return (
            f"{self.draws} draws a log-likelihood, {self.steps} steps a text{by}, seed {self.seed}"
        )

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.model.tokenizer is None:
            raise ValueError(
                "the harness speaks in texts, and this model has no tokenizer: `unmask convert --tokenizer`"
            )
        return self.model.tokenizer

    @property
    def _end(self) -> str:
        return (
            ""
            if self._tokenizer.eos_id is None
            else self._tokenizer.decode([self._tokenizer.eos_id])
        )

    @property
    def _length(self) -> int:
        return self.model.length

    @property
    def _home(self) -> torch.device:
        return self.model.device

    @property
    def _start(self) -> int:
        """What stands before every text, as in training."""
        return start_token(self._tokenizer, self.model.vocab_size, self.model.mask_id)

    @property
    def _before(self) -> list[int]:
        """The tokens before every text, as in training: the start token, and BOS where rows begin with it."""
        twice = self.wrap and isinstance(self.model, CausalModel)
        return [self._start, self._start] if twice else [self._start]

    @property
    def _longest(self) -> int:
        """The tokens that a canvas of the model's length leaves for an answer."""
        return self._length - len(self._before)

    @property
    def _room(self) -> int:
        """The tokens of a text that the model reads at a time; of an autoregressive one the last is only a target."""
        return self._longest + isinstance(self.model, CausalModel)

    def _most(self, wanted: int) -> int:
        """The tokens of a drawn answer for which a task wants `wanted`."""
        longest = self._length // 2 if wanted > self._longest else wanted
        most = longest if self.max_gen_toks is None else min(wanted, self.max_gen_toks)
        if most < wanted:
            self.notes[f"answers of {most} tokens at most, where the task allows {wanted}"] += 1
        return most

    def _context(self, text: str, room: int) -> list[int]:
        """The last tokens of a context that leave `room` for what follows, behind the start token."""
        left = self._longest - room
        ids = self._tokenizer.encode(text)
        return [*self._before, *ids[max(0, len(ids) - left) :]]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context, and of what follows with the blanks before it, as in lm-eval.

        They are cut out of the tokens of the whole text. Where a token lies across the border, both are encoded alone:
        the continuation is scored whole, and nothing else.
        """
        said = context.rstrip()
        follows = context[len(said) :] + continuation
        given, whole = self._tokenizer.encode_batch([said, said + follows])
        if not follows:
            raise ValueError(
                f"the continuation {continuation!r} is empty behind {context[-40:]!r}: want a text"
            )
        if whole[: len(given)] == given and len(whole) > len(given):
            return given, whole[len(given) :]
        self.notes[
            "continuations encoded alone, where a token lies across their border with the context"
        ] += 1
        return given, self._tokenizer.encode(follows)

    def _continued(self, context: str, continuation: str) -> tuple[float, bool]:
        given, follows = self._pair(context, continuation)
        text, room, step = [*given, *follows], self._room, len(follows)
        if step > room:
            step = room // 2
            self.notes[f"continuations of more than {room} tokens, scored {step} at a time"] += 1
        nats, greedy = 0.0, self.greedy
        for first in range(len(given), len(text), step):
            behind = min(first + step, len(text))
            ids, count = [*self._before, *text[max(0, behind - room) : behind]], behind - first
            nats += self._nats(ids, count)
            greedy = greedy and self._is_greedy(ids, count)
        return -nats, greedy

    def _nats(self, ids: list[int], count: int) -> float:
        """-log p of the last `count` tokens, a bound for diffusion; the noise is addressed by the text itself."""
        x0 = torch.tensor(ids, device=self._home)
        if isinstance(self.model, CausalModel):
            return conditional_nats(self.model.predictor, x0, count)
        target = torch.arange(len(ids), device=x0.device) >= len(ids) - count
        digest = hashlib.blake2b(
            json.dumps([self.seed, count, ids]).encode(), digest_size=8
        ).digest()
        estimates = conditional_nelbo(
            self.model.denoiser, self.model.process, x0, target, draws=self.draws, batch_size=self.rows,
            generator=generator(int.from_bytes(digest, "little", signed=True), device=x0.device),
        )  # fmt: skip
        return float(estimates.mean())

    @torch.no_grad()
    def _is_greedy(self, ids: list[int], count: int) -> bool:
        """Whether the model writes these `count` tokens: the arg max, a token a call; with MASKs the surest first.

        Uniform noise has no such continuation, since it begins with random tokens: never.
        """
        x0 = torch.tensor([ids], device=self._home)
        if isinstance(self.model, CausalModel):
            prediction = self.model.predictor(x0[:, :-1])
            last = torch.arange(x0.shape[1] - 1 - count, x0.shape[1] - 1, device=x0.device)
            return bool((prediction.log_p(last).argmax(-1) == x0[0, -count:]).all())
        mask_id = self.model.denoiser.mask_id
        if mask_id is None:
            return False
        z = x0.clone()
        z[:, -count:] = mask_id
        for left in range(count, 0, -1):
            told = torch.full((1,), 1 - (left - 0.5) / count, dtype=torch.float64, device=x0.device)
            places = (z[0] == mask_id).nonzero().squeeze(-1)
            best, token = self.model.denoiser(z, told).log_p(places).max(-1)
            place = places[best.argmax()]
            if token[best.argmax()] != x0[0, place]:
                return False
            z[0, place] = x0[0, place]
        return True

    def _fill(self, contexts: Sequence[Sequence[int]], options: dict[str, Any]) -> list[list[int]]:
        """Contexts [start token, ..] -> rows that begin with them."""
        masked = isinstance(self.model, Model)
        pinned = torch.full((len(contexts), self._length), FREE)
        for row, context in zip(pinned, contexts, strict=True):
            row[: len(context)] = torch.tensor(context)
        canvas = (
            pinned if masked else pinned[:, 1:]
        )  # an autoregressive model reads its start token by itself
        drawn = sample(
            self.model, len(canvas), canvas.shape[1], self.steps, self.seed, pinned=canvas, batch_size=self.rows,
            sampler=self.sampler, device=self._home, **options,
        )  # fmt: skip
        return torch.cat(
            [pinned[:, : pinned.shape[1] - canvas.shape[1]], drawn.tokens.cpu()], dim=1
        ).tolist()


def _wrapped(card: Mapping[str, object]) -> bool:
    """Whether the rows of a model's training had BOS and EOS at their ends, by its card."""
    match card:
        case {"recipe": {"data": {"wrap": bool(wrap)}}}:
            return wrap
    return False


def _sampled(options: dict[str, Any]) -> dict[str, Any]:
    """`do_sample` without a temperature means temperature 1, as everywhere."""
    return options | (
        {"temperature": 1.0} if options.get("do_sample") and "temperature" not in options else {}
    )


def _drawn(options: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's normalised words for a draw in ours: without `do_sample` the likeliest token is taken."""
    if not options.get("do_sample") or not options.get("temperature"):
        return {"top_k": 1}
    top_k, top_p = int(options.get("top_k") or 0), options.get("top_p")
    drawn = {
        "temperature": float(options["temperature"]),
        "top_p": 1.0 if top_p is None else float(top_p),
    }
    return drawn | ({"top_k": top_k} if top_k > 0 else {})


def _cut(text: str, until: Iterable[str], end: str) -> str:
    """The text before the first of the strings that end it."""
    places = [text.find(mark) for mark in (*until, end) if mark]
    return text[: min((place for place in places if place >= 0), default=len(text))]
