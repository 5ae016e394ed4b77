"""Sources whose law is known: Markov chains and template grammars, with exact conditionals.

    source = random_chain(vocab_size=8, order=1, concentration=0.4, seed=0)
    x = source.sample(n=1000, length=16, generator=rng.generator(0))
    source.log_prob(x).mean() / 16, -source.entropy(16)      # nats a token, equal up to chance

All are one machine, a hidden Markov model: a state that moves, and a token a state. Noisy text enters as *evidence*,
e [B, L, V] with e_i(v) = P(what is seen at i | x_i = v): ones under a MASK, one token elsewhere; under uniform noise
alpha [v = z_i] + (1 - alpha) / V. Forward-backward over evidence (Rabiner 1989, "A tutorial on hidden Markov models",
with his scaling) is exact for both processes, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.types import PerSequence, Probs, Tokens

LEAST = 1e-12  # probability that a random law gives to any token: no text is impossible
_HELD = 2**24  # numbers of messages held at a time, 128 MiB in float64
_SETTLED, _PATIENCE = 1e-14, 200_000  # of the power iteration


class Moves(Protocol):
    """How the state moves: p(s' | s) over S states, as two products and a draw. Messages are [B, S]."""

    def push(self, message: Tensor) -> Tensor:
        """sum_s m(s) p(s' | s): a law one token on."""
        ...

    def pull(self, message: Tensor) -> Tensor:
        """sum_s' p(s' | s) m(s'): an expectation, seen from one token before."""
        ...

    def draw(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The next states [n]."""
        ...


@dataclass(frozen=True)
class Dense:
    """Any moves: `matrix` [S, S], rows sum to 1."""

    matrix: Tensor

    def push(self, message: Tensor) -> Tensor:
        return message @ self.matrix

    def pull(self, message: Tensor) -> Tensor:
        return message @ self.matrix.T

    def draw(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _draw(self.matrix[state], generator)


@dataclass(frozen=True)
class Sliding:
    """A window of two tokens: state a V + b goes to b V + c with p(c | a, b) = `table` [V, V, V].

    V^3 products a message where the dense matrix [V^2, V^2] has V^4: at V = 64 that is 64 times fewer.
    """

    table: Tensor

    def push(self, message: Tensor) -> Tensor:
        size = len(self.table)
        return torch.einsum("nab,abc->nbc", message.view(-1, size, size), self.table).flatten(1)

    def pull(self, message: Tensor) -> Tensor:
        size = len(self.table)
        return torch.einsum("nbc,abc->nab", message.view(-1, size, size), self.table).flatten(1)

    def draw(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        size = len(self.table)
        return state % size * size + _draw(self.table.flatten(0, 1)[state], generator)


@dataclass(frozen=True)
class SyntheticSource:
    """p(x) of texts of any length L: s_1 ~ start, s_{i+1} ~ moves(s_i), x_i ~ emission(s_i).

    start     [S] float64
    emission  [S, V] float64, rows sum to 1
    told_by   the number of first tokens that tell the state, after which each token tells the next: with it the
              entropy is a finite sum (in a general hidden Markov model it is not)
    """

    start: Tensor
    moves: Moves
    emission: Tensor
    told_by: int

    @property
    def vocab_size(self) -> int:
        """V, tokens of the text; MASK is none of them."""
        return self.emission.shape[1]

    def sample(self, n: int, length: int, generator: torch.Generator | None = None) -> Tokens:
        """n texts of p, int64 [n, length]."""
        _check_length(length)
        state = _draw(self.start.expand(n, -1), generator)
        tokens = [_draw(self.emission[state], generator)]
        for _ in range(length - 1):
            state = self.moves.draw(state, generator)
            tokens.append(_draw(self.emission[state], generator))
        return torch.stack(tokens, dim=1)

    def log_prob(self, x: Tokens) -> PerSequence:
        """log p(x) of texts [n, L] -> [n] nats; -inf for a text that cannot be."""
        return self.log_likelihood(F.one_hot(x, self.vocab_size).double())

    def log_likelihood(self, evidence: Probs) -> PerSequence:
        """log sum_x p(x) prod_i e_i(x_i), of evidence [B, L, V] -> [B] nats."""
        return torch.cat([self._filter(part)[1] for part in self._blocks(evidence)])

    def conditionals(self, evidence: Probs) -> Tensor:
        """log p(x_i = v | the evidence at all positions but i), [B, L, V] -> [B, L, V] nats, normalised; -inf: never.

        The leave-one-out law, which is what a `Denoiser` promises; where nothing is seen at i it is plain p(x_i | z).
        ValueError for evidence that no text can give.
        """
        return torch.cat([self._conditionals(part) for part in self._blocks(evidence)])

    def _conditionals(self, evidence: Probs) -> Tensor:
        ahead, log_likelihood = self._filter(evidence)
        if not bool(log_likelihood.isfinite().all()):
            raise ValueError(
                "the evidence is what is seen of a text: want evidence of probability > 0 under the source, got a row "
                "of probability 0; give the source laws without zeros"
            )
        seen = evidence @ self.emission.T
        behind = torch.ones_like(ahead[-1])
        laws = []
        for i in reversed(range(evidence.shape[1])):
            law = (ahead[i] * behind) @ self.emission
            laws.append((law / law.sum(-1, keepdim=True)).log())
            behind = self.moves.pull(behind * seen[:, i])
            behind = behind / behind.amax(-1, keepdim=True)
        return torch.stack(laws[::-1], dim=1)

    def _filter(self, evidence: Probs) -> tuple[list[Tensor], PerSequence]:
        """p(s_i | evidence before i), L times [B, S], and the log-likelihood [B] of all of it."""
        seen = evidence @ self.emission.T
        message, total = self.start.expand(len(evidence), -1), evidence.new_zeros(len(evidence))
        ahead = []
        for i in range(evidence.shape[1]):
            ahead.append(message)
            joint = message * seen[:, i]
            scale = joint.sum(-1, keepdim=True)
            total = total + scale.squeeze(-1).log()
            message = self.moves.push(joint / scale.where(scale > 0, 1.0))
        return ahead, total

    def _blocks(self, evidence: Probs) -> Sequence[Probs]:
        if evidence.dim() != 3 or evidence.shape[2] != self.vocab_size:
            raise ValueError(
                f"evidence has shape [B, L, V] with V = {self.vocab_size}, got {tuple(evidence.shape)}"
            )
        blocks: tuple[Probs, ...] = evidence.double().split(
            max(1, _HELD // (evidence.shape[1] * len(self.start)))
        )
        return blocks

    def marginals(self, length: int) -> Tensor:
        """p(x_i = v), [length, V]."""
        return torch.stack(self._laws(length)) @ self.emission

    def pairs(self, length: int) -> Tensor:
        """The mean over i < length of p(x_i = a, x_{i+1} = b), [V, V]: the law of an adjacent pair."""
        if length < 2:
            raise ValueError(f"a pair is two tokens: want length >= 2, got {length}")
        state = torch.stack(self._laws(length)[:-1]).mean(0)
        return (self.emission * state[:, None]).T @ self._next_token()

    def entropy(self, length: int) -> float:
        """-E log p(x) / L of texts of `length` tokens, nats a token, exactly.

        The first `told_by` tokens by enumeration; every later one adds E[H(next token | state)].
        """
        _check_length(length)
        first = min(self.told_by, length)
        texts = torch.tensor([*product(range(self.vocab_size), repeat=first)])
        log_p = self.log_prob(texts)
        total = _entropy(log_p.exp())
        each = _entropy(self._next_token())
        for state in self._laws(length)[first - 1 : -1]:
            total = total + state @ each
        return float(total) / length

    def rate(self, length: int) -> float:
        """H(x_L | the tokens before), nats: the entropy rate of a stationary chain whose order is below L."""
        if length < 2:
            raise ValueError(
                f"the rate is the entropy of a token after others: want length >= 2, got {length}"
            )
        return length * self.entropy(length) - (length - 1) * self.entropy(length - 1)

    def _laws(self, length: int) -> list[Tensor]:
        """p(s_i) [S] for i = 1 .. length."""
        laws = [self.start]
        for _ in range(length - 1):
            laws.append(self.moves.push(laws[-1][None])[0])
        return laws

    def _next_token(self) -> Tensor:
        """p(x_{i+1} | s_i), [S, V]."""
        return self.moves.pull(self.emission.T.contiguous()).T


def markov_chain(transition: Tensor, start: Tensor | None = None) -> SyntheticSource:
    """A chain of order 1, `transition` [V, V] = p(b | a), or of order 2, [V, V, V] = p(c | a, b).

    start  the law of the first token [V], or at order 2 that of (the token before the text, the first) [V, V];
           None: the stationary one, so that every token has one law
    """
    order, size = transition.dim() - 1, transition.shape[-1]
    if order not in (1, 2) or len({*transition.shape}) != 1 or size < 2:
        raise ValueError(
            f"a transition table is [V, V] (order 1) or [V, V, V] (order 2) with V >= 2: got {tuple(transition.shape)}"
        )
    _check_laws("transition", transition)
    moves: Moves = Dense(transition.double()) if order == 1 else Sliding(transition.double())
    if start is None:
        start = _stationary(moves, size**order)
    if start.numel() != size**order:
        raise ValueError(f"start is a law of {size**order} states: got shape {tuple(start.shape)}")
    _check_laws("start", start.flatten())
    last = torch.arange(size**order) % size
    return SyntheticSource(
        start.double().flatten(), moves, F.one_hot(last, size).double(), told_by=order
    )


def random_chain(
    vocab_size: int, order: int = 1, concentration: float = 0.4, seed: int = 0
) -> SyntheticSource:
    """A stationary chain whose rows are Dirichlet(concentration): the smaller, the surer the next token."""
    if order not in (1, 2):
        raise ValueError(
            f"order is the number of tokens that the next one depends on: want 1 or 2, got {order}"
        )
    rows = _dirichlet(
        np.random.default_rng(seed % 2**64), vocab_size, vocab_size**order, concentration
    )
    return markov_chain(rows.view([vocab_size] * (order + 1)))


def grammar(weights: Tensor, templates: Sequence[Tensor]) -> SyntheticSource:
    """Text of sentences: a template k ~ `weights` [K], each slot j filled by its own law templates[k] [J_k, V]; again.

    The text begins with a sentence and may end inside one. The laws of the first slots share no token, so that the
    first token tells the template and with it the rest of the sentence's slots.
    """
    _check_laws("weights", weights)
    if len(weights) != len(templates) or not all(t.dim() == 2 and len(t) for t in templates):
        raise ValueError(
            f"templates are [J >= 1, V], one for each of the {len(weights)} weights: got {len(templates)}"
        )
    emission = torch.cat([template.double() for template in templates])
    _check_laws("templates", emission)
    ends = torch.tensor([len(template) for template in templates]).cumsum(0)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    if int((emission[first] > 0).sum(0).max()) > 1:
        raise ValueError(
            "the first token tells the template: want first slots that share no token, got a shared one"
        )
    start = torch.zeros(len(emission), dtype=torch.float64).index_copy(0, first, weights.double())
    matrix = torch.eye(len(emission), dtype=torch.float64).roll(1, dims=1)
    matrix[ends - 1] = start
    return SyntheticSource(start, Dense(matrix), emission, told_by=1)


def random_grammar(
    vocab_size: int, concentration: float = 0.1, slip: float = 0.02, seed: int = 0
) -> SyntheticSource:
    """V // 4 templates (at least 2) of 3 to 6 slots with Dirichlet(concentration) fillings.

    slip  share of a uniform token in every slot but the first: no text is impossible
    """
    if not 0 < slip < 1:
        raise ValueError(
            f"slip is the share of a uniform token in a slot: want 0 < slip < 1, got {slip}"
        )
    dice = np.random.default_rng(seed % 2**64)
    count = max(2, vocab_size // 4)
    opens = torch.arange(vocab_size) % count
    templates = []
    for k in range(count):
        slots = _dirichlet(dice, vocab_size, int(dice.integers(3, 7)), concentration)
        slots = (1 - slip) * slots + slip / vocab_size
        slots[0] = slots[0] * (opens == k)
        slots[0] /= slots[0].sum()
        templates.append(slots)
    return grammar(_dirichlet(dice, count, 1, 5.0)[0], templates)


def _stationary(moves: Moves, states: int) -> Tensor:
    """The law that stays: the power iteration of the lazy chain, which no period keeps from settling."""
    law = torch.full((1, states), 1 / states, dtype=torch.float64)
    for _ in range(_PATIENCE):
        after = (law + moves.push(law)) / 2
        if float((after - law).abs().sum()) < _SETTLED:
            return after[0] / after.sum()
        law = after
    raise ValueError(
        "the chain hardly mixes, and its stationary law was not found: give start, or raise concentration"
    )


def _dirichlet(dice: np.random.Generator, size: int, n: int, concentration: float) -> Tensor:
    """n laws over `size` tokens, [n, size] float64, no entry below about LEAST."""
    if size < 2:
        raise ValueError(
            f"vocab_size counts the tokens of the source, MASK excluded: want vocab_size >= 2, got {size}"
        )
    if not 0 < concentration < math.inf:
        raise ValueError(
            f"concentration is out of range: got {concentration}, want a finite Dirichlet parameter > 0"
        )
    laws = torch.from_numpy(dice.dirichlet(np.full(size, concentration), n)) + LEAST
    return laws / laws.sum(-1, keepdim=True)


def _draw(laws: Tensor, generator: torch.Generator | None) -> Tensor:
    """A token of each law [n, V] -> [n], in float64."""
    below = laws.cumsum(-1)
    u = 1 - torch.rand(len(laws), 1, generator=generator, dtype=torch.float64)  # in (0, 1]
    return torch.searchsorted(below, u * below[:, -1:]).squeeze(-1)


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def _check_length(length: int) -> None:
    if length < 1:
        raise ValueError(
            f"length is the number of tokens of a text: want length >= 1, got {length}"
        )


def _check_laws(name: str, laws: Tensor) -> None:
    error = float((laws.double().sum(-1) - 1).abs().max())
    if not (bool((laws >= 0).all()) and error < 1e-6):
        raise ValueError(
            f"{name} holds laws: want numbers >= 0 that sum to 1 in the last axis, off by {error:.3g}"
        )
