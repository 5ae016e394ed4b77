"""Semi-autoregressive order: blocks from left to right, random order within a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from unmask.limits import whole
from unmask.samplers.categorical import is_number
from unmask.samplers.steps import Sampler, Step, Task, check_masked, reveal


def blockwise(block: float) -> Sampler:
    """`reveal` in blocks of `block` tokens from left to right, in random order within a block.

    The order of the blocks is that of LLaDA (arXiv 2502.09992) and Fast-dLLM (arXiv 2505.22618). Within a block both
    unmask the tokens of greatest probability first by default, which this sampler does not.

    It is `reveal` at other levels u' of the same latent. With i the number of a sample's free tokens before this one, F
    all of them, first = block floor(i / block), and size = min(block, F - first) those of its block,

        u' = (first + size u) / F        in (0, 1), as u is

    Every block has the share of the grid that it has of the tokens, so that at each level as many tokens are shown as
    in `reveal`, on average, and the network is told the alpha of the grid. They are shown in one place, which is not as
    in training: for a network that sees alpha it is the nearest level, not an exact one. One block of all tokens is
    `reveal`. As in any order that does not look at the text, one token a call has the law of a model whose conditionals
    fit together; in few steps neighbours are drawn together, and those know more of each other than tokens far apart.

    ValueError unless block is a whole number >= 1.
    """
    count = (
        int(block) if is_number(block) and block == block // 1 else block
    )  # as text it came as a float
    return partial(
        _blockwise, block=whole("block", count, "the tokens that are shown before any behind them")
    )


def _blockwise(task: Task, block: int) -> Sequence[Step]:
    check_masked(task)
    count = task.free.sum(1, keepdim=True)
    first = (task.free.cumsum(1) - 1).clamp(min=0) // block * block
    size = (count - first).clamp(max=block)
    u = (first + size * task.latent.u) / count.clamp(min=1)
    return reveal(replace(task, latent=replace(task.latent, u=u)))
