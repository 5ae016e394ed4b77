import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import unmask
from toy_bench import bench
from unmask.experiments.bench.bench_results import Bench
from unmask.experiments.report.bench_figure import throughput_figure, write_figure
from unmask.experiments.report.plotting import LIGHT


def drawn(of: Bench) -> Figure:
    figure = throughput_figure(of)
    figure.draw_without_rendering()
    return figure


def test_rates_are_lines_by_step_count_and_latencies_points():
    toy = bench(batches=(8, 1))
    rates, latency = drawn(toy).axes
    lines = {box.get_label(): box.lines[0].get_xydata().tolist() for box in rates.containers}
    assert list(lines) == ["4 steps", "16 steps", "autoregressive"]
    for name, steps in (("4 steps", 4), ("autoregressive", None)):
        points = [[row.batch, row.tokens_per_second.value] for row in toy.rows_of(steps)]
        assert lines[name] == points
    least = [row for row in toy.rows if row.batch == 1]
    points = [box.lines[0].get_xydata()[0].tolist() for box in latency.containers]
    assert points == [[row.nfe, row.p50_s] for row in least]
    bars = [bar for box in latency.containers for bar in box.lines[2]]
    ends = [bar.get_segments()[0][:, 1].tolist() for bar in bars]
    assert ends == [pytest.approx([row.p50_s, row.p95_s]) for row in least]
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in (rates, latency))


@pytest.mark.parametrize("steps", [(4, 16), (8, 16, 24, 32), (1, 2, 4, 8, 16, 31, 32)])
def test_no_word_covers_another(steps):
    figure = drawn(bench(steps=steps, batches=(1, 2, 3, 8, 32)))
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() + axes.texts if label.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_the_baseline_has_its_own_colour():
    rates, _ = drawn(bench()).axes
    colors = {box.get_label(): box.lines[0].get_color() for box in rates.containers}
    teacher, other = LIGHT["teacher"], LIGHT["autoregressive"]
    assert colors == {"4 steps": teacher, "16 steps": teacher, "autoregressive": other}


def test_one_batch_and_one_repeat_are_drawn(tmp_path):
    """Such a rate has no error, and its axis has no range."""
    toy = bench(steps=(4,), batches=(1,), repeats=1)
    rates = [replace(row.tokens_per_second, sem=None) for row in toy.rows]
    rows = [replace(row, tokens_per_second=rate) for row, rate in zip(toy.rows, rates, strict=True)]
    png, svg = write_figure(replace(toy, rows=tuple(rows)), tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "4 steps, batch 1:" in svg.read_text()
    assert "1.5 in 4 steps at batch 1" in svg.read_text()


def test_the_figure_is_drawn_from_the_file_without_torch(tmp_path):
    bench().save(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from unmask.experiments.bench.bench_results import Bench\n"
        "from unmask.experiments.report.bench_figure import write_figure\n"
        "write_figure(Bench.read(Path('bench.json')), Path('.')); sys.exit('torch' in sys.modules)"
    )
    env = {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    probe = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert probe.returncode == 0, probe.stderr or "drawing a bench loads torch"
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"bench.json", "bench.png", "bench.svg"}
