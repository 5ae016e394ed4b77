"""The training text that the card of a model names."""

from __future__ import annotations

from collections.abc import Mapping

from unmask.data.hub import local_or_hub
from unmask.dataclass_json import from_json, read_json
from unmask.recipes.schema import DataSettings

HELD_OUT = "held_out_digest"  # card entry: digest of the documents that the training held out


def trained_on(name: str) -> DataSettings | None:
    """The training text of a model given by directory, hub id or unmask:NAME; None if not named."""
    file = local_or_hub(name, ("config.json",)) / "config.json"
    config = read_json(file) if file.exists() else None
    card = config.get("card") if isinstance(config, dict) else None
    return text_of(card, name) if isinstance(card, dict) else None


def text_of(card: Mapping[str, object], name: str) -> DataSettings | None:
    """The training text that a card names, or None. Errors call the model `name`."""
    recipe = card.get("recipe")
    if not isinstance(recipe, Mapping) or "data" not in recipe:
        return None
    return from_json(DataSettings, recipe["data"], f"data in the card of {name}")
