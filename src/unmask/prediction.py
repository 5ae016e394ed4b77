"""A prediction whose backbone has run and whose vocabulary head has not.

The head is most of the memory of a language model: [B, L, V] at V = 50k is gigabytes. So a denoiser returns
hidden states, and whoever needs rows asks for those rows; no tensor of shape [B, L, V] appears on a hot path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

LOG_ZERO = -1e6  # log of "never", finite: reverse KL multiplies it by 0, and 0 * -inf is nan
CHUNK_ELEMENTS = 2**24  # rows x V held at a time: 64 MiB in float32
CPU_CHUNK_ELEMENTS = (
    2**23 - 2**16
)  # from 32 MiB on the C library asks the system for every tensor anew, page by page
CPU_BLOCK_ELEMENTS = (
    2**18
)  # of a chunk, worked on at a time: a core's cache holds 1 MiB of float32, and as much again


class Head(Protocol):
    """Hidden rows [N, D] -> logits [N, V]. An `nn.Linear` is one."""

    def __call__(self, rows: Tensor, /) -> Tensor: ...

    def parameters(self) -> Iterable[Tensor]: ...


@runtime_checkable
class HeadWithBackward(Head, Protocol):
    """A head that knows its derivative by itself; its logits are fresh memory that nobody else reads."""

    def backward_rows(self, rows: Tensor, slope: Tensor, totals: Sequence[Tensor | None]) -> Tensor:
        """d rows [n, D] from slope = d logits [n, V]; adds d parameters to `totals`, where there is a tensor."""
        ...


class TableHead:
    """The head of a prediction that already is a table: rows are their own logits."""

    def __call__(self, rows: Tensor, /) -> Tensor:
        return rows

    def parameters(self) -> tuple[Tensor, ...]:
        return ()


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """How many rows of the vocabulary are held at a time, at least one: the head's products want many."""
    return max(1, (CPU_CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS) // vocab_size)


def block_rows(vocab_size: int, device: torch.device) -> int:
    """How many rows of a chunk are worked on at a time, at least one: what goes over a table again wants few."""
    return max(1, (CPU_BLOCK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS) // vocab_size)


@dataclass(frozen=True)
class Prediction:
    """`log p(x0_i | z)` in nats for every position, computed for the rows that are asked for.

    hidden      [B, L, D]: what the head reads
    head        rows [N, D] -> logits [N, V]
    vocab_size  V
    mask_id     a token that is never predicted (its log-probability is -1e6), or None
    shown       [B, L]: where it differs from `mask_id` the token is known, and its row is the point mass
                (SUBS: Sahoo et al. 2024, arXiv 2406.07524, section 3.2.3); None: nothing is known
    """

    hidden: Tensor
    head: Head
    vocab_size: int
    mask_id: int | None = None
    z: Tensor | None = None

    @staticmethod
    def from_log_p(log_p: Tensor) -> Prediction:
        """Wrap a table of log-probabilities [B, L, V]; gradients flow to it. For test doubles and foreign models."""
        if log_p.dim() != 3:
            raise ValueError(
                f"a table of log-probabilities has shape [B, L, V], got {tuple(log_p.shape)}"
            )
        return Prediction(log_p, TableHead(), vocab_size=log_p.shape[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.hidden.shape[0], self.hidden.shape[1]

    def rows(self, where: Tensor | None = None) -> Tensor:
        """Flat row indices [N], row-major, of `where`: a bool mask [B, L], flat indices already, or None for all."""
        batch, length = self.shape
        if where is None:
            return torch.arange(batch * length, device=self.hidden.device)
        if where.dtype != torch.bool:
            if where.dim() != 1:
                raise ValueError(
                    f"`where` is a bool mask [B, L] or flat row numbers [N]: got {where.dtype} of shape "
                    f"{tuple(where.shape)}"
                )
            return where
        if tuple(where.shape) != (batch, length):
            raise ValueError(
                f"`where` marks positions [B, L] = {(batch, length)}, got shape {tuple(where.shape)}"
            )
        return where.flatten().nonzero().squeeze(-1)

    def hidden_rows(self, index: Tensor) -> Tensor:
        """The hidden states [N, D] of flat rows."""
        return self.hidden.flatten(0, 1).index_select(0, index)

    def is_unknown(self, index: Tensor) -> Tensor:
        """bool [N]: False where the token of a flat row is shown, so that its law is a point mass."""
        if self.mask_id is None or self.z is None:
            return torch.ones_like(index, dtype=torch.bool)
        return self.z.flatten()[index] == self.mask_id

    def log_p(self, where: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Normalised log-probabilities, nats: [N, V] for the N rows of `where`, [B, L, V] without it.

        float32, or float64 where the hidden states are. `temperature` divides log p and renormalises.
        """
        index = self.rows(where)
        if torch.is_grad_enabled():
            table = self.normalise(self.head(self.hidden_rows(index)), index, temperature)
        else:
            table = self.normalise_(self.logits(index), index, temperature)
        return table if where is not None else table.unflatten(0, self.shape)

    def normalise(self, logits: Tensor, index: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits [N, V] of flat rows -> log p [N, V]: no MASK, temperature, sum 1, point masses at shown tokens."""
        _check_temperature(temperature)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.mask_id is not None:
            logits = logits.index_fill(
                -1, torch.tensor(self.mask_id, device=logits.device), -torch.inf
            )
        if temperature != 1:
            logits = logits / temperature
        log_p = torch.log_softmax(logits, dim=-1).clamp(min=LOG_ZERO)
        if self.mask_id is None or self.z is None:
            return log_p
        point = torch.full_like(log_p, LOG_ZERO).scatter_(-1, self.z.flatten()[index][:, None], 0.0)
        return torch.where(self.is_unknown(index)[:, None], log_p, point)

    @torch.no_grad()
    def logits(self, index: Tensor) -> Tensor:
        """What the head gives for flat rows [N, V], for `normalise_`: in memory that may be overwritten."""
        logits = self.head(self.hidden_rows(index))
        return logits if isinstance(self.head, HeadWithBackward) else logits.clone()

    def normalise_(self, logits: Tensor, index: Tensor, temperature: float = 1.0) -> Tensor:
        """As `normalise`, without a graph; the logits are overwritten."""
        _check_temperature(temperature)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.mask_id is not None:
            logits[:, self.mask_id] = -torch.inf
        if temperature != 1:
            logits.div_(temperature)
        log_p = torch.log_softmax(logits, dim=-1).clamp_(min=LOG_ZERO)
        if self.mask_id is not None and self.z is not None:
            free = self.is_unknown(index)
            if index.device.type != "cpu" or not bool(
                free.all()
            ):  # elsewhere a look would stall the device
                log_p.masked_fill_(~free[:, None], LOG_ZERO)
                token = self.z.flatten()[index][:, None]
                log_p.scatter_(-1, token, log_p.gather(-1, token).where(free[:, None], 0.0))
        return log_p

    def chunks(
        self, where: Tensor | None = None, temperature: float = 1.0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (flat rows [n], log p [n, V]) with n V bounded: the way to read many rows at a large V."""
        for part in self.rows(where).split(chunk_rows(self.vocab_size, self.hidden.device)):
            if len(part):
                yield part, self.log_p(part, temperature)

    def sample(
        self, where: Tensor | None, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """n independent draws a row from one head pass, in float64: ids [n, N]."""
        draws = []
        for _, log_p in self.chunks(
            where
        ):  # not torch.multinomial: on a GPU its uniform numbers are float32
            below = log_p.double().exp().cumsum(dim=-1)
            u = 1 - torch.rand(
                len(below), n, generator=generator, dtype=torch.float64, device=below.device
            )  # not 0
            draws.append(torch.searchsorted(below, u * below[:, -1:]))
        if not draws:
            return torch.empty(n, 0, dtype=torch.int64, device=self.hidden.device)
        return torch.cat(draws).T


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature divides log p: want temperature > 0, got {temperature}")
