"""Print the results of a plan as tables, and write its figures and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unmask.atomic_files import write_text
from unmask.cli.console import say, table
from unmask.dataclass_json import LARGEST_REPORT, dumps, read_json
from unmask.evaluation.answers import AtTarget
from unmask.evaluation.interpolation import NOT_REACHED, Estimate
from unmask.evaluation.measure import ENTROPIES, ENTROPY, Measure, over_seeds, require_same_protocol
from unmask.evaluation.sweep import REPORT
from unmask.experiments import paper_table
from unmask.experiments.plan import Plan, Run, failure
from unmask.experiments.plans import STUDY_SEEDS
from unmask.experiments.published import FAILED, TABLES
from unmask.experiments.report.comparison_figure import comparison_figure
from unmask.experiments.report.plotting import save_figure
from unmask.experiments.report.report_schema import Report, read_report
from unmask.experiments.report.table_page import write_table

HEAD = (
    "cell",
    "steps",
    "gen PPL",
    "entropy",
    *(f"gain at equal {name}" for name in ENTROPIES.values()),
)
METHODS_HEAD = (
    "method",
    "steps",
    "calls",
    "gen PPL",
    "entropy",
    "gen PPL at the unigram entropy of real text",
)


def show(name: str, plan: Plan, directory: Path, *, whole: bool, done: bool) -> None:
    """Print the tables of a plan, as far as it is measured, and write its figures.

    Args:
        name: The word after `unmask reproduce`.
        plan: The plan.
        directory: Its directory.
        whole: True if the command was for all cells.
        done: False if a signal stopped the command.
    """
    if name == "study":
        show_study(plan, directory)
    elif name == "ablation":
        show_ablation(plan, directory, whole)
    elif name == "methods":
        show_methods(plan, directory)
    else:
        show_paper_table(name, plan, directory)
        if done and whole:
            write_page(name, plan, directory)


def show_study(plan: Plan, directory: Path) -> None:
    """Print every cell with its intervals, and the means of cells that differ only in the seed."""
    reports = reports_of(plan, directory)
    lines = summary(reports)
    both = [report for run, report in reports.items() if run.cell in STUDY_SEEDS]
    lines += means(f"{len(both)} seeds", both) if len(both) > 1 else []
    steps = max(plan.study.teacher_steps) // 16
    _show_reports(lines, reports, directory / "study.png", steps)


def show_ablation(plan: Plan, directory: Path, whole: bool) -> None:
    """Print failures and means over seeds; if `whole`, also draw the first seed of each cell."""
    reports = reports_of(plan, directory)
    _show_failures(plan, directory)
    by_cell = {run.cell: report for run, report in reversed(reports.items())}
    first = {Run(cell): by_cell[cell] for cell in plan.cells if cell in by_cell}
    picture = directory / "ablation.png" if whole else None
    _show_reports(means_by_cell(plan, reports), first, picture, max(plan.study.student_steps))


def show_methods(plan: Plan, directory: Path) -> None:
    """Print every method after its teacher, then the gains of each method over its teacher."""
    teachers = [*plan.teachers]
    reports = reports_of(plan, directory)
    order = sorted(reports, key=lambda run: teachers.index(plan.cells[run.cell].teacher))
    reports = {run: reports[run] for run in order}
    if reports:
        table("methods", METHODS_HEAD, methods_table(reports))
    _show_reports(summary(reports), reports, directory / "methods.png", plan.study.round_steps)


def _show_reports(
    lines: list[list[str]], reports: Mapping[Run, Report], picture: Path | None, steps: int
) -> None:
    """Print a table and draw its figure, if there are reports. They must share one protocol."""
    if not reports:
        return
    require_same_protocol(row.row for report in reports.values() for _, row in report.rows)
    table("students; gains over a temperature-scaled teacher at equal steps", HEAD, lines)
    if picture is not None:
        named = {str(run): report for run, report in reports.items()}
        save_figure(comparison_figure(named, steps), picture)
        say(f"{picture}: all cells at {steps} steps")


def show_paper_table(name: str, plan: Plan, directory: Path) -> None:
    """Print the teacher in several precisions, then gen PPL / entropy above published values."""
    if precisions := [[*row.values()] for row in paper_table.precision_records(plan, directory)]:
        columns = ["", "steps", "gen PPL", "entropy", "calls"]
        table("the same teacher; precision of the draw, top-p", columns, precisions)
    lines = paper_table.table_lines(plan, directory)
    if not lines:
        return
    # Refuses rows of unequal protocols before any is printed.
    protocol = paper_table.protocol_line(plan, directory)
    steps = sorted({count for line in lines for count in line.cells})
    body: list[Sequence[object]] = []
    for line in lines:
        body.append([str(line), *(_cell(line, count, plan.seeds or 1) for count in steps)])
        published = [TABLES[name].get((line.name, line.round, count), ()) for count in steps]
        for source in dict.fromkeys(cell.source for cells in published for cell in cells):
            of_source = [[str(c) for c in cells if c.source == source] for cells in published]
            body.append([f"  {source}", *(cells[0] if cells else "" for cells in of_source)])
        if line.name in FAILED.get(name, {}):
            body.append([f"  {FAILED[name][line.name]}", *[""] * len(steps)])
    title = f"{plan.title}: gen PPL / entropy; mean over training seeds"
    table(title, ["", *(f"{count} steps" for count in steps)], body)
    _show_failures(plan, directory)
    say(protocol)


def _show_failures(plan: Plan, directory: Path) -> None:
    for run in plan.runs:
        if (reason := failure(plan.place(run, directory))) is not None:
            say(f"{run}: {reason}")


def _cell(line: paper_table.TableLine, steps: int, seeds: int) -> str:
    if steps not in line.cells:
        return "failed" if line.failed else ""
    cell = line.cells[steps]
    missing = f" ({cell.seeds} of {seeds} seeds)" if line.round and cell.seeds < seeds else ""
    return f"{cell.gen_ppl.value:.4g} / {cell.entropy.value:.2f}{missing}"


def write_page(name: str, plan: Plan, directory: Path) -> None:
    """Write the table as JSON, a figure and a page."""
    content = paper_table.table_record(plan, directory, TABLES[name], FAILED.get(name, {}))
    # Figure 3 shares the directory of table 1.
    file = directory / ("table.json" if name.startswith("table") else f"{name}.json")
    write_text(file, dumps(content, indent=1) + "\n")
    page = write_table(content, directory, name)
    say(f"{page}: the page; {directory / f'{name}.png'}: the figure")


def reports_of(plan: Plan, directory: Path) -> dict[Run, Report]:
    """The reports of the runs that are measured."""
    files = {run: plan.place(run, directory) / REPORT for run in plan.runs}
    return {run: _report(file) for run, file in files.items() if file.exists()}


def _report(file: Path) -> Report:
    try:
        return read_report(read_json(file, LARGEST_REPORT))
    except ValueError as error:
        raise ValueError(
            f"report {file} is unreadable: {error}. Move it away to measure again"
        ) from error


def summary(reports: Mapping[Run, Report]) -> list[list[str]]:
    """A line for each run and step count: gen PPL and entropy at temperature 1, and the gains.

    A gain compares at equal steps and equal diversity. It is the gen PPL of the teacher, at the
    temperature that gives this diversity, over the gen PPL of the student. Its 95 % interval is
    over samples.
    """
    lines = []
    for run, report in reports.items():
        for row in report.student:
            gains = [_gain(gain) for gain in _gains(report, row.steps)]
            figures = [f"{row.gen_ppl.value:.1f}", f"{row.entropy.value:.3f}"]
            lines.append([str(run), str(row.steps), *figures, *gains])
    return lines


def means(name: str, reports: Sequence[Report]) -> list[list[str]]:
    """The lines of `summary` over training seeds of one cell: mean ± standard error over seeds."""
    lines = []
    for rows in zip(*(report.student for report in reports), strict=True):
        steps = rows[0].steps
        columns = [[row.gen_ppl.value for row in rows], [row.entropy.value for row in rows]]
        gains = zip(*(_gains(report, steps) for report in reports), strict=True)
        columns += [[gain.value for gain in column if gain is not None] for column in gains]
        lines.append([name, str(steps), *(_mean(column, len(reports)) for column in columns)])
    return lines


def means_by_cell(plan: Plan, reports: Mapping[Run, Report]) -> list[list[str]]:
    """The lines of `means` for every cell; the name counts the seeds if some are missing."""
    lines = []
    for cell in plan.cells:
        of_cell = [report for run, report in reports.items() if run.cell == cell]
        name = cell if len(of_cell) == plan.seeds else f"{cell} ({len(of_cell)} seed)"
        lines += means(name, of_cell) if of_cell else []
    return lines


def methods_table(reports: Mapping[Run, Report]) -> list[list[str]]:
    """Lines for each run and step count; a teacher's lines come before its first student's.

    The last column compares methods with different teachers by their temperature. It is empty
    unless both teacher and student were drawn in these steps.
    """
    lines: list[list[str]] = []
    seen: set[str] = set()
    for run, report in reports.items():
        teachers = {row.row.setting.model for row in report.teacher}
        if not seen & teachers:
            lines += _method_lines(f"teacher of {run.cell}", report, "teacher")
        seen |= teachers
        lines += _method_lines(str(run), report, "student")
    return lines


def _method_lines(name: str, report: Report, role: str) -> list[list[str]]:
    entries = [entry for entry in report.answers.equal_entropy if entry.at == "data"]
    equal = {entry.steps: vars(entry)[role] for entry in entries if entry.column == ENTROPY}
    lines = []
    for row in vars(report)[role]:
        nfe = f"{row.row.setting.nfe:.1f}"
        figures = [nfe, f"{row.gen_ppl.value:.1f}", f"{row.entropy.value:.3f}"]
        last = _gen_ppl(equal[row.steps]) if row.steps in equal else ""
        lines.append([name, str(row.steps), *figures, last])
    return lines


def _gen_ppl(point: AtTarget | None) -> str:
    return NOT_REACHED if point is None else f"{point.gen_ppl.value:.1f}"


def _mean(values: Sequence[float], seeds: int) -> str:
    if len(values) < seeds:
        return NOT_REACHED
    mean = over_seeds([Measure(value, "", 1) for value in values])
    return f"{mean.value:.4g}" + ("" if mean.sem is None else f" ± {mean.sem:.2g}")


def _gains(report: Report, steps: int) -> list[Estimate | None]:
    """The gains at the teacher's diversity, one for each measure of diversity."""
    entries = report.answers.equal_entropy
    at = entries[0].at if entries else None
    return [entry.gain for entry in entries if entry.at == at and entry.steps == steps]


def _gain(gain: Estimate | None) -> str:
    if gain is None:
        return NOT_REACHED
    interval = "?" if gain.low is None else f"{gain.low:.2f}, {gain.high:.2f}"
    return f"{gain.value:.2f} [{interval}]"
