"""Names of samplers: their values, the errors for wrong names, and complete lists of names."""

import re
import typing
from pathlib import Path

import pytest
import torch

from toy_sampling import L, V, draw, masked
from unmask.cli.sample import Arguments
from unmask.samplers.counts import COUNTS, GRIDS, entropy_bound
from unmask.samplers.options import FAMILIES, SAMPLERS, sampler_of
from unmask.samplers.orders import ENTROPY, ORDERS
from unmask.samplers.remasking import (
    ancestral,
    greedy_tail,
    psi,
    remdm_cap,
    remdm_loop,
    remdm_rescale,
)
from unmask.samplers.sample import sample
from unmask.samplers.unmasking import Unmasking, confidence, reveal


def test_a_name_is_its_sampler() -> None:
    for name, sampler in (
        ("reveal", reveal), ("ancestral", ancestral), ("greedy_tail", greedy_tail),
        ("confidence", confidence),
    ):  # fmt: skip
        assert sampler_of(name) is sampler is sampler_of(sampler)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("psi:0.5", psi(0.5)), ("psi:0", psi(0)), ("remdm_cap:0.2", remdm_cap(0.2)),
        ("remdm_rescale:.3", remdm_rescale(0.3)), ("remdm_loop:2e-1", remdm_loop(0.2)),
        ("entropy_bounded:0.7", Unmasking(ENTROPY, entropy_bound(0.7))),
        ("entropy_bounded:inf", Unmasking(ENTROPY, entropy_bound(float("inf")))),
    ],
)  # fmt: skip
def test_a_family_and_a_number(name: str, sampler: object) -> None:
    model, grid = masked(V, L, seed=3), "loop"
    ours, theirs = (draw(model, 8, sampler=each, grid=grid).tokens for each in (name, sampler))
    assert torch.equal(ours, theirs) and not torch.equal(ours, draw(model, 8, grid=grid).tokens)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "psi",
            "got 'psi', want psi:NUMBER; kappa .* got nan, want 0 <= kappa",
        ),
        ("psi:", "'psi:', want psi:NUMBER; kappa .* got nan"),
        ("psi:half", "'psi:half', want psi:NUMBER"),
        ("psi:2", "'psi:2', want psi:NUMBER; kappa .* got 2.0, want 0 <= kappa <= 1"),
        ("psi:0.5:1", "'psi:0.5:1', want psi:NUMBER"),
        ("remdm_cap:-1", "remdm_cap:NUMBER; eta .* got -1.0, want 0 <= eta <= 1"),
        ("remdm_rescale", "remdm_rescale:NUMBER; eta .* got nan"),
        ("remdm_loop:7", "remdm_loop:NUMBER; eta .* got 7.0"),
        (
            "entropy_bounded",
            "entropy_bounded:NUMBER; bound .* got nan, want bound >= 0",
        ),
        ("entropy_bounded:-1", "got -1.0, want bound >= 0"),
        ("reveal:0.5", "sampler 'reveal' takes no number: got 'reveal:0.5', want 'reveal'"),
        (
            "remdm_cp:0.1",
            r"sampler is unknown: got 'remdm_cp:0.1' \(did you mean 'remdm_cap:NUMBER'\?\)",
        ),
        (
            "greedy",
            r"sampler is unknown: got 'greedy' \(did you mean 'greedy_tail'\?\), .*, psi:NUMBER, ",
        ),
        ("", "sampler is unknown: got '', want one of reveal, "),
    ],
)
def test_wrong_names_are_refused(name: str, match: str) -> None:
    model = masked(V, L)
    with pytest.raises(ValueError, match=match):
        sample(model, n=1, length=L, steps=2, sampler=name)
    assert model.denoiser.batches == []


def test_every_list_of_names_is_complete() -> None:
    """The document, the help text and the docstring of `sample` name all samplers and grids."""
    page = (Path(__file__).parents[2] / "docs" / "choosing-a-sampler.md").read_text(
        encoding="utf-8"
    )
    for text in (page, Arguments.__doc__ or "", sample.__doc__ or ""):
        words = set(re.findall(r"[a-z_]+", text))
        assert words >= {*SAMPLERS, *FAMILIES, "released", "order", "blocks", "count"}
    assert set(re.findall(r"[a-z_]+", page)) >= {*ORDERS, *COUNTS}
    for text in (page, sample.__doc__ or ""):
        assert set(re.findall(r"[a-z_]+", text)) >= {*GRIDS}
    assert {*typing.get_args(typing.get_type_hints(Arguments)["grid"])} == {*GRIDS}
    for name in re.findall(
        r"\b(?:psi|remdm_\w+|entropy_bounded):[\d.]+|order=[\w=,:.]+\d",
        page + (sample.__doc__ or ""),
    ):
        sampler_of(name)


def test_the_default_of_masked_diffusion_is_spread_order() -> None:
    """It wins by the N-step bound at few steps: docs/evaluation.md."""
    model = masked(V, L)
    default, spread, random = (
        sample(model, n=8, length=L, steps=2, **how).tokens
        for how in ({}, {"sampler": "order=spread"}, {"order": "random"})
    )
    assert torch.equal(default, spread) and not torch.equal(default, random)
    assert torch.equal(random, sample(model, n=8, length=L, steps=2, sampler="reveal").tokens)
