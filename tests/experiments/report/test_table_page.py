"""The page of a measured table: curves over steps, or a plane if there is one step count."""

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.experiments.report.plotting import NARROW, WIDE
from unmask.experiments.report.table_page import curves_by_steps, entropy_plane, write_table


def cell(gen_ppl: float, entropy: float, seeds: int = 2) -> dict[str, Any]:
    published = [{"source": "MCD paper", "value": "94.97"}] if seeds == 2 else []
    measures = {"gen_ppl": gen_ppl, "gen_ppl_sem": 0.5, "entropy": entropy, "nfe": 31.5}
    return measures | {"seeds": seeds, "published": published}


def line(
    name: str, round_: int, cells: dict[str, Any], failed: str | None = None
) -> dict[str, Any]:
    title = f"{name} R{round_}" if round_ else name
    return {"line": title, "name": name, "round": round_, "failed": failed, "cells": cells}


def record(*steps: str) -> dict[str, Any]:
    lines = [
        line("MDLM", 0, {count: cell(111.2, 4.46, seeds=1) for count in steps}),
        line("hybrid", 1, {count: cell(96.6, 4.43) for count in steps}),
        line("KL-Bwd", 1, {count: cell(18.4, 2.98) for count in steps}),
        line("KL-Fwd", 1, {}, failed="loss is nan"),
    ]
    return {
        "title": "Losses",
        "lede": "lede",
        "lines": lines,
        "methods": dict.fromkeys(("hybrid", "KL-Bwd"), "MDLM"),
        "doubts": [],
        "seeds": 2,
        "failed": {"KL-Bwd": "MCD paper: FAILED"},
        "texts": {"MDLM": ["a < b"]},
        "shown_steps": 32,
        "protocol": "Judge J; n = 64",
        "version": "0",
    }


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_one_step_count_is_a_plane_of_entropy_and_gen_ppl(width: float) -> None:
    (axes,) = entropy_plane(record("32"), width).axes
    points = {drawn.get_label(): drawn.get_xydata().tolist() for drawn in axes.lines}
    assert points == {
        "MDLM": [[4.46, 111.2]],
        "hybrid R1": [[4.43, 96.6]],
        "KL-Bwd R1": [[2.98, 18.4]],
    }
    assert len({drawn.get_marker() for drawn in axes.lines}) == 3


def test_several_step_counts_are_curves() -> None:
    above = curves_by_steps(record("8", "32"), WIDE).axes[:2]
    assert [[drawn.get_label() for drawn in axes.lines] for axes in above] == [
        ["MDLM", "round 1"]
    ] * 2
    assert above[0].get_ylim() == above[1].get_ylim()


def test_the_page_names_failures_here_and_in_the_paper(tmp_path: Path) -> None:
    one = write_table(record("32"), tmp_path, "table2").read_text("utf-8")
    assert "Gen PPL against entropy" in one and "against steps" not in one
    assert "MCD paper: FAILED" in one and ">failed<" in one and "94.97 MCD paper" in one
    assert "a &lt; b" in one and "Judge J; n = 64" in one and 'class="scroll"' in one
    several = write_table(record("8", "32"), tmp_path, "figure3")
    assert several.name == "figure3.html" and "against steps" in several.read_text("utf-8")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.html", "table2.png", "figure3.html", "figure3.png"}


def test_the_page_embeds_its_data(tmp_path: Path) -> None:
    page = write_table(record("32"), tmp_path, "table2").read_text("utf-8")
    start = page.index(">", page.index('id="record"')) + 1
    assert json.loads(page[start : page.index("</script>", start)]) == record("32")
    assert 'data-file="table2.json"' in page


def test_other_precisions_have_a_section(tmp_path: Path) -> None:
    doubt = {"name": "<i>", "steps": 32, "gen_ppl": 64.4, "entropy": 4.4, "nfe": 31.0}
    page = write_table(record("32") | {"doubts": [doubt]}, tmp_path, "table2").read_text("utf-8")
    assert 'id="precisions"' in page and "&lt;i&gt;" in page and "64.4" in page
