"""`unmask train` and `unmask distill`: run a recipe in a run directory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.console import emit, is_main_process, parse, progress, remark, show_usage
from unmask.dataclass_json import to_json
from unmask.recipes.catalog import RECIPES, recipe
from unmask.recipes.estimate import estimate
from unmask.recipes.run import run
from unmask.recipes.schema import Recipe, recipe_of
from unmask.recipes.unused_settings import check_flags
from unmask.training import Update


@dataclass(frozen=True)
class Arguments:
    """Train a recipe. Every field of the recipe is a flag.

    Attributes:
        recipe: the recipe to train
        out: run directory; None: runs/NAME
        dry_run: print the complete recipe with its parameters, memory and tokens; train nothing
        resume: resume from the newest state in the run directory; --no-resume refuses an
            existing run
        shard: with several processes, keep a part of weights, moments and EMA on each (FSDP2).
            Results change only by rounding, and a run can resume without --shard
        json: print JSON lines instead of sentences
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    dry_run: bool = False
    resume: bool = True
    shard: bool = False
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    recipes = [function() for function in RECIPES]
    names = ", ".join(item.name for item in recipes if item.traits.verb == verb)
    if not arguments or arguments[0].startswith("-"):
        usage = f"usage: unmask {verb} RECIPE [--out DIR] [--dry-run] [flags of the recipe]"
        return show_usage(verb, f"{usage}\nrecipes: {names}", arguments)
    name, *rest = arguments
    started = (Path(name) / "recipe.json").exists()
    chosen = recipe_of(Path(name)) if started else recipe(name)
    if chosen.traits.verb != verb:
        raise ValueError(
            f"recipe {chosen.name!r} does not belong to `unmask {verb}`: its objective is "
            f"{chosen.objective.kind}; use `unmask {chosen.traits.verb}`"
        )
    # The old name of the flag.
    rest = [
        re.sub(r"^--objective\.faithful(?==|$)", "--objective.time-grid", word) for word in rest
    ]
    options = parse(Arguments, f"{verb} {name}", rest, Arguments(chosen))
    check_flags(options.recipe, chosen, estimated=options.dry_run)
    out = options.out or (Path(name) if started else Path("runs") / options.recipe.name)
    if options.dry_run:
        estimated = estimate(options.recipe)
        emit({"recipe": to_json(options.recipe), "out": str(out), "estimate": estimated})
        return 0
    _train(options, out)
    if (out / "model").exists():
        remark(f"{out}/model holds the model")
        return 0
    remark(f"stopped; `unmask {verb} {shlex.quote(str(out))}` resumes from the state in {out}")
    return 1


def _train(options: Arguments, out: Path) -> None:
    """Run the recipe and print its updates.

    OSError if the output cannot be written: its reader has closed, or its disk is full. The state
    is saved first.
    """
    faults: list[OSError] = []
    with progress() as (advance, note), tensorboard(out) as board:
        for update in run(
            options.recipe,
            out,
            say=note,
            resume=options.resume,
            sharded=options.shard,
            stop=lambda: bool(faults),
        ):
            advance(options.recipe.name, update.step, options.recipe.steps)
            board(update)
            if options.json and not faults:
                try:
                    emit(update.record(), indent=None)
                except OSError as error:
                    faults.append(error)
            elif update.student is not None or update.step % 100 == 0:
                speed = update.tokens / update.seconds
                note(
                    f"step {update.step}: loss {update.loss:.4f} nats a token, "
                    f"{speed:.0f} tokens a second"
                )
    if faults:
        raise faults[0]


@contextmanager
def tensorboard(out: Path) -> Iterator[Callable[[Update], None]]:
    """Yield a function that writes an update to `out`/tensorboard.

    It does nothing if TensorBoard is not installed, and on all processes but the first.
    metrics.jsonl has the same numbers.
    """
    if find_spec("tensorboard") is None or not is_main_process():
        yield lambda update: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as stack:
        # Created at the first update, because a new run directory must be empty before it.
        @cache
        def writer() -> SummaryWriter:
            return stack.enter_context(SummaryWriter(str(out / "tensorboard")))

        def write(update: Update) -> None:
            for name, value in update.record().items():
                if isinstance(value, float):
                    writer().add_scalar(name, value, update.step)

        yield write
