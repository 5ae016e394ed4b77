"""`unmask train` and `unmask distill`: carry out a recipe in a run directory."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.console import emit, emit_line, parse, progress, remark, show_usage, speaks
from unmask.dataclass_json import to_json
from unmask.recipes.catalog import RECIPES, recipe
from unmask.recipes.estimate import estimate
from unmask.recipes.run import run
from unmask.recipes.schema import DistillationSettings, Recipe, recipe_of
from unmask.recipes.unused_settings import check_flags
from unmask.training import Update


@dataclass(frozen=True)
class Arguments:
    """Train a recipe. Every field of the recipe is a flag.

    recipe   what is trained
    out      the run directory (runs/NAME)
    dry_run  print the resolved recipe with its parameters, memory and tokens, and train nothing
    resume   go on from the newest state in the run directory; --no-resume refuses one that holds a run
    shard    of several processes, each holds a part of every weight, moment and average (FSDP2) and not all of them;
             it changes no number but by rounding, and a run may go on without it
    json     print JSON lines instead of sentences
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    dry_run: bool = False
    resume: bool = True
    shard: bool = False
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    names = ", ".join(function().name for function in RECIPES if _fits(verb, function()))
    if not arguments or arguments[0].startswith("-"):
        usage = f"usage: unmask {verb} RECIPE [--out DIR] [--dry-run] [flags of the recipe]\nrecipes: {names}"
        return show_usage(verb, usage, arguments)
    name, *rest = arguments
    chosen = _chosen(name)
    if not _fits(verb, chosen):
        other = "distill" if verb == "train" else "train"
        raise ValueError(
            f"recipe {chosen.name!r} is for `unmask {other}`: its objective is {chosen.objective.kind}"
        )
    asked = parse(Arguments, f"{verb} {name}", rest, Arguments(chosen))
    check_flags(asked.recipe, chosen, estimated=asked.dry_run)
    out = asked.out or (
        Path(name) if (Path(name) / "recipe.json").exists() else Path("runs") / asked.recipe.name
    )
    if asked.dry_run:
        emit({"recipe": to_json(asked.recipe), "out": str(out), "estimate": estimate(asked.recipe)})
        return 0
    with progress() as (advance, note), tensorboard(out) as board:
        lost: list[OSError] = []  # the output: its reader has gone, or its disk is full
        for update in run(
            asked.recipe,
            out,
            say=note,
            resume=asked.resume,
            sharded=asked.shard,
            stop=lambda: bool(lost),
        ):
            advance(asked.recipe.name, update.step, asked.recipe.steps)
            board(update)
            if asked.json and not lost:
                try:
                    emit_line(update.record())
                except OSError as error:  # the run is saved before it ends
                    lost.append(error)
            elif update.student is not None or update.step % 100 == 0:
                speed = update.tokens / update.seconds
                note(
                    f"step {update.step}: loss {update.loss:.4f} nats a token, {speed:.0f} tokens a second"
                )
    if lost:
        raise lost[0]
    done = (out / "model").exists()
    goes_on = f"stopped; `unmask {verb} {shlex.quote(str(out))}` goes on from the state in {out}"
    remark(f"{out}/model holds the model" if done else goes_on)
    return 0 if done else 1


@contextmanager
def tensorboard(out: Path) -> Iterator[Callable[[Update], None]]:
    """Writes updates to `out`/tensorboard where TensorBoard is installed, one process of them all; metrics.jsonl is
    written always.
    """
    if find_spec("tensorboard") is None or not speaks():
        yield lambda update: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as stack:

        @cache
        def writer() -> (
            SummaryWriter
        ):  # at the first update: before, the run directory has to be empty
            return stack.enter_context(SummaryWriter(str(out / "tensorboard")))

        def write(update: Update) -> None:
            for name, value in update.record().items():
                if isinstance(value, float):
                    writer().add_scalar(name, value, update.step)

        yield write


def _chosen(name: str) -> Recipe:
    """A recipe by name, or the one of a run directory."""
    return recipe_of(Path(name)) if (Path(name) / "recipe.json").exists() else recipe(name)


def _fits(verb: str, chosen: Recipe) -> bool:
    return (verb == "distill") == isinstance(chosen.objective, DistillationSettings)
