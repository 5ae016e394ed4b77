"""Blocks from left to right: the order, the pace, the law."""

from itertools import pairwise

import pytest
import torch

from toy_sampling import L, V, draw, masked, uniform
from unmask.experiments.exact import factorization_gap as exact
from unmask.experiments.exact.oracle import masked_model
from unmask.experiments.exact.synthetic_sources import random_chain
from unmask.samplers.blockwise import blockwise
from unmask.samplers.sample import sample, watch

LONG = 11


def test_no_block_begins_before_the_one_on_its_left_is_full() -> None:
    """Blocks count free tokens: of 9 around two pins, in blocks of 4, the last has one."""
    model = masked(2, LONG)
    pinned = torch.full((6, LONG), -1)
    pinned[:, [0, 5]] = 0
    blocks = torch.tensor([1, 2, 3, 4]), torch.tensor([6, 7, 8, 9]), torch.tensor([10])
    whole = 0
    for frame in watch(model, 6, LONG, steps=40, pinned=pinned, sampler="blockwise:4"):
        shown = frame.z != 1
        for left, right in pairwise(blocks):
            begun = shown[:, right].any(1)
            assert bool(shown[begun][:, left].all())
            whole += int(begun.sum())
    assert whole


def test_one_block_is_reveal() -> None:
    model = masked(V, L)
    for size in (L, 10 * L):
        ours, theirs = (
            sample(model, n=20, length=L, steps=3, sampler=name)
            for name in (f"blockwise:{size}", "reveal")
        )
        assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.nfe, theirs.nfe)


def test_as_many_tokens_are_shown_as_the_network_is_told() -> None:
    """On average a share alpha of the free tokens is shown at level alpha, whatever the blocks' sizes."""
    n, length = 2000, 8
    for frame in watch(masked(2, length), n, length, steps=5, sampler="blockwise:3"):
        shown = (frame.z != 1).double().mean()
        assert abs(float(shown) - frame.alpha) < 0.01


def test_one_token_a_call_is_the_law_of_the_source() -> None:
    """log q of a text, drawn one token a call, is log p of it, in any order that does not look at the text."""
    source, length = random_chain(4, seed=1), 6
    drawn = exact.draw(masked_model(source), blockwise(3), 1000, 200, length, seed=0, traced=True)
    alone = drawn.nfe == length
    assert alone.double().mean() > 0.9 and drawn.log_q is not None
    torch.testing.assert_close(
        drawn.log_q[alone], source.log_prob(drawn.tokens[alone]), atol=1e-9, rtol=0
    )


def test_blocks_that_are_none() -> None:
    for wrong in (0, -1, 2.5, float("nan"), float("inf"), "4", True):
        with pytest.raises(
            ValueError, match=r"block is .*: got .*, want a whole number 1 \.\. 2\^63 - 1"
        ):
            blockwise(wrong)
    with pytest.raises(
        ValueError, match=r"written blockwise:NUMBER, where block is not a whole number: got 1\.5"
    ):
        draw(masked(V, L), 2, sampler="blockwise:1.5")
    with pytest.raises(ValueError, match="this sampler reveals MASKs"):
        sample(uniform(V, L), n=1, length=L, sampler="blockwise:2")
