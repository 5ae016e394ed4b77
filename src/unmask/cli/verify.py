"""`unmask verify`: the duality of the paper, checked by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unmask.cli.console import emit, parse, say, table


@dataclass(frozen=True)
class Arguments:
    """Check Lemma 3.1 to Theorem 3.3 of Latent Shadows: K-dimensional Gaussians against one uniform number a token.

    vocab_size  K, coordinates of the Gaussian
    n           tokens simulated
    seed        of the Gaussians
    out         where verify.json and the figure go
    json        print the checks as JSON
    """

    vocab_size: int = 512
    n: int = 20_000
    seed: int = 0
    out: Path = Path("runs/verify")
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    from unmask.evaluation.duality_checks import examine, figure_data, observe
    from unmask.report.figures import duality_figure

    observation = observe(asked.vocab_size, asked.n, asked.seed)
    checks = examine(observation)
    asked.out.mkdir(parents=True, exist_ok=True)
    duality_figure(figure_data(observation), asked.out / "duality.png")
    if asked.json:
        emit([asdict(check) for check in checks])
    else:
        rows = [
            [c.name, c.statistic, c.error, c.expected_error, _chance(c.p_value), c.n, "holds" if c.passed else "FAILS"]
            for c in checks
        ]  # fmt: skip
        table(f"K = {asked.vocab_size}, seed {asked.seed}", ["check", "value", "error", "expected", "", "n", ""], rows)
        say(f"figure: {asked.out / 'duality.png'}")
    return 0 if all(check.passed for check in checks) else 1


def _chance(p_value: float | None) -> str:
    return "exact" if p_value is None else f"p = {p_value:.3g}"
