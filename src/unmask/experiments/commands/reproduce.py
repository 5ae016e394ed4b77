"""`unmask reproduce`: measure again what this project ships or claims."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unmask.cli.console import emit, follow, parse, say
from unmask.dataclass_json import to_json
from unmask.experiments.commands.results import show
from unmask.experiments.driver import run_plan, train
from unmask.experiments.paper_plans import Scale, paper_plan
from unmask.experiments.plan import Plan
from unmask.experiments.plans import ablation, methods, study, with_tokenizer
from unmask.experiments.published import TABLES
from unmask.experiments.shipped_models import NAMES, measure_card, measure_rows, publish, recipes
from unmask.recipes.estimate import estimate
from unmask.recipes.schema import Recipe
from unmask.training import stop_signals

ASSETS = Path("src/unmask/assets")
# Figures of the paper that are drawn from the runs of a table.
SHARED_RUNS = {"figure3": "table1"}
# An environment variable that marks a process started by `share_runs`.
WORKER = "UNMASK_WORKER"

What = Literal[
    "assets", "measures", "study", "ablation", "methods", "table1", "table2", "table3", "figure3"
]


@dataclass(frozen=True)
class Arguments:
    """Measure again what this project ships or claims.

    Attributes:
        what: assets: train the shipped teachers and judge, and measure the masked teacher's rows.
            measures: measure the shipped models' held-out likelihoods and the masked teacher's
            rows. study: on rows of 256 tokens, distil by recipes that differ in one factor.
            ablation: the paper's setting of MCD and eight changes of one factor, two training
            seeds. methods: MCD and SDTT of the masked teacher, and DCD of the uniform-state
            teacher. table1, table2, table3, figure3: those of the paper, with the published values
        work: directory of the runs; None: runs/assets, runs/study and so on. An interrupted run
            continues
        out: directory of finished assets; None: src/unmask/assets
        cells: names of cells or runs of a study, ablation or table; empty: all
        scale: size of the runs. ablation: tiny is the demo's teacher on two cores; small is the
            teacher of the study. Tables: tiny needs two cores; small needs a GPU for an hour; paper
            is OpenWebText and the public checkpoints on GPUs
        full: run the ablation as a grid of all its factors, with masks in spread order
        jobs: processes that share the runs, each with an equal part of the cores; None: one for
            each core, and 1 for study and methods
        dry_run: print the trainings, rows and published values of a table, then stop
    """

    what: Annotated[What, tyro.conf.Positional]
    work: Path | None = None
    out: Path | None = None
    cells: tuple[str, ...] = ()
    scale: Scale = "tiny"
    full: bool = False
    jobs: int | None = None
    dry_run: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    args = parse(Arguments, verb, arguments)
    end_with_parent()
    _refuse_unused(args)
    work = args.work or _directory(args)
    if args.what == "assets":
        done = _assets(work, args.out or ASSETS)
    elif args.what == "measures":
        out = args.out or ASSETS
        for name in NAMES:
            measure_card(out / name)
        follow(measure_rows(work, out))
        done = True
    else:
        plan = _plan(args, work)
        if args.dry_run:
            emit(preview(plan, args.what))
            return 0
        done = _run(plan, args, work)
        show(args.what, plan, work, whole=not args.cells, done=done)
    if not done:
        say(f"stopped: the state is saved in {work}; the same command continues from there")
    return 0 if done else 1


def _refuse_unused(args: Arguments) -> None:
    """Raise ValueError for a flag that has no effect on this job."""
    models, tables = args.what in ("assets", "measures"), args.what in TABLES
    unused = {
        "dry_run": args.dry_run and not tables,
        "scale": args.scale != "tiny" and not (tables or args.what == "ablation"),
        "full": args.full and args.what != "ablation",
        "cells": bool(args.cells) and models,
        "jobs": args.jobs is not None and models,
        "out": args.out is not None and not models,
    }
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(
            f"jobs is too small: got {args.jobs}, want jobs >= 1, a number of processes"
        )
    if names := [name for name, is_unused in unused.items() if is_unused]:
        raise ValueError(
            f"`reproduce {args.what}` takes no {', '.join(names)}: leave it out (see --help)"
        )


def _directory(args: Arguments) -> Path:
    """The default directory of a job's runs."""
    name = SHARED_RUNS.get(args.what, args.what)
    return Path("runs") / (f"{name}-{args.scale}" if args.what in TABLES else name)


def _plan(args: Arguments, work: Path) -> Plan:
    match args.what:
        case "study":
            return study(work)
        case "ablation":
            return ablation(args.scale, args.full)
        case "methods":
            return methods()
        case "table1" | "table2" | "table3" | "figure3":
            return paper_plan(args.what, args.scale, work)
        case _:
            raise ValueError(f"what: {args.what} has no plan")


def _run(plan: Plan, args: Arguments, work: Path) -> bool:
    """Carry out a plan, in several processes if it has several runs; return whether it is done."""
    runs = plan.select(args.cells)
    if plan.device not in (None, "cpu") and (args.jobs or 1) > 1:
        raise ValueError(
            f"jobs has no effect: got {args.jobs}, and {args.what} runs on one {plan.device}; "
            "leave --jobs out"
        )
    # By default study and methods do one run at a time, because their reports hold seconds.
    alone = plan.device not in (None, "cpu") or args.what in ("study", "methods")
    jobs = args.jobs or (1 if alone else os.cpu_count() or 1)
    if jobs == 1 or len(runs) == 1:
        return follow(run_plan(plan, work, runs))
    # This process computes the prerequisites and the teachers' rows, once for all processes.
    if not follow(run_plan(plan, work, ())):
        return False
    command = [args.what, "--work", str(work)]
    command += ["--scale", args.scale] if args.scale != "tiny" else []
    command += ["--full"] if args.full else []
    return share_runs(command, [str(run) for run in runs], jobs)


def share_runs(command: list[str], runs: Sequence[str], jobs: int) -> bool:
    """Distribute runs over processes of this command; return whether all of them are done.

    Each process gets an equal part of the cores. A signal is passed on, so that every process saves
    its state. The standard input of each process is a pipe from this process. If this process is
    killed, the pipe closes, and the others save their state and end.

    Args:
        command: Words of `unmask reproduce` without `--jobs` and `--cells`.
        runs: Titles of the runs.
        jobs: Processes, at most one a run.

    Raises:
        RuntimeError: A process failed although no signal arrived.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    start = [sys.executable, "-m", "unmask", "reproduce", *command, "--jobs", "1", "--cells"]
    with stop_signals() as stop:
        workers = [
            subprocess.Popen(
                [*start, *runs[first::jobs]],
                env=os.environ | {"OMP_NUM_THREADS": threads, WORKER: "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal sends Ctrl-C to this process only
            )
            for first in range(min(jobs, len(runs)))
        ]
        stopping = False
        while any(worker.poll() is None for worker in workers):
            if stop() and not stopping:
                stopping = True
                for worker in workers:
                    worker.terminate()
            time.sleep(0.1)
    codes = [worker.returncode for worker in workers]
    if any(codes) and not stopping:
        raise RuntimeError(
            f"processes of {command[0]} ended with exit codes {codes}: see their messages above"
        )
    return not any(codes)


def end_with_parent() -> None:
    """In a process of `share_runs`: send SIGTERM to itself when the parent process ends."""
    if os.environ.pop(WORKER, None) is None:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _assets(work: Path, out: Path) -> bool:
    """Train the shipped models, publish and measure them; return whether all is done."""
    plans = recipes(work)
    if not follow(train(plans, work)):
        return False
    for name in plans:
        publish(work / name, out / name)
        say(f"{out / name}: shipped")
    follow(measure_rows(work, out))
    return True


def preview(plan: Plan, name: str) -> dict[str, Any]:
    """A summary of a table's plan: trainings with their cost, rows, published values."""
    models = [teacher.model for teacher in plan.teachers.values()]

    def cost(recipe: Recipe) -> dict[str, float | int]:
        if recipe.data.tokenizer in models:  # perhaps not trained yet
            first = next(iter(plan.prerequisites.values()), recipe)
            recipe = with_tokenizer(recipe, first.data.tokenizer)
        return estimate(recipe)

    seeds = plan.seeds or 1
    rows = len(plan.teachers) + seeds * sum(cell.rounds.count for cell in plan.cells.values())
    first_runs = {run.cell: run for run in reversed(plan.runs)}
    return {
        "title": plan.title,
        "judge": plan.judge,
        "device": plan.device,
        "study": to_json(plan.study),
        "train first": {title: cost(recipe) for title, recipe in plan.prerequisites.items()},
        "teachers": {title: to_json(teacher) for title, teacher in plan.teachers.items()},
        "runs": {
            name: {"recipe": to_json(plan.recipe(first_runs[name])), "estimate": cost(cell.recipe)}
            for name, cell in plan.cells.items()
        },
        "seeds": seeds,
        "rows": len(plan.study.student_steps) * rows,
        "published": {
            f"{line} R{round_} at {steps} steps" if round_ else f"{line} at {steps} steps": [
                str(cell) for cell in cells
            ]
            for (line, round_, steps), cells in TABLES[name].items()
        },
    }
