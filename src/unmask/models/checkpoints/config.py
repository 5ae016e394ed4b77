"""Configs of models, of unmask and of other codes: kind, MASK, noise and row length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial
from unmask.models.checkpoints import CheckpointError
from unmask.models.denoiser import AUTOREGRESSIVE, KINDS, MASKED, UNIFORM
from unmask.models.dit import Shape

OURS = "unmask"  # the `format` entry of our own configs
SCHEDULES = {schedule.__name__: schedule for schedule in (LogLinear, Cosine, Polynomial)}
LARGEST_LENGTH = 2**20  # tokens of a training row; texts are drawn at that length by default
CARD = "unmask_card"  # the entry of our Lightning checkpoints that holds the card of a model
# Parameterisations for which log softmax(logits) is not the distribution of the text.
OTHER_OUTPUTS = ("sedd", "score", "d3pm")
_MASK_NAMES = ("mask_id", "mask_index", "mask_token_id")  # in our own and other configs


@dataclass(frozen=True)
class CheckpointConfig:
    """How a network is used: its kind, MASK, noise level and noise schedule.

    Attributes:
        kind: "masked", "uniform" or "autoregressive"
        mask_id: the id of MASK; None in a uniform process, and in a vocabulary without MASK
        sees_alpha: whether the network gets the noise level
        schedule: noise schedule of the training; None for an autoregressive model
        length: tokens of a training row
        dropout: dropout in training
    """

    kind: str
    mask_id: int | None
    sees_alpha: bool
    schedule: NoiseSchedule | None
    length: int = 1024
    dropout: float = 0.1

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON for `parse_config`; ValueError for a schedule not in `SCHEDULES`."""
        if self.schedule is None:
            return asdict(self)
        name = type(self.schedule).__name__
        if not isinstance(name, str) or name not in SCHEDULES:
            raise ValueError(
                f"schedule cannot be saved: got {self.schedule}, want one of {', '.join(SCHEDULES)}"
            )
        return asdict(self) | {"schedule": {"name": name, **vars(self.schedule)}}


def parse_config(config: Mapping[str, Any], shape: Shape, where: str) -> CheckpointConfig:
    """Read the config of a network with this shape.

    A config of unmask names its `format`. Hugging Face directories of MDLM and Duo have flat
    configs. Hydra's configs (SDTT, Lightning) are nested. The sizes of the network never come from
    a config.

    Args:
        config: The content of the file.
        shape: The shape that the weights have.
        where: Name of the file in errors.

    Raises:
        CheckpointError: The config contradicts itself or the weights.
    """
    if config.get("format") == OURS:
        parsed = own_config(config, where)
    else:
        parsed = _foreign_config(_ConfigReader(config, where), shape)
    if shape.causal != (parsed.kind == AUTOREGRESSIVE):
        raise CheckpointError(
            f"{where} contradicts its weights: kind is {parsed.kind}, and the weights are those of "
            f"{'an autoregressive' if shape.causal else 'a denoising'} network"
        )
    return parsed


def own_config(config: Mapping[str, Any], where: str) -> CheckpointConfig:
    """Read a config that `Model.save` wrote; CheckpointError if it contradicts itself."""
    reader = _ConfigReader(config, where)
    kind, mask_id = reader.first(str, "kind"), reader.first(int, "mask_id")
    if kind not in KINDS:
        raise CheckpointError(f"{where}: `kind` is unknown: got {kind!r}, want {', '.join(KINDS)}")
    if kind != AUTOREGRESSIVE and (mask_id is None) != (kind == UNIFORM):
        raise CheckpointError(
            f"{where}: `mask_id` contradicts `kind`: got {mask_id} for {kind}; "
            "masked models have a MASK, uniform ones do not"
        )
    schedule = None if kind == AUTOREGRESSIVE else _schedule(reader)
    sees_alpha = reader.first(bool, "sees_alpha")
    if sees_alpha is None and kind != AUTOREGRESSIVE:
        raise CheckpointError(
            f"{where}: `sees_alpha` is missing: it states whether the network gets the noise level"
        )
    return CheckpointConfig(kind, mask_id, bool(sees_alpha), schedule, **_training(reader))


def foreign_network(config: Mapping[str, Any]) -> str | None:
    """The class name of the network in a config of unmask, if it is not a `DiT`."""
    name = config.get("network") if config.get("format") == OURS else None
    return name if isinstance(name, str) else None


def names_mask(config: Mapping[str, Any]) -> bool:
    """True if a config names MASK."""
    return _ConfigReader(config, "the config").first(int, *_MASK_NAMES) is not None


def card_of(config: Mapping[str, Any]) -> dict[str, object]:
    """The card in the config of a model that unmask saved; {} for other models."""
    card = config.get("card") if config.get("format") == OURS else config.get(CARD)
    return card if isinstance(card, dict) else {}


@dataclass(frozen=True)
class _ConfigReader:
    """Typed access to a config; `where` names its file in errors."""

    values: Mapping[str, Any]
    where: str

    def first(self, kind: type, *paths: str) -> Any:
        """The value of the first dotted name present, or None; CheckpointError for other types."""
        for path in paths:
            value: Any = self.values
            for part in path.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            # Hydra writes "${...}" for a reference that it did not resolve.
            if value is None or (isinstance(value, str) and value.startswith("${")):
                continue
            if kind is float and type(value) is int and abs(value) < 2**53:
                value = float(value)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise CheckpointError(
                    f"{self.where}: `{path}` has the wrong type: got {type(value).__name__}, "
                    f"want {kind.__name__}"
                )
            return value
        return None


def _schedule(reader: _ConfigReader) -> NoiseSchedule:
    options = dict(reader.first(dict, "schedule") or {})
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise CheckpointError(
            f"{reader.where}: `schedule` is unknown: got {name!r}, want one of "
            f"{', '.join(SCHEDULES)}"
        )
    for option, value in options.items():
        if type(value) not in (int, float) or not abs(value) < 2**53:
            raise CheckpointError(
                f"{reader.where}: `schedule.{option}` is not a number below 2^53: "
                f"got {str(value)[:50]}"
            )
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise CheckpointError(
            f"{reader.where}: `schedule` has options that {name} does not accept: got {options}; "
            f"{error}"
        ) from error


def _foreign_config(reader: _ConfigReader, shape: Shape) -> CheckpointConfig:
    mask_id = reader.first(int, *_MASK_NAMES)
    if mask_id is None:
        # MDLM puts MASK after the tokenizer's tokens. Autoregressive models never train or predict
        # that row.
        mask_id = shape.vocab_size - 1
    if shape.causal:
        return CheckpointConfig(AUTOREGRESSIVE, mask_id, False, None, **_training(reader))
    output = reader.first(str, "algo.parameterization", "parameterization.name", "parameterization")
    if output in OTHER_OUTPUTS:
        raise CheckpointError(
            f"{reader.where}: `parameterization` is not supported: got {output}, want subs or "
            f"mean, because a {output} network does not predict the distribution of the text"
        )
    noise = reader.first(str, "noise.type", "noise.name") or "loglinear"
    if noise.replace("-", "") != "loglinear":
        raise CheckpointError(
            f"{reader.where}: `noise.type` is not supported: got {noise}, "
            "want loglinear for foreign models"
        )
    eps = reader.first(float, "noise.eps")
    # Duo's first code writes eps: 0 and computes with 1e-3.
    schedule = LogLinear(eps) if eps else LogLinear()
    method = (reader.first(str, "algo.name", "model_type") or "").lower()
    if (
        method.startswith("duo")
        or method == "distillation"
        or reader.first(str, "diffusion") == "uniform"
    ):
        return CheckpointConfig(UNIFORM, None, True, schedule, **_training(reader))
    sees_alpha = bool(reader.first(bool, "algo.time_conditioning", "time_conditioning"))
    return CheckpointConfig(MASKED, mask_id, sees_alpha, schedule, **_training(reader))


def _training(reader: _ConfigReader) -> dict[str, Any]:
    """Read `length` and `dropout`, if present."""
    length = reader.first(int, "length", "model_length", "model.length")
    if length is not None and not 1 <= length <= LARGEST_LENGTH:
        raise CheckpointError(
            f"{reader.where}: `length` is outside its range: got {length}, "
            f"want 1 to {LARGEST_LENGTH} tokens"
        )
    dropout = reader.first(float, "dropout", "model.dropout")
    values = {"length": length, "dropout": dropout}
    return {name: value for name, value in values.items() if value is not None}
