"""Configs: ours are read back exactly, foreign ones by the names they use."""

from typing import Any

import pytest

from unmask.diffusion.schedules import Cosine, LogLinear, Polynomial
from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.config import CheckpointConfig, parse_config
from unmask.models.dit import Shape

SHAPE = Shape(38, length=1, width=16, blocks=1, heads=2)
CAUSAL = Shape(38, length=1, width=16, blocks=1, heads=2, causal=True)
OURS = {"format": "unmask"}


def foreign(config: dict[str, Any], shape: Shape = SHAPE) -> CheckpointConfig:
    return parse_config(config, shape, "here")


@pytest.mark.parametrize(
    ("use", "shape"),
    [
        (CheckpointConfig("masked", 37, False, LogLinear(), 24, 0.0), SHAPE),
        (CheckpointConfig("masked", 0, True, Polynomial(3.0, 0.5), 8, 0.25), SHAPE),
        (CheckpointConfig("uniform", None, True, Cosine(0.0)), SHAPE),
        (CheckpointConfig("autoregressive", None, False, None), CAUSAL),
        (CheckpointConfig("autoregressive", 5, False, None), CAUSAL),
    ],
)
def test_our_configs_are_read_back_equal(use: CheckpointConfig, shape: Shape) -> None:
    assert parse_config(OURS | use.to_json(), shape, "here") == use


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({}, "`kind` .* got None, want masked, uniform, autoregressive"),
        ({"kind": "mask"}, "got 'mask'"),
        ({"kind": "masked"}, "`mask_id` contradicts `kind`: got None"),
        ({"kind": "uniform", "mask_id": 3}, "`mask_id` contradicts `kind`"),
        ({"kind": "autoregressive"}, "contradicts its weights: kind is autoregressive"),
        ({"kind": "uniform"}, "`schedule` .* got None, want one of LogLinear, Cosine, Polynomial"),
        ({"kind": "uniform", "schedule": {"name": "os.system"}}, r"got 'os\.system'"),
        (
            {"kind": "uniform", "schedule": {"name": "Cosine", "power": 2}},
            "`schedule` .* Cosine does not accept",
        ),
        ({"kind": "uniform", "schedule": "Cosine"}, "`schedule` .* got str, want dict"),
        (
            {"kind": "uniform", "sees_alpha": True, "schedule": {"name": "Cosine"}, "length": "24"},
            "`length` .* got str, want int",
        ),
        ({"kind": "uniform", "schedule": {"name": "Cosine"}}, "`sees_alpha` is missing"),
        ({"kind": "masked", "mask_id": True}, "`mask_id` .* got bool, want int"),
    ],
)
def test_contradictions_in_our_configs_are_named(config: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        parse_config(OURS | config, SHAPE, "here")


def test_an_empty_config_is_read_as_mdlm() -> None:
    assert foreign({}) == CheckpointConfig("masked", 37, False, LogLinear(1e-3), 1024, 0.1)
    assert foreign({}, CAUSAL) == CheckpointConfig("autoregressive", 37, False, None, 1024, 0.1)


def test_flat_and_nested_foreign_configs() -> None:
    assert foreign({"model_type": "mdlm", "model_length": 24, "dropout": 0}) == foreign(
        {"model": {"length": 24, "dropout": 0.0}, "parameterization": {"name": "multi-round-sdtt"}}
    )
    assert foreign({"mask_index": 3}).mask_id == foreign({"mask_token_id": 3}).mask_id == 3
    assert foreign({"time_conditioning": True}).sees_alpha
    assert foreign({"algo": {"name": "mdlm", "time_conditioning": True}}).sees_alpha
    assert foreign({"noise": {"type": "log-linear", "eps": 0.01}}).schedule == LogLinear(0.01)
    assert foreign({"noise": {"type": "log-linear", "eps": 0}}).schedule == LogLinear(
        1e-3
    )  # what Duo computes with
    assert (
        foreign({"model": {"length": "${data.length}"}}).length == 1024
    )  # Hydra's references are not resolved here


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "DUO", "time_conditioning": False},
        {"model_type": "duo"},
        {"algo": {"name": "duo_base", "parameterization": "mean"}},
        {"algo": {"name": "distillation"}},
        {"diffusion": "uniform"},
    ],
)
def test_duo_is_uniform_and_sees_alpha(config: dict[str, Any]) -> None:
    assert foreign(config) == CheckpointConfig("uniform", None, True, LogLinear(1e-3))


def test_unsupported_parameterizations_and_schedules_are_refused() -> None:
    for config in (
        {"parameterization": "sedd"},
        {"algo": {"parameterization": "score"}},
        {"parameterization": "d3pm"},
    ):
        with pytest.raises(CheckpointError, match="`parameterization` is not supported: got"):
            foreign(config)
    with pytest.raises(CheckpointError, match=r"`noise.type` .* got geometric"):
        foreign({"noise": {"type": "geometric"}})


def test_only_schedules_of_this_library_are_written() -> None:
    class Other:
        pass

    with pytest.raises(ValueError, match=r"schedule .*want one of LogLinear, Cosine, Polynomial"):
        CheckpointConfig("masked", 3, False, Other()).to_json()  # type: ignore[arg-type]
