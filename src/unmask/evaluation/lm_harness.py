"""Our models in EleutherAI's lm-evaluation-harness, registered there as "unmask". Needs the extra `lm-eval`.

Log-likelihoods of diffusion models are bounds, by Monte Carlo; those of autoregressive models are exact. Texts are
drawn by any sampler, a batch at a time. `harness()` registers the model: `unmask eval lm-harness` does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.evaluation.conditional import conditional_nats, conditional_nelbo
from unmask.models.pretrained import CausalModel, Model, load
from unmask.rng import address
from unmask.samplers.canvas import FREE
from unmask.samplers.loop import sample
from unmask.text.tokenizers import Tokenizer, start_token

_STREAM = 0x4C4D  # keeps the noise of these estimates apart from other uses of a seed


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
    """A model, and how it is asked.

    model       a run or model directory, a hub id, unmask:teacher; or a loaded model
    draws       noise levels behind each log-likelihood of a diffusion model
    greedy      also find out whether a continuation is the greedy one, a call a token: what accuracy on LAMBADA needs;
                False answers "no" throughout
    steps, sampler  how texts are drawn; the canvas is a row of the model's length
    seed        of noise and latents: a log-likelihood depends on its text only, the i-th text drawn is sample i;
                neither depends on batch_size
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
        **_ignored_by_us: object,  # stock lm-eval passes max_batch_size to every model
    ) -> None:
        if unknown := sorted(_ignored_by_us.keys() - {"max_batch_size"}):
            raise ValueError(f"the model 'unmask' takes no argument {', '.join(unknown)}")
        self.model = load(model, device=device or "cpu") if isinstance(model, str) else model
        self.draws, self.greedy, self.steps, self.sampler, self.seed = draws, greedy, steps, sampler, seed
        self.rows = int(batch_size)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log p of the continuation given the context, whether it is the greedy continuation) of each request."""
        return [self._continued(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of whole texts, window by window of the model's length; each window begins anew."""
        return [-math.fsum(map(self._nats, *self._windows(request.args[0]))) for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Texts behind the contexts, cut before the first of the `until` strings."""
        answers: list[str] = [""] * len(requests)
        settings: dict[tuple[tuple[str, Any], ...], list[int]] = {}
        for i, request in enumerate(requests):
            settings.setdefault(tuple(sorted(_drawn(request.args[1]).items())), []).append(i)
        for options, places in settings.items():
            rooms = [int(request.args[1].get("max_gen_toks", 256)) for request in (requests[i] for i in places)]
            contexts = [self._context(requests[i].args[0], room) for i, room in zip(places, rooms, strict=True)]
            drawn = self._fill(contexts, dict(options))
            for i, context, room, row in zip(places, contexts, rooms, drawn.tolist(), strict=True):
                text = self._tokenizer.decode(row[len(context) : len(context) + room])
                answers[i] = _cut(text, requests[i].args[1].get("until") or [], self._end)
        return answers

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.model.tokenizer is None:
            raise ValueError(
                "the harness speaks in texts, and this model has no tokenizer: `unmask convert --tokenizer`"
            )
        return self.model.tokenizer

    @property
    def _end(self) -> str:
        return "" if self._tokenizer.eos_id is None else self._tokenizer.decode([self._tokenizer.eos_id])

    @property
    def _length(self) -> int:
        return self.model.network.shape.length

    @property
    def _start(self) -> int:
        """What stands before every text, as in training."""
        model = self.model
        mask_id = model.predictor.mask_id if isinstance(model, CausalModel) else model.denoiser.mask_id
        return start_token(self._tokenizer, model.network.shape.vocab_size, mask_id)

    def _context(self, text: str, room: int) -> list[int]:
        """The last tokens of a context that leave `room` for what follows, behind the start token."""
        left = self._length - 1 - room
        if left < 0:
            raise ValueError(f"max_gen_toks = {room} does not fit into the model's {self._length} tokens: lower it")
        ids = self._tokenizer.encode(text)
        return [self._start, *ids[max(0, len(ids) - left) :]]

    def _continued(self, context: str, continuation: str) -> tuple[float, bool]:
        said = context.rstrip() if context.strip() else context  # blanks belong to what follows, as in lm-eval
        whole = self._tokenizer.encode(context + continuation)
        given = len(self._tokenizer.encode(said))
        count = len(whole) - given
        if count < 1:
            raise ValueError(f"the continuation {continuation!r} has no token of its own behind {context[-40:]!r}")
        if count > self._length - 1:
            raise ValueError(f"a continuation of {count} tokens does not fit into the model's {self._length}")
        ids = [self._start, *whole[-min(len(whole), self._length - 1) :]]
        return -self._nats(ids, count), self.greedy and self._is_greedy(ids, count)

    def _windows(self, text: str) -> tuple[Iterable[list[int]], Iterable[int]]:
        ids, size = self._tokenizer.encode(text), self._length - 1
        parts = [ids[first : first + size] for first in range(0, len(ids), size)]
        return [[self._start, *part] for part in parts], [len(part) for part in parts]

    def _nats(self, ids: list[int], count: int) -> float:
        """-log p of the last `count` tokens, a bound for diffusion; the noise is addressed by the text itself."""
        x0 = torch.tensor(ids, device=self.model.network.head.weight.device)
        if isinstance(self.model, CausalModel):
            return conditional_nats(self.model.predictor, x0, count)
        target = torch.arange(len(ids), device=x0.device) >= len(ids) - count
        generator = torch.Generator(x0.device).manual_seed(int(address(_STREAM, self.seed, *ids, count)))
        estimates = conditional_nelbo(
            self.model.denoiser, self.model.process, x0, target,
            draws=self.draws, batch_size=self.rows, generator=generator,
        )  # fmt: skip
        return float(estimates.mean())

    def _is_greedy(self, ids: list[int], count: int) -> bool:
        """Whether the model writes these `count` tokens: arg max, one a call, the surest first (diffusion)."""
        pinned = torch.tensor([[*ids[:-count], *[FREE] * count]])
        order = "confidence" if isinstance(self.model, Model) and self.model.denoiser.mask_id is not None else None
        device = self.model.network.head.weight.device
        drawn = sample(self.model, 1, len(ids), count, pinned=pinned, top_k=1, sampler=order, device=device)
        return bool((drawn.tokens[0].cpu() == torch.tensor(ids)).all())

    def _fill(self, contexts: Sequence[Sequence[int]], options: dict[str, Any]) -> Tensor:
        pinned = torch.full((len(contexts), self._length), FREE)
        for row, context in zip(pinned, contexts, strict=True):
            row[: len(context)] = torch.tensor(context)
        sampler = self.sampler if isinstance(self.model, Model) else None
        drawn = sample(
            self.model, len(contexts), self._length, self.steps, self.seed, pinned=pinned, sampler=sampler,
            batch_size=self.rows, device=self.model.network.head.weight.device, **options,
        )  # fmt: skip
        return drawn.tokens.cpu()


def _drawn(options: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's words for a draw in ours: without `do_sample` the likeliest token is taken."""
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample") or temperature == 0:
        return {"top_k": 1}
    return {"temperature": temperature, "top_p": float(options.get("top_p") or 1.0)}


def _cut(text: str, until: str | Iterable[str], end: str) -> str:
    """The text before the first of the strings that end it."""
    ends = [until] if isinstance(until, str) else [*until]
    places = [text.find(mark) for mark in (*ends, end) if mark]
    return text[: min((place for place in places if place >= 0), default=len(text))]
