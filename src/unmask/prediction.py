"""The prediction of a denoiser: hidden states, and a vocabulary head that has not run yet.

A table of log-probabilities [B, L, V] takes gigabytes at V = 50,000. A denoiser therefore returns
hidden states, and the caller applies the head to the rows that it needs. Training, distilling and
sampling never hold a tensor of shape [B, L, V].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

LOG_ZERO = -1e6  # log of probability 0. Finite: reverse KL multiplies it by 0, and 0 * -inf is nan

# Upper bounds on rows x V.
# A chunk is one call of the head. On an accelerator it has 64 MiB of float32. On a CPU it has just
# below 32 MiB: glibc maps a larger buffer again for each tensor, with a page fault for each page.
CHUNK_ELEMENTS = 2**24
CPU_CHUNK_ELEMENTS = 2**23 - 2**16
# A block is the part of a chunk that a loss reads at a time. It has 1 MiB of float32. With its
# gradient of the same size it stays in the cache of one core.
CPU_BLOCK_ELEMENTS = 2**18


class Head(Protocol):
    """A map from hidden rows [N, D] to logits [N, V], such as an `nn.Linear`."""

    def __call__(self, rows: Tensor, /) -> Tensor: ...

    def parameters(self) -> Iterable[Tensor]: ...


@runtime_checkable
class HeadWithBackward(Head, Protocol):
    """A head with its own backward pass, so that no copy of the logits is needed.

    Its logits are new memory that the caller may overwrite.
    """

    def backward_rows(self, rows: Tensor, slope: Tensor, totals: Sequence[Tensor | None]) -> Tensor:
        """Propagate a gradient through the head.

        Args:
            rows: the input of the head, [n, D].
            slope: the gradient with respect to the logits, [n, V].
            totals: a gradient buffer for each parameter, which this call adds to; None for a
                parameter that needs no gradient.

        Returns:
            The gradient with respect to `rows`, [n, D].
        """
        ...


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """The number of rows in one call of the head, at least 1: many, for speed."""
    limit = CPU_CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS
    return max(1, limit // vocab_size)


def block_rows(vocab_size: int, device: torch.device) -> int:
    """The number of rows that a loss reads at a time, at least 1: few, for the cache."""
    limit = CPU_BLOCK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS
    return max(1, limit // vocab_size)


@dataclass(frozen=True)
class Prediction:
    """log p(x0_i | z) in nats at every position, computed for the rows that a caller selects.

    Attributes:
        hidden: [B, L, D], the input of the head
        head: maps rows [N, D] to logits [N, V]
        vocab_size: V
        mask_id: a token that is never predicted (its log-probability is -1e6); None: no such token
        z: int64 [B, L], the noisy tokens. A token other than `mask_id` is visible, and its row is
            the point mass (SUBS: Sahoo et al. 2024, arXiv 2406.07524, section 3.2.3). None: no
            token is visible
    """

    hidden: Tensor
    head: Head
    vocab_size: int
    mask_id: int | None = None
    z: Tensor | None = None

    @staticmethod
    def from_log_p(log_p: Tensor) -> Prediction:
        """Wrap a table of log-probabilities [B, L, V], for test doubles and foreign models.

        Gradients flow to the table.
        """
        if log_p.dim() != 3:
            raise ValueError(
                f"log_p has the wrong shape: got {tuple(log_p.shape)}, want [B, L, V] "
                "(log-probabilities of each token at each position)"
            )
        return Prediction(log_p, nn.Identity(), vocab_size=log_p.shape[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.hidden.shape[0], self.hidden.shape[1]

    def rows(self, where: Tensor | None = None) -> Tensor:
        """Flat row indices [N] in row-major order.

        `where` is a bool mask [B, L], or flat row indices [N] (returned as they are), or None for
        all rows.
        """
        batch, length = self.shape
        if where is None:
            return torch.arange(batch * length, device=self.hidden.device)
        if where.dtype != torch.bool:
            if where.dim() != 1:
                raise ValueError(
                    f"where has the wrong type or shape: got {where.dtype} of shape "
                    f"{tuple(where.shape)}, want a bool mask [B, L] or flat row indices [N]"
                )
            return where
        if tuple(where.shape) != (batch, length):
            raise ValueError(
                f"where has the wrong shape: got {tuple(where.shape)}, want a bool mask "
                f"[B, L] = {(batch, length)}"
            )
        return where.flatten().nonzero().squeeze(-1)

    def hidden_rows(self, index: Tensor) -> Tensor:
        """The hidden states [N, D] of flat rows."""
        return self.hidden.flatten(0, 1).index_select(0, index)

    def is_unknown(self, index: Tensor) -> Tensor:
        """Select the flat rows of tokens that are not visible, bool [N].

        The law of a visible token is a point mass.
        """
        if self.mask_id is None or self.z is None:
            return torch.ones_like(index, dtype=torch.bool)
        return self.z.flatten()[index] == self.mask_id

    def log_p(self, where: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Apply the head and normalise.

        Args:
            where: the rows to compute, see `rows`.
            temperature: divides log p, which is then renormalised; below 1 it sharpens. > 0.

        Returns:
            Log-probabilities in nats: [N, V] for the N rows of `where`, [B, L, V] for None. The
            dtype is float64 if the hidden states are float64, else float32.
        """
        index = self.rows(where)
        if torch.is_grad_enabled():
            table = self.normalise(self.head(self.hidden_rows(index)), index, temperature)
        else:
            table = self.normalise_(self.logits(index), index, temperature)
        return table if where is not None else table.unflatten(0, self.shape)

    def normalise(self, logits: Tensor, index: Tensor, temperature: float = 1.0) -> Tensor:
        """Turn the logits [N, V] of flat rows into log p [N, V].

        MASK gets probability 0. The logits are divided by the temperature, and each row is
        normalised. The row of a visible token becomes a point mass.
        """
        _check_temperature(temperature)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.mask_id is not None:
            mask = torch.tensor(self.mask_id, device=logits.device)
            logits = logits.index_fill(-1, mask, -torch.inf)
        if temperature != 1:
            logits = logits / temperature
        log_p = torch.log_softmax(logits, dim=-1).clamp(min=LOG_ZERO)
        if self.mask_id is None or self.z is None:
            return log_p
        token = self.z.flatten()[index][:, None]
        point_mass = torch.full_like(log_p, LOG_ZERO).scatter_(-1, token, 0.0)
        return torch.where(self.is_unknown(index)[:, None], log_p, point_mass)

    @torch.no_grad()
    def logits(self, index: Tensor) -> Tensor:
        """The logits [N, V] of flat rows, without a graph. The caller may overwrite them."""
        logits = self.head(self.hidden_rows(index))
        return logits if isinstance(self.head, HeadWithBackward) else logits.clone()

    def normalise_(self, logits: Tensor, index: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute `normalise` in place, without a graph."""
        _check_temperature(temperature)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.mask_id is not None:
            logits[:, self.mask_id] = -torch.inf
        if temperature != 1:
            logits.div_(temperature)
        log_p = torch.log_softmax(logits, dim=-1).clamp_(min=LOG_ZERO)
        if self.mask_id is not None and self.z is not None:
            unknown = self.is_unknown(index)
            # Only on a CPU: elsewhere reading `unknown` would stall the device.
            if index.device.type != "cpu" or not bool(unknown.all()):
                log_p.masked_fill_(~unknown[:, None], LOG_ZERO)
                token = self.z.flatten()[index][:, None]
                log_p.scatter_(-1, token, log_p.gather(-1, token).where(unknown[:, None], 0.0))
        return log_p

    def chunks(
        self, where: Tensor | None = None, temperature: float = 1.0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (flat rows [n], log p [n, V]) in chunks of bounded memory.

        Use this method for many rows at a large V. The arguments are those of `log_p`.
        """
        for part in self.rows(where).split(chunk_rows(self.vocab_size, self.hidden.device)):
            if len(part):
                yield part, self.log_p(part, temperature)

    def sample(
        self, where: Tensor | None, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n independent tokens for each row, in float64, from one pass of the head.

        Args:
            where: the rows to draw, see `rows`.
            n: the number of draws a row.
            generator: the source of randomness; None: torch's global generator.

        Returns:
            Token ids, int64 [n, N].
        """
        draws = []
        # Inverse CDF in place of torch.multinomial, whose uniform numbers on a GPU are float32.
        for _, log_p in self.chunks(where):
            cdf = log_p.double().exp().cumsum(dim=-1)
            u = torch.rand(len(cdf), n, generator=generator, dtype=torch.float64, device=cdf.device)
            u = 1 - u  # in (0, 1]: 0 would select a token of probability 0
            draws.append(torch.searchsorted(cdf, u * cdf[:, -1:]))
        if not draws:
            return torch.empty(n, 0, dtype=torch.int64, device=self.hidden.device)
        return torch.cat(draws).T


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"temperature is out of range: got {temperature}, want temperature > 0 (it divides "
            "log p)"
        )
