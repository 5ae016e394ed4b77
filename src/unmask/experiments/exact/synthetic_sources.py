"""Markov chains and template grammars with exact probabilities and conditionals.

    source = random_chain(vocab_size=8, order=1, concentration=0.4, seed=0)
    x = source.sample(n=1000, length=16, generator=rng.generator(0))
    source.log_prob(x).mean() / 16, -source.entropy(16)      # nats a token, equal up to chance

All of them are hidden Markov models: a state changes from token to token, and each state emits one
token. Noisy text enters as *evidence*, e [B, L, V] with e_i(v) = P(z_i | x_i = v):

    at a MASK               1
    at a visible token      [v = z_i], one-hot
    under uniform noise     alpha [v = z_i] + (1 - alpha) / V

The forward-backward algorithm over evidence, in float64, is exact for both processes. Source:
Rabiner 1989, "A tutorial on hidden Markov models", with its scaling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.limits import check_range, whole
from unmask.types import PerSequence, Probs, Tokens

# Least probability of any token in a random distribution, so that no text is impossible.
LEAST = 1e-12
_BLOCK = 2**24  # numbers in the messages of one block of rows, 128 MiB in float64
_TOLERANCE, _ITERATIONS = 1e-14, 200_000  # of the power iteration


@dataclass(frozen=True)
class SyntheticSource:
    """p(x) of texts of any length L: s_1 ~ start, s_{i+1} ~ transition(s_i), x_i ~ emission(s_i).

    All probabilities are float64.

    Attributes:
        start: [S].
        transition: p(s' | s) [S, S]. Or p(c | a, b) [V, V, V] of states of two tokens, S = V^2: the
            state a V + b changes to b V + c. This costs V^3 products a step, and a matrix V^4.
        emission: [S, V], rows sum to 1.
        identifying_prefix: The number of first tokens that determine the state. Each later token
            must determine the next state. Then the entropy is a finite sum.
    """

    start: Tensor
    transition: Tensor
    emission: Tensor
    identifying_prefix: int

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens without MASK."""
        return self.emission.shape[1]

    def sample(self, n: int, length: int, generator: torch.Generator | None = None) -> Tokens:
        """Draw n texts, int64 [n, length]."""
        whole("length", length, "the tokens of a text")
        state = _draw(self.start.expand(n, -1), generator)
        tokens = [_draw(self.emission[state], generator)]
        for _ in range(length - 1):
            state = self._next_state(state, generator)
            tokens.append(_draw(self.emission[state], generator))
        return torch.stack(tokens, dim=1)

    def log_prob(self, x: Tokens) -> PerSequence:
        """log p(x) of texts [n, L] -> [n] nats; -inf for an impossible text."""
        return self.log_likelihood(F.one_hot(x, self.vocab_size).double())

    def log_likelihood(self, evidence: Probs) -> PerSequence:
        """log sum_x p(x) prod_i e_i(x_i), of evidence [B, L, V] -> [B] nats."""
        return torch.cat([self._filter(part)[1] for part in self._blocks(evidence)])

    def conditionals(self, evidence: Probs) -> Tensor:
        """log p(x_i = v | evidence at other positions), [B, L, V] -> [B, L, V] nats, normalised.

        The leave-one-out distribution that a `Denoiser` returns; at a MASK it is p(x_i | z).
        Impossible tokens have -inf. ValueError for evidence of probability 0.
        """
        return torch.cat([self._conditionals(part) for part in self._blocks(evidence)])

    def _conditionals(self, evidence: Probs) -> Tensor:
        forward, log_likelihood = self._filter(evidence)
        if not bool(log_likelihood.isfinite().all()):
            raise ValueError(
                "evidence has a row of probability 0 under the source: want probability > 0; use a "
                "source whose probabilities are all positive"
            )
        likelihood = evidence @ self.emission.T
        backward = torch.ones_like(forward[-1])
        rows = []
        for i in reversed(range(evidence.shape[1])):
            row = (forward[i] * backward) @ self.emission
            rows.append((row / row.sum(-1, keepdim=True)).log())
            backward = _pull(self.transition, backward * likelihood[:, i])
            backward = backward / backward.amax(-1, keepdim=True)
        return torch.stack(rows[::-1], dim=1)

    def _filter(self, evidence: Probs) -> tuple[list[Tensor], PerSequence]:
        """p(s_i | evidence before i), L times [B, S], and the log-likelihood [B]."""
        likelihood = evidence @ self.emission.T
        message, total = self.start.expand(len(evidence), -1), evidence.new_zeros(len(evidence))
        forward = []
        for i in range(evidence.shape[1]):
            forward.append(message)
            joint = message * likelihood[:, i]
            scale = joint.sum(-1, keepdim=True)
            total = total + scale.squeeze(-1).log()
            message = _push(self.transition, joint / scale.where(scale > 0, 1.0))
        return forward, total

    def _blocks(self, evidence: Probs) -> Sequence[Probs]:
        if evidence.dim() != 3 or evidence.shape[2] != self.vocab_size:
            raise ValueError(
                f"evidence has shape {tuple(evidence.shape)}: want [B, L, {self.vocab_size}]"
            )
        blocks: tuple[Probs, ...] = evidence.double().split(
            max(1, _BLOCK // (evidence.shape[1] * len(self.start)))
        )
        return blocks

    def marginals(self, length: int) -> Tensor:
        """p(x_i = v), [length, V]."""
        return torch.stack(self._state_marginals(length)) @ self.emission

    def pairs(self, length: int) -> Tensor:
        """The distribution of an adjacent pair: mean over i < length of p(x_i, x_{i+1}), [V, V]."""
        whole("length", length, "the tokens of a text with a pair", 2)
        state = torch.stack(self._state_marginals(length)[:-1]).mean(0)
        return (self.emission * state[:, None]).T @ self._next_token()

    def entropy(self, length: int) -> float:
        """The exact entropy -E log p(x) / L of texts of `length` tokens, nats a token.

        The first `identifying_prefix` tokens are enumerated; each later one adds E[H(next token |
        state)].
        """
        whole("length", length, "the tokens of a text")
        first = min(self.identifying_prefix, length)
        texts = torch.tensor([*product(range(self.vocab_size), repeat=first)])
        log_p = self.log_prob(texts)
        total = torch.special.entr(log_p.exp()).sum()
        next_entropy = torch.special.entr(self._next_token()).sum(-1)
        for state in self._state_marginals(length)[first - 1 : -1]:
            total = total + state @ next_entropy
        return float(total) / length

    def rate(self, length: int) -> float:
        """H(x_L | x_1 .. x_{L-1}) in nats: the entropy rate of a stationary chain of order < L."""
        whole("length", length, "the tokens of a text with an entropy rate", 2)
        return length * self.entropy(length) - (length - 1) * self.entropy(length - 1)

    def _next_state(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw the states [n] after the states [n]."""
        token = _draw(self.transition.flatten(0, -2)[state], generator)
        if self.transition.dim() == 2:
            return token
        return state % self.vocab_size * self.vocab_size + token

    def _state_marginals(self, length: int) -> list[Tensor]:
        """p(s_i) [S] for i = 1 .. length."""
        rows = [self.start]
        for _ in range(length - 1):
            rows.append(_push(self.transition, rows[-1][None])[0])
        return rows

    def _next_token(self) -> Tensor:
        """p(x_{i+1} | s_i), [S, V]."""
        return _pull(self.transition, self.emission.T.contiguous()).T


def markov_chain(transition: Tensor, start: Tensor | None = None) -> SyntheticSource:
    """A Markov chain of order 1 or 2.

    Args:
        transition: p(b | a) [V, V], or at order 2 p(c | a, b) [V, V, V].
        start: Distribution of the first token [V], or at order 2 of (the token before the text, the
            first token) [V, V]; None: the stationary one, so that all positions have equal
            marginals.
    """
    order, size = transition.dim() - 1, transition.shape[-1]
    if order not in (1, 2) or len({*transition.shape}) != 1 or size < 2:
        raise ValueError(
            f"transition has shape {tuple(transition.shape)}: want [V, V] (order 1) or [V, V, V] "
            "(order 2) with V >= 2"
        )
    _check_distribution("transition", transition)
    transition = transition.double()
    if start is None:
        start = _stationary(transition, size**order)
    if start.numel() != size**order:
        raise ValueError(f"start has shape {tuple(start.shape)}: want {size**order} states")
    _check_distribution("start", start.flatten())
    last = torch.arange(size**order) % size
    return SyntheticSource(
        start.double().flatten(), transition, F.one_hot(last, size).double(), order
    )


def random_chain(
    vocab_size: int, order: int = 1, concentration: float = 0.4, seed: int = 0
) -> SyntheticSource:
    """A stationary chain with Dirichlet(concentration) rows; a small value gives a low entropy."""
    whole("order", order, "the tokens that the next one depends on", 1, 2)
    rows = _dirichlet(
        np.random.default_rng(seed % 2**64), vocab_size, vocab_size**order, concentration
    )
    return markov_chain(rows.view([vocab_size] * (order + 1)))


def grammar(weights: Tensor, templates: Sequence[Tensor]) -> SyntheticSource:
    """Text of sentences, each drawn from one of K templates.

    The text begins with a sentence and may end inside one. No two first slots share a token, so the
    first token of a sentence determines its template.

    Args:
        weights: Probabilities of the templates [K].
        templates: For each template the token probabilities of its slots [J_k, V].
    """
    _check_distribution("weights", weights)
    if len(weights) != len(templates) or not all(t.dim() == 2 and len(t) for t in templates):
        raise ValueError(
            f"templates: got {len(templates)}, want one [J >= 1, V] for each weight, {len(weights)}"
        )
    emission = torch.cat([template.double() for template in templates])
    _check_distribution("templates", emission)
    ends = torch.tensor([len(template) for template in templates]).cumsum(0)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    if int((emission[first] > 0).sum(0).max()) > 1:
        raise ValueError(
            "templates share a token in their first slots: want first slots without a common "
            "token, so that the first token determines the template"
        )
    start = torch.zeros(len(emission), dtype=torch.float64).index_copy(0, first, weights.double())
    matrix = torch.eye(len(emission), dtype=torch.float64).roll(1, dims=1)
    matrix[ends - 1] = start
    return SyntheticSource(start, matrix, emission, identifying_prefix=1)


def random_grammar(
    vocab_size: int, concentration: float = 0.1, slip: float = 0.02, seed: int = 0
) -> SyntheticSource:
    """A grammar of V // 4 templates (at least 2) with 3 to 6 slots each.

    Args:
        vocab_size: V.
        concentration: Dirichlet parameter of the slots.
        slip: Probability of a uniform token in every slot but the first, so that no text is
            impossible.
        seed: Seed of the templates.
    """
    want = "0 < slip < 1, the probability of a uniform token in a slot"
    check_range("slip", slip, 0 < slip < 1, want)
    rng = np.random.default_rng(seed % 2**64)
    count = max(2, vocab_size // 4)
    opens = torch.arange(vocab_size) % count
    templates = []
    for k in range(count):
        slots = _dirichlet(rng, vocab_size, int(rng.integers(3, 7)), concentration)
        slots = (1 - slip) * slots + slip / vocab_size
        slots[0] = slots[0] * (opens == k)
        slots[0] /= slots[0].sum()
        templates.append(slots)
    return grammar(_dirichlet(rng, count, 1, 5.0)[0], templates)


def _push(transition: Tensor, message: Tensor) -> Tensor:
    """sum_s m(s) p(s' | s) of messages [B, S]: the distribution of the next state."""
    if transition.dim() == 2:
        return message @ transition
    pairs = message.view(-1, *transition.shape[:2])
    return torch.einsum("nab,abc->nbc", pairs, transition).flatten(1)


def _pull(transition: Tensor, message: Tensor) -> Tensor:
    """sum_s' p(s' | s) m(s') of messages [B, S]: the expectation of m at the next state."""
    if transition.dim() == 2:
        return message @ transition.T
    pairs = message.view(-1, *transition.shape[:2])
    return torch.einsum("nbc,abc->nab", pairs, transition).flatten(1)


def _stationary(transition: Tensor, states: int) -> Tensor:
    """The stationary distribution, by power iteration of the lazy chain, which is aperiodic."""
    row = torch.full((1, states), 1 / states, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        after = (row + _push(transition, row)) / 2
        if float((after - row).abs().sum()) < _TOLERANCE:
            return after[0] / after.sum()
        row = after
    raise ValueError(
        f"start: no stationary distribution found in {_ITERATIONS} iterations, because the chain "
        "mixes slowly; give start, or raise concentration"
    )


def _dirichlet(rng: np.random.Generator, size: int, n: int, concentration: float) -> Tensor:
    """n distributions over `size` tokens, [n, size] float64, no entry below about LEAST."""
    whole("vocab_size", size, "the tokens of the source without MASK", 2)
    want = "a finite number > 0, the parameter of a Dirichlet distribution"
    check_range("concentration", concentration, 0 < concentration < math.inf, want)
    rows = torch.from_numpy(rng.dirichlet(np.full(size, concentration), n)) + LEAST
    return rows / rows.sum(-1, keepdim=True)


def _draw(rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a token of each distribution [n, V] -> [n], in float64."""
    below = rows.cumsum(-1)
    u = 1 - torch.rand(len(rows), 1, generator=generator, dtype=torch.float64)  # in (0, 1]
    return torch.searchsorted(below, u * below[:, -1:]).squeeze(-1)


def _check_distribution(name: str, rows: Tensor) -> None:
    error = float((rows.double().sum(-1) - 1).abs().max())
    if not (bool((rows >= 0).all()) and error < 1e-6):
        raise ValueError(
            f"{name} is not a distribution: want numbers >= 0 that sum to 1 in the last axis; "
            f"the sum is off by {error:.3g}"
        )
