"""`unmask reproduce table1 | table2 | table3 | figure3`: the paper's tables, run again, its values beside ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unmask import __version__
from unmask.atomic_files import write_text
from unmask.cli.console import emit, follow, say, table
from unmask.dataclass_json import dumps, to_json
from unmask.evaluation.measure import protocol_words, require_same_protocol
from unmask.experiments.comparison import failure, folder
from unmask.experiments.experiment import ROWS
from unmask.experiments.paper_plans import Name, Scale, plan
from unmask.experiments.paper_tables import (
    Plan,
    TableLine,
    carry,
    doubts,
    lines,
    newest,
    record,
    shown,
)
from unmask.experiments.published import FAILED, TABLES
from unmask.recipes.estimate import estimate
from unmask.recipes.schema import Recipe

RECORD = "table.json"
SHARES = {"figure3": "table1"}  # whose runs it goes on with
Share = Callable[[list[str], Sequence[str], int], bool]


def reproduce(
    name: Name,
    scale: Scale,
    work: Path | None,
    only: tuple[str, ...],
    jobs: int | None,
    dry_run: bool,
    share: Share,
) -> tuple[bool, Path]:
    """Carry a table out and print it; whether all is done, and where it is kept."""
    work = work or Path("runs") / f"{SHARES.get(name, name)}-{scale}"
    told = plan(name, scale, work)
    if dry_run:
        emit(preview(name, told))
        return True, work
    runs = list(told.runs())
    wanted = [run for run in runs if not only or run in only or run.rpartition(",")[0] in only]
    if unknown := sorted({*only} - {*runs} - {*told.methods}):
        raise ValueError(
            f"the cells are {', '.join(told.methods)}: there is none called {', '.join(unknown)}"
        )
    if jobs is not None and jobs > 1 and told.device != "cpu":
        raise ValueError(
            f"jobs has no effect: got {jobs}, and {name} runs on one {told.device}; leave --jobs out"
        )
    jobs = (jobs or os.cpu_count() or 1) if told.device == "cpu" else 1
    if jobs > 1 and len(wanted) > 1:
        done = (
            follow(carry(told, work, ())) is not None
        )  # models to train first, and the teachers' rows, once
        show_doubts(told, work)
        done = done and share([name, "--work", str(work), "--scale", scale], wanted, jobs)
    else:
        done = follow(carry(told, work, wanted)) is not None
        show_doubts(told, work)
    show(name, told, work)
    if done and not only:
        page(name, told, work)
    return done, work


def show_doubts(told: Plan, work: Path) -> None:
    """The teacher under each precision of the draw: before anything is compared."""
    rows = doubts(told, work)
    if rows:
        body = [[row.name, row.setting.steps, row.measures["gen_ppl"].value, row.measures["entropy"].value,
                 row.setting.nfe] for row in rows]  # fmt: skip
        table(
            "the same teacher; precision of the draw, top-p",
            ["", "steps", "gen PPL", "entropy", "calls"],
            body,
        )


def show(name: Name, told: Plan, work: Path) -> None:
    """The table: gen PPL / entropy, published values on the line below."""
    found = lines(told, work)
    words = (
        _protocol(told, work) if found else ""
    )  # refuses rows of two protocols before any of them is shown
    steps = sorted({count for line in found for count in line.cells})
    if not found:
        return
    body: list[list[object]] = []
    for line in found:
        body.append([str(line), *(_cell(line, count, told.seeds) for count in steps)])
        published = [TABLES[name].get((line.name, line.round, count), ()) for count in steps]
        for source in dict.fromkeys(cell.source for cells in published for cell in cells):
            known = [
                next((str(cell) for cell in cells if cell.source == source), "")
                for cells in published
            ]
            body.append([f"  {source}", *known])
        if (name, line.name) in FAILED:
            body.append([f"  {FAILED[name, line.name]}", *[""] * len(steps)])
    table(
        f"{told.title}: gen PPL / entropy; mean over training seeds",
        ["", *(f"{n} steps" for n in steps)],
        body,
    )
    for run in told.runs():
        if why := failure(work / folder(run)):
            say(f"{run}: {why}")
    say(words)


def _cell(line: TableLine, steps: int, seeds: int) -> str:
    if steps not in line.cells:
        return "failed" if line.failed else ""
    cell = line.cells[steps]
    missing = f" ({cell.seeds} of {seeds} seeds)" if line.round and cell.seeds < seeds else ""
    return f"{cell.gen_ppl.value:.4g} / {cell.entropy.value:.2f}{missing}"


def _protocol(told: Plan, work: Path) -> str:
    names = {*told.teachers}
    rows = [row for row in newest(work / ROWS) if row.name in names]
    rows += [row for run in told.runs() for row in newest(work / folder(run) / ROWS)]
    return protocol_words(
        require_same_protocol(rows), {seed for row in rows for seed in row.setting.seeds}
    )


def page(name: Name, told: Plan, work: Path) -> None:
    """Write table.json, its picture and its page."""
    from unmask.experiments.report.paper import write_table

    steps = told.study.student_steps[len(told.study.student_steps) // 3]
    rows = [
        {"name": row.name, "steps": row.setting.steps, "nfe": row.setting.nfe,
         **{key: row.measures[key].value for key in ("gen_ppl", "entropy")}}
        for row in doubts(told, work)
    ]  # fmt: skip
    content = record(told, work, TABLES[name]) | {
        "methods": {title: method.teacher for title, method in told.methods.items()},
        "doubts": rows,
        "seeds": told.seeds,
        "failed": {line: words for (table_, line), words in FAILED.items() if table_ == name},
        "texts": shown(told, work, steps),
        "shown_steps": steps,
        "protocol": _protocol(told, work),
        "version": __version__,
        "lede": f"Gen PPL at entropy in {steps} steps: {'; '.join(_last(told, work, steps))}.",
    }
    file = work / (RECORD if name not in SHARES else f"{name}.json")
    write_text(file, dumps(content, indent=1) + "\n")
    say(f"{write_table(content, work, name)}: the page; {work / f'{name}.png'}: the picture")


def _last(told: Plan, work: Path, steps: int) -> list[str]:
    """Each teacher, and each method after its last round, in one step count."""
    last = {line.name: line for line in lines(told, work) if steps in line.cells}
    cells = ((line, line.cells[steps]) for line in last.values())
    return [
        f"{line} {cell.gen_ppl.value:.4g} at {cell.entropy.value:.2f} nats" for line, cell in cells
    ]


def preview(name: Name, told: Plan) -> dict[str, Any]:
    """What a plan would do: trainings with their cost, rows, published values."""
    steps = told.study.student_steps

    def cost(one: Recipe) -> dict[str, float | int]:
        """Of a recipe whose tokenizer may be that of a model which is not trained yet."""
        later = any(one.data.tokenizer == teacher.model for teacher in told.teachers.values())
        first = next(iter(told.train.values()), one)
        return estimate(
            replace(one, data=replace(one.data, tokenizer=first.data.tokenizer)) if later else one
        )

    return {
        "title": told.title,
        "judge": told.judge,
        "device": told.device,
        "study": to_json(told.study),
        "train first": {title: cost(first) for title, first in told.train.items()},
        "teachers": {title: to_json(teacher) for title, teacher in told.teachers.items()},
        "runs": {
            title: {"recipe": to_json(told.recipe(method)), "estimate": cost(method.recipe)}
            for title, method in told.methods.items()
        },
        "seeds": told.seeds,
        "rows": len(steps)
        * (len(told.teachers) + told.seeds * sum(m.rounds.count for m in told.methods.values())),
        "published": {
            f"{line} R{round_} at {count} steps" if round_ else f"{line} at {count} steps": list(
                map(str, cells)
            )
            for (line, round_, count), cells in TABLES[name].items()
        },
    }
