"""Every recipe in miniature: a small corpus, one narrow block, two steps on the CPU."""

from dataclasses import replace
from pathlib import Path

from unmask.recipes.objective_settings import CurriculumSettings, MomentsSettings, SdttSettings
from unmask.recipes.schema import Recipe

LENGTH, VOCABULARY = 16, 262
WORDS = (
    "the state of the union is that teachers tell and a student learns what noise has left of "
    "the text"
).split()


def corpus(folder: Path, documents: int = 24) -> Path:
    """A folder of small texts, each with other words in another order."""
    folder.mkdir()
    for number in range(documents):
        words = [WORDS[(number * 5 + place * (number % 7 + 1)) % len(WORDS)] for place in range(40)]
        (folder / f"{number:02}.txt").write_text(f"{number}. " + " ".join(words), "utf-8")
    return folder


def shrink(
    recipe: Recipe, text: Path, start: Path | None = None, tokens: Path | None = None
) -> Recipe:
    """The same recipe with small numbers.

    A round lasts one step, and so does soft input. Precision "fastest", which each machine decides
    by timing, becomes float32.

    Args:
        recipe: a named recipe.
        text: the corpus.
        start: the model that the weights start from, if any.
        tokens: directory of the tokenizer; by default `start`, else it is trained on the text.
    """
    objective, traits, tokens = recipe.objective, recipe.traits, tokens or start
    if isinstance(objective, CurriculumSettings):
        objective = replace(objective, soft_steps=1)
    if isinstance(objective, SdttSettings):
        # In a small step of a short row no token would be revealed.
        objective = replace(objective, delta0=1 / 8, count=2)
    if isinstance(objective, MomentsSettings):
        objective = replace(objective, critic_start=0)  # the second step trains the student
    if traits.start or traits.distils:
        objective = replace(objective, **{traits.start_field: str(start)})
    if traits.round_steps is not None:
        objective = replace(objective, round_steps=1)
    decay = None if recipe.optim.decay_steps is None else 4
    tokenizer = str(tokens) if tokens else f"bpe:{VOCABULARY}"
    return replace(
        recipe,
        objective=objective,
        network=replace(recipe.network, length=LENGTH, width=8, blocks=1, heads=2, cond_dim=4),
        data=replace(recipe.data, corpus=str(text), tokenizer=tokenizer),
        optim=replace(recipe.optim, warmup_steps=1, decay_steps=decay),
        precision="float32" if recipe.precision == "fastest" else recipe.precision,
        batch_size=4,
        accumulation=min(recipe.accumulation, 2),
        steps=2,
        save_every=1,
    )
