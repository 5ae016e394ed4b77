"""The figures of `unmask verify`: checks of the duality, and samplers on a synthetic source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.experiments.report.plot_helpers import logarithmic, note, save_figure
from unmask.experiments.report.style import LIGHT, SMALL, WIDE, plot_style

if TYPE_CHECKING:  # these modules import torch; their results are plain numbers
    from unmask.experiments.exact.distillation_optima import FixedPoint
    from unmask.experiments.exact.duality_checks import FigureData, JointLaw
    from unmask.experiments.exact.factorization_gap import ChanceDistance, GapRow

# Order of unmasking -> colour of the palette, marker.
_STYLE = {
    "reveal": ("teacher", "o"),
    "even": ("ink", "s"),
    "spread": ("student", "v"),
    "confidence": ("autoregressive", "^"),
    "entropy_bounded": ("muted", "D"),
    "uniform": ("student", "x"),
}


@plot_style()
def duality_figure(data: FigureData, path: Path | str) -> Path:
    """Draw the checks of the duality in four panels, in the format of the suffix of `path`."""
    figure = Figure(figsize=(WIDE, 8.0))
    ((marginal, curve), (transform, joint)) = figure.subplots(2, 2)
    _calibration(marginal, data)
    _keep_probability(curve, data)
    muted, student = LIGHT["muted"], LIGHT["student"]
    transform.plot([0, 1], [0, 1], color=muted, linewidth=1, linestyle="--", label="uniform")
    transform.plot(data.uniform, data.pit, color=student, label="F_Y(Y), Gaussian margins")
    transform.set(
        xlabel="quantile of the uniform distribution", ylabel="quantile of F_Y(Y)", aspect="equal"
    )
    transform.set_title("Theorem 3.3: one uniform number a token")
    transform.legend(loc="upper left")
    _joint(joint, data.joint)
    save_figure(figure, Path(path))
    return Path(path)


@plot_style()
def exact_figure(
    gaps: Mapping[str, Sequence[GapRow]],
    orders: Sequence[GapRow],
    chance: ChanceDistance,
    entropy: float,
    rows: Sequence[FixedPoint],
    path: Path | str,
) -> Path:
    """Draw the results of `unmask verify exact` in four panels.

    Args:
        gaps: rows of each sampler at increasing step counts.
        orders: rows of several orders at equal calls.
        chance: pair distance of texts of the source itself.
        entropy: entropy of the source, nats a token.
        rows: the fixed points of the objectives.
        path: path of the figure; its suffix is the format.
    """
    figure = Figure(figsize=(WIDE, 9.0))
    ((likelihood, divergence), (pairs, optima)) = figure.subplots(2, 2)
    for name, family in gaps.items():
        _curve(likelihood, name, family, [row.nll.value for row in family])
    label = "entropy of the source"
    likelihood.axhline(entropy, color=LIGHT["muted"], linewidth=1, linestyle="--", label=label)
    title = "Below the dashed line: likelier than the source"
    _by_calls(likelihood, "-log p under the source, nats a token", title)
    for name in _STYLE:
        family = [row for row in orders if row.sampler.partition(":")[0] == name]
        exact = [(row, row.kl.value) for row in family if row.kl is not None]
        _curve(divergence, name, [row for row, _ in exact], [kl for _, kl in exact])
        _curve(pairs, name, family, [row.pair_distance for row in family])
    _by_calls(divergence, "KL(q || p), nats a token", "Orders of unmasking at equal calls")
    pairs.axhspan(0, chance.mean + 2 * chance.deviation, color=LIGHT["line"], label="chance")
    _by_calls(pairs, "total variation of adjacent pairs", "The same orders, pair by pair")
    _optima(optima, rows)
    save_figure(figure, Path(path))
    return Path(path)


def _calibration(axes: Axes, data: FigureData) -> None:
    alpha, error = np.array(data.alpha), 1.96 * np.array(data.kept_error)
    axes.fill_between(alpha, -error, error, color=LIGHT["line"], label="95 % of chance")
    axes.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle="--")
    excess = np.array(data.kept) - alpha
    axes.plot(alpha, excess, "o", color=LIGHT["teacher"], label="projected Gaussians")
    axes.set(xlabel="alpha, expected share of visible tokens", ylabel="measured share - alpha")
    axes.set_title("Lemma 3.1: calibrated marginals")
    axes.legend(loc="upper right")


def _keep_probability(axes: Axes, data: FigureData) -> None:
    color = LIGHT["student"]
    axes.plot(data.curve_root, data.curve_keep, color=LIGHT["ink"], label="F_Y, by quadrature")
    axes.plot(data.snr_root, data.kept, "o", color=LIGHT["teacher"], label="projected Gaussians")
    axes.axhline(data.edge, color=color, linewidth=1, linestyle="--")
    axes.axvline(0, color=color, linewidth=1, linestyle="--")
    end = max(data.curve_root)
    note(axes, f"no signal: 1/K = {data.edge:.2g}", (end, data.edge), (0, 8), color, ha="right")
    axes.set(xlabel="root of the signal-to-noise ratio", ylabel="P(token kept)")
    axes.set_title("From signal to share of text")
    axes.legend(loc="upper left")


def _joint(axes: Axes, laws: Sequence[JointLaw]) -> None:
    patterns = [pattern for law in laws for pattern in law.pattern]
    x = np.arange(len(patterns))
    for values, shift, marker, color, label in (
        ("exact", 0.0, "_", "ink", "exact"),
        ("projected", -0.16, "o", "teacher", "projected Gaussians"),
        ("thresholded", 0.16, "s", "student", "one scalar"),
    ):
        heights = [value for law in laws for value in vars(law)[values]]
        size = 20 if marker == "_" else 6
        axes.plot(x + shift, heights, marker, color=LIGHT[color], markersize=size, label=label)
    axes.set_xticks(x, patterns)
    times = "; ".join("t = " + ", ".join(f"{t:g}" for t in law.time) for law in laws)
    axes.set(xlabel=f"visible (1) or masked (0) at {times}", ylabel="probability")
    axes.set_title("Joint distributions at 2 and 3 times")
    axes.legend(loc="upper center", bbox_to_anchor=(0.62, 1.0))


def _curve(axes: Axes, name: str, family: Sequence[GapRow], values: Sequence[float]) -> None:
    color, marker = _STYLE[name]
    if family:
        calls = [row.nfe for row in family]
        axes.plot(calls, values, color=LIGHT[color], marker=marker, linewidth=1.4, label=name)


def _by_calls(axes: Axes, label: str, title: str) -> None:
    logarithmic(axes.xaxis)
    axes.set(xlabel="network calls a text, measured", ylabel=label)
    axes.set_title(title)
    axes.margins(y=0.25)  # space for the legend
    axes.legend(ncols=2, loc="upper right")


def _optima(axes: Axes, rows: Sequence[FixedPoint]) -> None:
    """KL of texts drawn in one step against KL of texts drawn in many, for each objective."""
    for i, row in enumerate(rows):
        color, marker = ("teacher", "s") if row.to_optimum is None else ("student", "o")
        x, y = row.kl[0], row.kl[-1]
        axes.plot(x, y, marker, color=LIGHT[color])
        axes.annotate(str(i + 1), (x, y), (4, 4), textcoords="offset points", fontsize=SMALL)
    one, many = rows[0].steps[0], rows[0].steps[-1]
    axes.set(xlabel=f"KL(q || p) of {one} step, nats a token", ylabel=f"in {many} steps")
    axes.set_title("Fixed points, numbered as in the table (closed form)")
