"""`unmask reproduce`: measure again what this project ships or claims."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from unmask.atomic_files import write_text
from unmask.cli.console import follow, parse, progress, say, table
from unmask.data.hub import PACKAGE_PREFIX, shipped
from unmask.dataclass_json import dumps, from_json, to_json
from unmask.diffusion.processes import MaskedProcess
from unmask.evaluation.judges import perplexity
from unmask.evaluation.measure import require_same_protocol
from unmask.experiments.ablation import cells as ablation_cells
from unmask.experiments.ablation import grid, scale, seeded
from unmask.experiments.commands import paper_tables as tables
from unmask.experiments.commands.workers import end_with_parent, shared
from unmask.experiments.comparison import (
    HEAD,
    Comparison,
    compare,
    failure,
    folder,
    means,
    reports_of,
    summary,
)
from unmask.experiments.demo import Demo, from_scratch, train, trained
from unmask.experiments.experiment import ROWS, read_rows, teacher_rows
from unmask.experiments.methods import HEAD as METHODS_HEAD
from unmask.experiments.methods import MASKED, UNIFORM, Methods
from unmask.experiments.methods import methods as compare_methods
from unmask.experiments.methods import summary as methods_summary
from unmask.experiments.study import SEEDS, Larger, larger
from unmask.experiments.study import cells as larger_cells
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.catalog import recipe
from unmask.recipes.held_out import Text, held_out, reading
from unmask.recipes.schema import Recipe

ASSETS = Path("src/unmask/assets")
SHIPPED = ("teacher", "judge", "duo")


@dataclass(frozen=True)
class Arguments:
    """Measure again what this project ships or claims.

    what    assets: train the shipped teachers and judge, and measure the masked teacher's rows
            measures: measure the shipped models again, their held-out likelihoods and the masked teacher's rows
            study: on rows of 256 tokens, distil by recipes that differ in one factor, and measure each
            ablation: the paper's setting of MCD and eight changes of one factor, two training seeds each
            methods: MCD and SDTT of the masked teacher, DCD of the uniform-state one
            table1, table2, table3, figure3: those of the paper, its values beside ours
    work    where the runs are kept (runs/assets, runs/study, ..); a run that was stopped goes on
    out     where finished assets go (src/unmask/assets)
    cells   cells of the study, the ablation or a table (all)
    scale   of the ablation: tiny, the demo's teacher on two cores; small, the teacher of the study. Of a table: tiny,
            two cores; small, a GPU for an hour; paper, OpenWebText and the public checkpoints on GPUs
    full    the ablation as a grid of all its factors, and structured couplings
    jobs    processes that share the runs of an ablation or a table, each with its part of the cores (one a core)
    dry_run  print what a table would train, measure and compare with, and do nothing
    """

    what: Annotated[
        Literal[
            "assets",
            "measures",
            "study",
            "ablation",
            "methods",
            "table1",
            "table2",
            "table3",
            "figure3",
        ],
        tyro.conf.Positional,
    ]
    work: Path | None = None
    out: Path | None = None
    cells: tuple[str, ...] = ()
    scale: Literal["tiny", "small", "paper"] = "tiny"
    full: bool = False
    jobs: int | None = None
    dry_run: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    end_with_parent()
    table = asked.what in ("table1", "table2", "table3", "figure3")
    ignored = {
        "dry_run": asked.dry_run and not table,
        "scale": asked.scale != "tiny" and asked.what in ("assets", "measures", "study", "methods"),
        "full": asked.full and asked.what != "ablation",
        "cells": bool(asked.cells) and asked.what in ("assets", "measures", "methods"),
        "out": asked.out is not None and asked.what not in ("assets", "measures"),
        "jobs": asked.jobs is not None and asked.what in ("assets", "measures", "study", "methods"),
    }
    if asked.jobs is not None and asked.jobs < 1:
        raise ValueError(
            f"jobs is too small: got {asked.jobs}, want jobs >= 1, processes that share the runs"
        )
    if wrong := [name for name, given in ignored.items() if given]:
        raise ValueError(
            f"`reproduce {asked.what}` takes no {', '.join(wrong)}: leave it out (see --help)"
        )
    work = asked.work or Path("runs") / asked.what
    if asked.what in ("table1", "table2", "table3", "figure3"):
        done, work = tables.reproduce(
            asked.what, asked.scale, asked.work, asked.cells, asked.jobs, asked.dry_run, shared
        )
    elif asked.what == "assets":
        done = assets(work, asked.out or ASSETS)
    elif asked.what == "measures":
        out = asked.out or ASSETS
        for name in SHIPPED:
            measure_card(out / name)
        shipped_rows(work, out)
        done = True
    elif asked.what == "study":
        done = study(work, asked.cells)
    elif asked.what == "methods":
        done = methods(work)
    else:
        done = ablation(
            work, asked.scale, asked.full, asked.cells, asked.jobs or os.cpu_count() or 1
        )
    if not done:
        say(f"stopped; the state is saved in {work}, and the same command goes on from there")
    return 0 if done else 1


def assets(work: Path, out: Path) -> bool:
    """Train, publish, measure; whether all is done."""
    plans = from_scratch(Demo(from_scratch=True), work)
    duo = recipe("demo-duo")
    plans["duo"] = replace(duo, data=replace(duo.data, tokenizer=str(work / "teacher" / "model")))
    follow(train(plans, work))
    if not trained(plans, work):
        return False
    for name in plans:
        publish(work / name, out / name)
        say(f"{out / name}: shipped")
    shipped_rows(work, out)
    return True


def shipped_rows(work: Path, out: Path) -> None:
    """Measure the masked teacher of `out` and write its rows there; those in `work` are not measured again."""
    settings = Demo()
    rows = teacher_rows(
        str(out / "teacher"), str(out / "judge"), settings.student, settings.study, work / ROWS
    )
    found = []
    with progress() as (advance, _):
        for event, measured in rows:
            advance(event.stage, event.done, event.total)
            found.append(dumps(measured.row.to_json()) + "\n")
    write_text(out / ROWS, "".join(found))


def study(work: Path, only: tuple[str, ...]) -> bool:
    """Carry the larger study out, all cells or `only` some; print the table of the cells that are measured, draw it."""
    settings = Larger()
    done = follow(larger(settings, work, only)) is not None
    reports = reports_of([*larger_cells(settings.student)], work)
    both = [reports[name] for name in SEEDS if name in reports]
    lines = summary(reports) + (means(f"{len(both)} seeds", both) if len(both) > 1 else [])
    show(lines, reports, work / "study.png", max(settings.study.teacher_steps) // 16)
    return done


def ablation(work: Path, name: str, full: bool, only: tuple[str, ...], jobs: int) -> bool:
    """Carry the ablation out; print means over seeds, what failed, and the picture of each cell's first seed."""
    settings = scale(name)
    cells = grid(settings.base) if full else ablation_cells(settings.base)
    runs = seeded(cells)
    title = f"Ablation of {settings.base.name}"
    known = (
        read_rows(shipped() / ROWS, shipped=True)
        if settings.teacher.startswith(PACKAGE_PREFIX)
        else []
    )
    plan = Comparison(title, settings.teacher, settings.judge, runs, settings.study, known)
    if unknown := sorted({*only} - {*runs} - {*cells}):
        raise ValueError(
            f"the cells are {', '.join(cells)}: there is none called {', '.join(unknown)}"
        )
    wanted = [run for run in runs if not only or run in only or run.rpartition(",")[0] in only]
    if jobs > 1 and len(wanted) > 1:
        follow(compare(plan, work, ()))  # the teacher's rows, once
        done = shared(
            ["ablation", "--work", str(work), "--scale", name, *(["--full"] if full else [])],
            wanted,
            jobs,
        )
    else:
        done = follow(compare(plan, work, wanted)) is not None
    reports = reports_of(list(runs), work)
    groups = {
        cell: [report for run, report in reports.items() if run.rpartition(",")[0] == cell]
        for cell in cells
    }
    for run in runs:
        if why := failure(work / folder(run)):
            say(f"{run}: {why}")
    lines = []
    for cell, found in groups.items():
        name = cell if len(found) == len(runs) // len(cells) else f"{cell} ({len(found)} seed)"
        lines += means(name, found) if found else []
    first = {cell: found[0] for cell, found in groups.items() if found}
    show(lines, first, None if only else work / "ablation.png", max(settings.study.student_steps))
    return done


def methods(work: Path) -> bool:
    """Compare the methods; print where each stands, and its gains over its own teacher."""
    settings = Methods()
    done = (
        follow(compare_methods(settings, work, read_rows(shipped() / ROWS, shipped=True)))
        is not None
    )
    reports = reports_of([*settings.masked], work / MASKED) | reports_of(
        [*settings.uniform], work / UNIFORM
    )
    if reports:
        table("methods", METHODS_HEAD, methods_summary(reports))
    show(summary(reports), reports, work / "methods.png", settings.study.round_steps)
    return done


def show(
    lines: list[list[str]],
    reports: Mapping[str, Mapping[str, Any]],
    picture: Path | None,
    steps: int,
) -> None:
    """The table of a comparison and its picture, if anything is measured; all under one protocol."""
    if not reports:
        return
    from unmask.experiments.report.figures import comparison_figure
    from unmask.experiments.report.plot_helpers import save_figure
    from unmask.experiments.report.report_schema import read_report

    records = {name: read_report(report) for name, report in reports.items()}
    require_same_protocol(row.row for record in records.values() for _, row in record.rows)
    table("students; gains over a temperature-scaled teacher at equal steps", HEAD, lines)
    if picture is not None:
        save_figure(comparison_figure(records, steps), picture)
        say(f"{picture}: all cells at {steps} steps")


def publish(run: Path, out: Path) -> None:
    """Ship the averaged weights of a run in bfloat16, with recipe, held-out likelihood and training curve."""
    load(run / "model").save(out, dtype=torch.bfloat16)
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    write_text(out / "metrics.jsonl", "\n".join(lines[::20] + lines[-1:]) + "\n")
    measure_card(out)


def measure_card(out: Path) -> None:
    """Write the recipe and the held-out likelihood of a shipped model, rounded as it is, into its two cards."""
    model = load(out)
    plan = from_json(Recipe, model.card["recipe"], f"recipe in the card of {out}")
    if not plan.data.tokenizer.startswith(
        "bpe:"
    ):  # only the teacher's run trains a tokenizer: the others share it
        plan = replace(plan, data=replace(plan.data, tokenizer=PACKAGE_PREFIX + "teacher"))
    known = held_out(Text(), str(out), model)
    read, n = reading(model, known.data.wrap), len(known.rows)
    likelihood = (
        f"{perplexity(read.scores(known.some('all')), read.unit)} [{read.words}; {known.words(n)}]"
    )
    model.save(out, dtype=torch.bfloat16, recipe=to_json(plan), held_out_perplexity=likelihood)
    write_text(out / "README.md", card(out.name, plan, model, likelihood))


def card(name: str, plan: Recipe, model: Model | CausalModel, likelihood: str) -> str:
    """The model card of a shipped model, from its recipe and what was measured."""
    if isinstance(model, CausalModel):
        kind = "An autoregressive judge"
    else:
        masked = isinstance(model.process, MaskedProcess)
        kind = (
            "A masked-diffusion teacher (MDLM)"
            if masked
            else "A uniform-state diffusion teacher (Duo)"
        )
    tokens = plan.steps * plan.batch_size * plan.network.length / 1e6
    vocab_size, length = model.vocab_size, plan.network.length
    return f"""# The demo's {name}

{kind} of {model.parameters:,} weights for `unmask demo` and `unmask reproduce`:
small enough for two CPU cores, and good for nothing else.
`make assets` makes it from the recipe `{plan.name}`, which stands whole in `config.json`.

| | |
|---|---|
| text | {plan.data.part} of `{plan.data.corpus}`: messages of US presidents, 1790 to 2026, public domain |
| rows | {length} tokens of a byte-level BPE with {vocab_size} entries, trained on the teacher's half |
| training | {plan.steps:,} updates of {plan.batch_size} rows, {tokens:.0f} M tokens; see `metrics.jsonl` |
| held-out perplexity a token | {likelihood}, ± a standard error |
| weights | moving average, bfloat16, Apache-2.0 |

`unmask eval likelihood src/unmask/assets/{name} --limit all` measures the perplexity again. Teacher and judge saw
different documents. A judge this small measures likeness to presidential prose, not quality of text: its figures
compare with each other under one protocol, and with no paper's.
"""
