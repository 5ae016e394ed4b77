"""What has to be known about a model besides its weights, as our own and foreign config files say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial
from unmask.models.checkpoints.safe_unpickle import CheckpointError
from unmask.models.dit import Shape

OURS = "unmask"  # the `format` that our own files name
MASKED, UNIFORM, AUTOREGRESSIVE = KINDS = ("masked", "uniform", "autoregressive")
_MASK = ("mask_id", "mask_index", "mask_token_id")  # as ours and other configs name it
SCHEDULES = {schedule.__name__: schedule for schedule in (LogLinear, Cosine, Polynomial)}
LONGEST = (
    2**20
)  # tokens of a training row that a config may name; a row of text is drawn at that length
CARD = "unmask_card"  # where a Lightning checkpoint of ours keeps the card of a model
OTHER_OUTPUTS = (
    "sedd",
    "score",
    "d3pm",
)  # parameterisations of which log softmax(logits) is not the law of the text


@dataclass(frozen=True)
class CheckpointConfig:
    """The use of a network.

    kind        what it models: "masked", "uniform" or "autoregressive"
    mask_id     MASK; None in a uniform process, and where an autoregressive vocabulary has none
    sees_alpha  whether the network is told the noise level
    schedule    the noise it was trained under; None for an autoregressive one
    length      tokens of a training row
    """

    kind: str
    mask_id: int | None
    sees_alpha: bool
    schedule: NoiseSchedule | None
    length: int = 1024
    dropout: float = 0.1

    def said(self) -> dict[str, Any]:
        """As JSON, which `parse_config` reads back; ValueError for a schedule that no file can name."""
        if self.schedule is None:
            return asdict(self)
        name = type(self.schedule).__name__
        if not isinstance(name, str) or name not in SCHEDULES:
            raise ValueError(
                f"a file can name the schedules {', '.join(SCHEDULES)}, not {self.schedule}"
            )
        return asdict(self) | {"schedule": {"name": name, **vars(self.schedule)}}


def parse_config(said: Mapping[str, Any], shape: Shape, where: str) -> CheckpointConfig:
    """What a config says about the network of this shape; CheckpointError where it contradicts itself or the weights.

    Ours names its `format`. Of the others, Hugging Face directories of MDLM and Duo have flat configs, Hydra's ones
    (SDTT, Lightning) are nested; sizes are never taken from any of them.
    """
    told = _Said(said, where)
    facts = _own(told) if said.get("format") == OURS else _foreign(told, shape)
    if shape.causal != (facts.kind == AUTOREGRESSIVE):
        raise CheckpointError(
            f"{where} is {facts.kind} by its config, but not by the names of its weights"
        )
    return facts


def names_mask(said: Mapping[str, Any]) -> bool:
    """True where a config names MASK."""
    return _Said(said, "the config").first(int, *_MASK) is not None


def card_of(said: Mapping[str, Any]) -> dict[str, object]:
    """The card in the config of a model that unmask saved; {} for other models."""
    card = said.get("card") if said.get("format") == OURS else said.get(CARD)
    return card if isinstance(card, dict) else {}


@dataclass(frozen=True)
class _Said:
    """A config and where it stands."""

    values: Mapping[str, Any]
    where: str

    def first(self, kind: type, *paths: str) -> Any:
        """The value of the first of these dotted names that is there; None where none of them is."""
        for path in paths:
            value: Any = self.values
            for part in path.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is None or (
                isinstance(value, str) and value.startswith("${")
            ):  # Hydra left a reference open
                continue
            if kind is float and type(value) is int and abs(value) < 2**53:
                value = float(value)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise CheckpointError(
                    f"{self.where}: `{path}` is a {type(value).__name__}, want {kind.__name__}"
                )
            return value
        return None


def _own(said: _Said) -> CheckpointConfig:
    kind, mask_id = said.first(str, "kind"), said.first(int, "mask_id")
    if kind not in KINDS:
        raise CheckpointError(f"{said.where}: `kind` is one of {', '.join(KINDS)}, got {kind!r}")
    if kind != AUTOREGRESSIVE and (mask_id is None) != (kind == UNIFORM):
        raise CheckpointError(
            f"{said.where}: masked models have a `mask_id`, uniform ones none; {kind} has {mask_id}"
        )
    schedule = None if kind == AUTOREGRESSIVE else _schedule(said)
    sees_alpha = said.first(bool, "sees_alpha")
    if sees_alpha is None and kind != AUTOREGRESSIVE:
        raise CheckpointError(
            f"{said.where}: `sees_alpha` is missing: is the network told how much noise there is?"
        )
    return CheckpointConfig(kind, mask_id, bool(sees_alpha), schedule, **_training(said))


def _schedule(said: _Said) -> NoiseSchedule:
    options = dict(said.first(dict, "schedule") or {})
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise CheckpointError(
            f"{said.where}: `schedule` names one of {', '.join(SCHEDULES)}, got {name!r}"
        )
    for option, value in options.items():
        if type(value) not in (int, float) or not abs(value) < 2**53:
            raise CheckpointError(
                f"{said.where}: `schedule.{option}` is a number below 2^53, got {str(value)[:50]}"
            )
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise CheckpointError(
            f"{said.where}: the schedule {name} does not take {options}: {error}"
        ) from error


def _foreign(said: _Said, shape: Shape) -> CheckpointConfig:
    mask_id = said.first(int, *_MASK)
    if shape.causal:
        mask_id = (
            shape.vocab_size - 1 if mask_id is None else mask_id
        )  # never trained, never predicted there
        return CheckpointConfig(AUTOREGRESSIVE, mask_id, False, None, **_training(said))
    output = said.first(str, "algo.parameterization", "parameterization.name", "parameterization")
    if output in OTHER_OUTPUTS:
        raise CheckpointError(
            f"{said.where}: a {output} network does not give the law of the text; want subs or mean"
        )
    noise = said.first(str, "noise.type", "noise.name") or "loglinear"
    if noise.replace("-", "") != "loglinear":
        raise CheckpointError(
            f"{said.where}: trained under the schedule {noise}; of foreign ones only loglinear is read"
        )
    eps = said.first(float, "noise.eps")
    schedule = (
        LogLinear(eps) if eps else LogLinear()
    )  # Duo's first code says eps: 0 and computes with 1e-3
    method = (said.first(str, "algo.name", "model_type") or "").lower()
    if (
        method.startswith("duo")
        or method == "distillation"
        or said.first(str, "diffusion") == "uniform"
    ):
        return CheckpointConfig(UNIFORM, None, True, schedule, **_training(said))
    sees_alpha = bool(said.first(bool, "algo.time_conditioning", "time_conditioning"))
    mask_id = (
        shape.vocab_size - 1 if mask_id is None else mask_id
    )  # MDLM puts MASK behind the tokenizer's tokens
    return CheckpointConfig(MASKED, mask_id, sees_alpha, schedule, **_training(said))


def _training(said: _Said) -> dict[str, Any]:
    """`length` and `dropout`, where they are there."""
    length = said.first(int, "length", "model_length", "model.length")
    if length is not None and not 1 <= length <= LONGEST:
        raise CheckpointError(
            f"{said.where}: `length` is the tokens of a row: got {length}, want 1 to {LONGEST}"
        )
    dropout = said.first(float, "dropout", "model.dropout")
    return {
        name: value
        for name, value in (("length", length), ("dropout", dropout))
        if value is not None
    }
