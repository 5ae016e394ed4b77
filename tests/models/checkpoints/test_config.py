"""What configs say: ours word by word, foreign ones by the names they use."""

from typing import Any

import pytest

from unmask.diffusion.schedules import Cosine, LogLinear, Polynomial
from unmask.models.checkpoints.config import CheckpointConfig, parse_config
from unmask.models.checkpoints.safe_unpickle import CheckpointError
from unmask.models.dit import Shape

SHAPE = Shape(38, length=1, width=16, blocks=1, heads=2)
CAUSAL = Shape(38, length=1, width=16, blocks=1, heads=2, causal=True)
OURS = {"format": "unmask"}


def foreign(said: dict[str, Any], shape: Shape = SHAPE) -> CheckpointConfig:
    return parse_config(said, shape, "here")


@pytest.mark.parametrize(
    ("facts", "shape"),
    [
        (CheckpointConfig("masked", 37, False, LogLinear(), 24, 0.0), SHAPE),
        (CheckpointConfig("masked", 0, True, Polynomial(3.0, 0.5), 8, 0.25), SHAPE),
        (CheckpointConfig("uniform", None, True, Cosine(0.0)), SHAPE),
        (CheckpointConfig("autoregressive", None, False, None), CAUSAL),
        (CheckpointConfig("autoregressive", 5, False, None), CAUSAL),
    ],
)
def test_what_we_say_is_what_we_read(facts: CheckpointConfig, shape: Shape) -> None:
    assert parse_config(OURS | facts.said(), shape, "here") == facts


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "`kind` is one of masked, uniform, autoregressive, got None"),
        ({"kind": "mask"}, "got 'mask'"),
        ({"kind": "masked"}, "masked models have a `mask_id`"),
        ({"kind": "uniform", "mask_id": 3}, "uniform ones none"),
        ({"kind": "autoregressive"}, "is autoregressive by its config, but not by the names"),
        ({"kind": "uniform"}, "`schedule` names one of LogLinear, Cosine, Polynomial, got None"),
        ({"kind": "uniform", "schedule": {"name": "os.system"}}, r"got 'os\.system'"),
        (
            {"kind": "uniform", "schedule": {"name": "Cosine", "power": 2}},
            "the schedule Cosine does not take",
        ),
        ({"kind": "uniform", "schedule": "Cosine"}, "`schedule` is a str, want dict"),
        (
            {"kind": "uniform", "sees_alpha": True, "schedule": {"name": "Cosine"}, "length": "24"},
            "`length` is a str, want int",
        ),
        ({"kind": "uniform", "schedule": {"name": "Cosine"}}, "`sees_alpha` is missing"),
        ({"kind": "masked", "mask_id": True}, "`mask_id` is a bool, want int"),
    ],
)
def test_contradictions_in_ours_are_named(said: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        parse_config(OURS | said, SHAPE, "here")


def test_a_config_that_says_nothing_is_mdlms() -> None:
    assert foreign({}) == CheckpointConfig("masked", 37, False, LogLinear(1e-3), 1024, 0.1)
    assert foreign({}, CAUSAL) == CheckpointConfig("autoregressive", 37, False, None, 1024, 0.1)


def test_foreign_names_flat_and_nested() -> None:
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
    "said",
    [
        {"model_type": "DUO", "time_conditioning": False},
        {"model_type": "duo"},
        {"algo": {"name": "duo_base", "parameterization": "mean"}},
        {"algo": {"name": "distillation"}},
        {"diffusion": "uniform"},
    ],
)
def test_duo_is_uniform_and_always_told_the_noise(said: dict[str, Any]) -> None:
    assert foreign(said) == CheckpointConfig("uniform", None, True, LogLinear(1e-3))


def test_what_would_be_read_wrongly_is_refused() -> None:
    for said in (
        {"parameterization": "sedd"},
        {"algo": {"parameterization": "score"}},
        {"parameterization": "d3pm"},
    ):
        with pytest.raises(CheckpointError, match="does not give the law of the text"):
            foreign(said)
    with pytest.raises(CheckpointError, match="trained under the schedule geometric"):
        foreign({"noise": {"type": "geometric"}})


def test_only_schedules_of_this_library_are_written() -> None:
    class Other:
        pass

    with pytest.raises(
        ValueError, match="a file can name the schedules LogLinear, Cosine, Polynomial"
    ):
        CheckpointConfig("masked", 3, False, Other()).said()  # type: ignore[arg-type]
