"""report.json -> report.html, a page that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.atomic_files import write_text
from unmask.evaluation.measure import ENTROPIES, GEN_PPL, SECONDS
from unmask.experiments.report.figures import plan_figures, save_report_figure
from unmask.experiments.report.rendering import render
from unmask.experiments.report.report_schema import Report, ReportRow, read_report
from unmask.experiments.report.svg import SvgFigure

_MAIN_MEASURES = {GEN_PPL: "gen PPL", **ENTROPIES, SECONDS: "seconds"}
_MEASURE_NAMES = {**_MAIN_MEASURES, "bits_per_byte": "bits a byte", "overlap_4": "4-gram overlap"}
_UNIFORM_SAMPLERS = {"ancestral", "greedy_tail"}

NamedRow = tuple[str, ReportRow]  # the name of a list of rows, and a row of it


def write_report(report: Mapping[str, Any], directory: Path | str) -> Path:
    """Write report.html, and its figures as PNG and SVG in figures/; return the path of the page.

    Args:
        report: the value of a report.json.
        directory: directory of the page.

    Raises:
        ValueError: a field of the report is missing, of another type or of another version.
    """
    record = read_report(report)
    folder = Path(directory)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures = {
        plan.name: save_report_figure(plan, record, folder / "figures")
        for plan in plan_figures(record)
    }
    page = folder / "report.html"
    write_text(page, page_source(record, figures, report))
    return page


def page_source(
    report: Report, figures: Mapping[str, Sequence[SvgFigure]], data: Mapping[str, Any]
) -> str:
    """The page as text.

    Args:
        report: the content of the page.
        figures: name -> the figure for a desktop and for a phone.
        data: the value of report.json, embedded without the values of single samples.
    """
    rows = list(report.rows)
    plain = [(name, row) for name, row in rows if row.temperature == 1]
    targets = dict.fromkeys(entry.at for entry in report.answers.equal_entropy)
    return render(
        "report.html.j2",
        title=report.title,
        version=report.version,
        sections=_sections(report, figures),
        record=_without_samples(data),
        record_name="report.json",
        report=report,
        protocol=report.protocol_words,
        claims=not report.no_claim,
        targets=[
            (at, [entry for entry in report.answers.equal_entropy if entry.at == at])
            for at in targets
        ],
        figures=figures,
        curves=[name for name in ("gen-ppl-by-steps", "frontier") if name in figures],
        more_curves=[name for name in figures if name.startswith("frontier-")],
        uniform_noise=_uniform_noise(report),
        plain_rows=plain,
        other_rows=[(name, row) for name, row in rows if row.temperature != 1],
        any_shipped=any(row.shipped for _, row in rows),
        main_measures=_measures(rows, main=True),
        other_measures=_measures(rows, main=False),
    )


def _sections(report: Report, figures: Mapping[str, Any]) -> dict[str, str]:
    """Anchor -> heading of the sections that have content."""
    answers = report.answers
    sections = {
        "answers": ("Three answers", answers.same_steps or answers.equal_entropy or answers.speed),
        "player": ("Watch a text being unmasked", report.player),
        "reading": ("How to read this", True),
        "curves": ("The curves", figures.keys() - {"training"}),
        "texts": ("The texts", report.samples or report.real),
        "training": ("The distillation", "training" in figures),
        "numbers": ("Every number", True),
    }
    return {anchor: heading for anchor, (heading, content) in sections.items() if content}


def _uniform_noise(report: Report) -> bool:
    """True if the student denoises random tokens. Only masked diffusion has unmasking traces."""
    samplers = {row.row.setting.sampler for row in report.student}
    return not report.player and not samplers.isdisjoint(_UNIFORM_SAMPLERS)


def _measures(rows: Sequence[NamedRow], main: bool) -> list[tuple[str, str, str]]:
    """Key, name and unit of the measures of a table: the main ones, or all others."""
    units = {key: measure.unit for _, row in rows for key, measure in row.measures.items()}
    keys = dict.fromkeys(key for _, row in rows for key in row.measures)
    return [
        (key, _MEASURE_NAMES.get(key, key.replace("_", " ")), units[key])
        for key in keys
        if (key in _MAIN_MEASURES) == main
    ]


def _without_samples(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without the values of single samples, which only the bootstrap needs."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(item) for item in value]
        if isinstance(value, Mapping) and "measures" in value:
            return {key: item for key, item in value.items() if key != "samples"}
        return value

    return {key: short(value) for key, value in data.items()}
