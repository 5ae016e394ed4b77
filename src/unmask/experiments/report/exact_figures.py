"""The picture of `unmask verify exact`: samplers on a source of known law, and where objectives come to rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.experiments.report.axes import logarithmic, write_picture
from unmask.experiments.report.style import LIGHT, SMALL, WIDE, drawing

if TYPE_CHECKING:  # they draw texts with torch; their results are plain numbers
    from unmask.experiments.exact.distillation_optima import FixedPoint
    from unmask.experiments.exact.factorization_gap import Floor, GapRow

_STYLE = {  # family -> colour of the palette, marker
    "reveal": ("teacher", "o"),
    "even": ("ink", "s"),
    "spread": ("student", "v"),
    "confidence": ("autoregressive", "^"),
    "entropy_bounded": ("muted", "D"),
    "uniform": ("student", "x"),
}


def exact_figure(
    gaps: Mapping[str, Sequence[GapRow]],
    orders: Sequence[GapRow],
    floor: Floor,
    entropy: float,
    rows: Sequence[FixedPoint],
    path: Path | str,
) -> Path:
    """Four panels, written to `path` as its ending says (.png, .svg, .pdf).

    gaps     a curve of rows at growing steps for each sampler; orders: rows at equal calls
    floor    of the pair distance; entropy: of the source, nats a token; rows: the fixed points
    """
    with drawing():
        figure = Figure(figsize=(WIDE, 9.0))
        ((price, distance), (pairs, rest)) = figure.subplots(2, 2)
        for name, family in gaps.items():
            _curve(price, name, family, [row.nll.value for row in family])
        price.axhline(
            entropy,
            color=LIGHT["muted"],
            linewidth=1,
            linestyle="--",
            label="entropy of the source",
        )
        _by_calls(
            price,
            "-log p under the true law, nats a token",
            "Below the dashed line: likelier than the source",
        )
        families = {
            name: [row for row in orders if row.sampler.partition(":")[0] == name]
            for name in _STYLE
        }
        for name, family in families.items():
            known = [row for row in family if row.kl is not None]
            _curve(distance, name, known, [row.kl.value for row in known if row.kl is not None])
            _curve(pairs, name, family, [row.pair_distance for row in family])
        _by_calls(distance, "KL(q || p), nats a token", "Reveal orders at equal calls")
        pairs.axhspan(0, floor.mean + 2 * floor.deviation, color=LIGHT["line"], label="chance")
        _by_calls(pairs, "total variation of adjacent pairs", "The same orders, pair by pair")
        _rest(rest, rows)
        write_picture(figure, Path(path))
    return Path(path)


def _curve(axes: Axes, name: str, family: Sequence[GapRow], values: Sequence[float]) -> None:
    color, marker = _STYLE[name]
    if family:
        axes.plot(
            [row.nfe for row in family],
            values,
            color=LIGHT[color],
            marker=marker,
            linewidth=1.4,
            label=name,
        )


def _by_calls(axes: Axes, label: str, title: str) -> None:
    logarithmic(axes.xaxis)
    axes.set(xlabel="network calls a text, measured", ylabel=label)
    axes.set_title(title)
    axes.margins(y=0.25)  # room for the legend
    axes.legend(ncols=2, loc="upper right")


def _rest(axes: Axes, rows: Sequence[FixedPoint]) -> None:
    """KL of texts drawn in one step against that in many: what an objective buys, and what it costs."""
    for i, row in enumerate(rows):
        taught = row.to_optimum is not None
        axes.plot(
            row.kl[0],
            row.kl[-1],
            "o" if taught else "s",
            color=LIGHT["student" if taught else "teacher"],
        )
        axes.annotate(
            str(i + 1), (row.kl[0], row.kl[-1]), (4, 4), textcoords="offset points", fontsize=SMALL
        )
    axes.set(
        xlabel=f"KL(q || p) of {rows[0].steps[0]} step, nats a token",
        ylabel=f"in {rows[0].steps[-1]} steps",
    )
    axes.set_title("Fixed points, numbered as in the table (closed form)")
