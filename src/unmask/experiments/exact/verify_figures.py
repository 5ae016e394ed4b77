"""The figures of `unmask verify`: checks of the duality, and samplers on a synthetic source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from unmask.diffusion.duality import keep_probability, snr_root
from unmask.experiments.exact.distillation_optima import FixedPoint
from unmask.experiments.exact.duality_checks import (
    PAIR,
    TIMES,
    TRIPLE,
    Observation,
    pattern_probabilities,
    standard_error,
)
from unmask.experiments.exact.factorization_gap import ChanceDistance, GapRow
from unmask.experiments.report.plotting import (
    LIGHT,
    SMALL,
    WIDE,
    logarithmic,
    note,
    plot_style,
    save_figure,
)
from unmask.extras import needs_extra

with needs_extra("demo"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sampler -> colour of the palette, marker.
_STYLE = {
    "reveal": ("teacher", "o"),
    "even": ("ink", "s"),
    "spread": ("student", "v"),
    "confidence": ("autoregressive", "^"),
    "entropy_bounded": ("muted", "D"),
    "uniform": ("student", "x"),
}


@plot_style()
def duality_figure(observation: Observation, path: Path) -> None:
    """Draw the checks of the duality in four panels, in the format of the suffix of `path`."""
    figure = Figure(figsize=(WIDE, 8.0))
    ((marginal, curve), (transform, joint)) = figure.subplots(2, 2)
    _calibration(marginal, observation)
    _keep_probability(curve, observation)
    _uniform(transform, observation)
    _joint(joint, observation)
    save_figure(figure, path)


@plot_style()
def exact_figure(
    gaps: Mapping[str, Sequence[GapRow]],
    orders: Sequence[GapRow],
    chance: ChanceDistance,
    entropy: float,
    rows: Sequence[FixedPoint],
    path: Path,
) -> None:
    """Draw the results of `unmask verify exact` in four panels.

    Args:
        gaps: Rows of each sampler at increasing step counts.
        orders: Rows of several orders at equal calls.
        chance: Pair distance of the source's own texts.
        entropy: Entropy of the source, nats a token.
        rows: The optima of the objectives.
        path: Path of the figure. Its suffix is the format.
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
    save_figure(figure, path)


def _calibration(axes: Axes, observation: Observation) -> None:
    alpha = observation.alpha.numpy()
    error = 1.96 * standard_error(observation.alpha, observation.n).numpy()
    axes.fill_between(alpha, -error, error, color=LIGHT["line"], label="95 % of chance")
    axes.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle="--")
    excess = observation.kept.numpy() - alpha
    axes.plot(alpha, excess, "o", color=LIGHT["teacher"], label="projected Gaussians")
    axes.set(xlabel="alpha, expected share of visible tokens", ylabel="measured share - alpha")
    axes.set_title("Lemma 3.1: calibrated marginals")
    axes.legend(loc="upper right")


def _keep_probability(axes: Axes, observation: Observation) -> None:
    size, color = observation.vocab_size, LIGHT["student"]
    end, no_signal = float(snr_root(0.999, size)), 1 / size
    root = torch.linspace(-2.0, end, 121, dtype=torch.float64)
    axes.plot(root, keep_probability(root, size), color=LIGHT["ink"], label="F_Y, by quadrature")
    measured = snr_root(observation.alpha, size), observation.kept
    axes.plot(*measured, "o", color=LIGHT["teacher"], label="projected Gaussians")
    axes.axhline(no_signal, color=color, linewidth=1, linestyle="--")
    axes.axvline(0, color=color, linewidth=1, linestyle="--")
    note(axes, f"no signal: 1/K = {no_signal:.2g}", (end, no_signal), (0, 8), color, ha="right")
    axes.set(xlabel="root of the signal-to-noise ratio", ylabel="P(token kept)")
    axes.set_title("From signal to share of text")
    axes.legend(loc="upper left")


def _uniform(axes: Axes, observation: Observation) -> None:
    """Draw at most 200 of the sorted F_Y(Y) against the quantiles of a uniform number."""
    n = observation.n
    axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=1, linestyle="--", label="uniform")
    rank = torch.linspace(0, n - 1, min(n, 200), dtype=torch.float64).round().long()
    u = observation.u.sort().values[rank]
    axes.plot((rank + 0.5) / n, u, color=LIGHT["student"], label="F_Y(Y), Gaussian margins")
    axes.set(
        xlabel="quantile of the uniform distribution", ylabel="quantile of F_Y(Y)", aspect="equal"
    )
    axes.set_title("Theorem 3.3: one uniform number a token")
    axes.legend(loc="upper left")


def _joint(axes: Axes, observation: Observation) -> None:
    joints = (PAIR, TRIPLE)
    patterns = [f"{code:0{len(times)}b}" for times in joints for code in range(2 ** len(times))]
    exact = [pattern_probabilities(observation.alpha[list(times)]) for times in joints]
    projected, thresholded = (
        [observation.patterns(z, times) / observation.n for times in joints]
        for z in (observation.z, observation.free)
    )
    x = torch.arange(len(patterns))
    for shares, shift, marker, color, label in (
        (exact, 0.0, "_", "ink", "exact"),
        (projected, -0.16, "o", "teacher", "projected Gaussians"),
        (thresholded, 0.16, "s", "student", "one scalar"),
    ):
        y, size = torch.cat(shares), 20 if marker == "_" else 6
        axes.plot(x + shift, y, marker, color=LIGHT[color], markersize=size, label=label)
    axes.set_xticks(x, patterns)
    labels = "; ".join("t = " + ", ".join(f"{TIMES[t]:g}" for t in times) for times in joints)
    axes.set(xlabel=f"visible (1) or masked (0) at {labels}", ylabel="probability")
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
    """Draw for each objective the KL of texts of many steps against the KL of texts of one."""
    for i, row in enumerate(rows):
        color, marker = ("teacher", "s") if row.to_optimum is None else ("student", "o")
        x, y = row.kl[0], row.kl[-1]
        axes.plot(x, y, marker, color=LIGHT[color])
        axes.annotate(str(i + 1), (x, y), (4, 4), textcoords="offset points", fontsize=SMALL)
    one, many = rows[0].steps[0], rows[0].steps[-1]
    axes.set(xlabel=f"KL(q || p) of {one} step, nats a token", ylabel=f"in {many} steps")
    axes.set_title("Fixed points, numbered as in the table (closed form)")
