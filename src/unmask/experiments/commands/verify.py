"""`unmask verify`: the duality of the paper, checked by simulation; or samplers and objectives on a known law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from unmask.cli.console import Advance, emit, parse, progress, result_folder, say, table
from unmask.dataclass_json import dumps
from unmask.limits import INT64, check_memory, whole

if TYPE_CHECKING:
    from unmask.experiments.exact.distillation_optima import FixedPoint
    from unmask.experiments.exact.duality_checks import Check
    from unmask.experiments.exact.factorization_gap import Floor, GapRow
    from unmask.experiments.exact.synthetic_sources import SyntheticSource

ROUNDING = 1e-6  # what is expected below this is the rounding of a claim without exceptions
EXACT_ONLY = ("source", "order", "length", "concentration", "train")
LARGEST = 2**20  # of a vocabulary: work grows with it
TOKEN_BYTES = 200  # of a token that is drawn and tested, at least: 9 moments of 3 paths
FEWEST, SHORTEST = 100, 4  # texts behind a test, and tokens in which there is an order to choose


@dataclass(frozen=True)
class Arguments:
    """Check the theory, without a network: exit code 0 only if all that must hold does.

    duality: Lemma 3.1 to Theorem 3.3 of Latent Shadows, K-dimensional Gaussians against one uniform number a token.
    exact: what few steps cost on a source whose law is known, and where each objective of distillation comes to rest.

    what           duality, or exact
    vocab_size     duality: K, coordinates of the Gaussian (512 if not given); exact: tokens of the source (8)
    n              duality: tokens simulated (20,000 if not given); exact: texts a row (2000)
    seed           of the Gaussians; of the source and the texts
    out            where the figure and the numbers go
    json           print the checks (exact: all numbers) as JSON
    source         exact: a Markov chain, or a grammar of random templates
    order          exact: tokens that the next one of the chain depends on, 1 or 2
    length         exact: tokens of a text
    concentration  exact: Dirichlet parameter of the source's laws; the smaller, the surer the next token
    train          exact: also train students, on a source of 3 tokens, and see where they arrive (about a minute)
    """

    what: tyro.conf.Positional[Literal["duality", "exact"]] = "duality"
    vocab_size: int | None = None
    n: int | None = None
    seed: int = 0
    out: Path = Path("runs/verify")
    json: bool = False
    source: Literal["chain", "grammar"] = "chain"
    order: int = 1
    length: int = 16
    concentration: float = 0.4
    train: bool = True


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    whole(
        "seed",
        asked.seed,
        "the number of the randomness; the three above it are used too",
        0,
        INT64 - 4,
    )
    if asked.what == "exact":
        return _exact(asked)
    if given := [name for name in EXACT_ONLY if getattr(asked, name) != getattr(Arguments(), name)]:
        raise ValueError(
            f"{', '.join(given)} belongs to `verify exact`: leave it out of `verify duality`"
        )
    return _duality(asked)


def _duality(asked: Arguments) -> int:
    from unmask.experiments.exact.duality_checks import examine, figure_data, observe
    from unmask.experiments.report.exact_figures import duality_figure

    size = 512 if asked.vocab_size is None else asked.vocab_size
    whole("vocab_size", size, "the coordinates of the Gaussian", 2, LARGEST)
    n = whole("n", 20_000 if asked.n is None else asked.n, "the tokens simulated", FEWEST)
    check_memory("n", str(n), n * TOKEN_BYTES, "give a smaller --n")
    result_folder(asked.out)
    observation = observe(size, n, asked.seed)
    checks = examine(observation)
    duality_figure(figure_data(observation), asked.out / "duality.png")
    if asked.json:
        emit([asdict(check) for check in checks])
    else:
        _tell(f"K = {size}, seed {asked.seed}", checks)
        say(f"figure: {asked.out / 'duality.png'}")
    return 0 if all(check.passed for check in checks) else 1


def _exact(asked: Arguments) -> int:
    from unmask.atomic_files import write_text
    from unmask.experiments.exact import distillation_optima as fixed_points
    from unmask.experiments.exact import factorization_gap as exact
    from unmask.experiments.report.exact_figures import exact_figure

    size, n = (
        8 if asked.vocab_size is None else asked.vocab_size,
        2000 if asked.n is None else asked.n,
    )
    whole("n", n, "the texts a row, each tested", FEWEST)
    length = whole("length", asked.length, "the tokens of a text", SHORTEST)
    whole("order", asked.order, "the tokens that the next one depends on", 1, 2)
    check_memory(
        "n x length", f"{n} x {length}", n * length * TOKEN_BYTES, "give a smaller --n or --length"
    )
    whole("vocab_size", size, "the tokens of the source", 2, LARGEST)
    table_bytes = 8 * size ** (asked.order + 1)
    check_memory("vocab_size", str(size), table_bytes, "give a smaller --vocab-size, or --order 1")
    source = _source(asked, size)
    result_folder(asked.out)
    with progress() as (advance, _):
        gaps, orders = _gaps(source, n, asked.length, asked.seed, advance)
        rows = _fixed_points(asked.seed, asked.train, advance)
    floor = exact.floor(source, n, asked.length, asked.seed + 1)
    checks = exact.gap_checks(source, gaps["reveal"], gaps["even"], floor, asked.seed + 2)
    checks += fixed_points.fixed_point_checks(rows)
    entropy = source.entropy(asked.length)
    exact_figure(gaps, orders, floor, entropy, rows, asked.out / "exact.png")
    found = {
        "source": {"kind": asked.source, "vocab_size": size, "order": asked.order, "length": asked.length,
                   "concentration": asked.concentration, "seed": asked.seed, "entropy": entropy,
                   "last": source.rate(asked.length)},
        "n": n, "pair_distance_floor": asdict(floor),
        "own": asdict(exact.own_row(source, n, asked.length, asked.seed + 3)),
        "gaps": {name: [asdict(row) for row in family] for name, family in gaps.items()},
        "orders": [asdict(row) for row in orders], "fixed_points": [asdict(row) for row in rows],
        "checks": [asdict(check) for check in checks],
    }  # fmt: skip
    write_text(asked.out / "exact.json", dumps(found, indent=2) + "\n")
    if asked.json:
        emit(found)
    else:
        kind = f"{asked.source}{f' of order {asked.order}' if asked.source == 'chain' else ''}"
        say(
            f"{kind}, V = {size}, L = {asked.length}, seed {asked.seed}: entropy {entropy:.4f} nats a token, "
            f"{source.rate(asked.length):.4f} of the last given the others; n = {n} texts, temperature 1, float64"
        )
        _show(floor, gaps, orders, rows)
        _tell(f"what must hold, seed {asked.seed}", checks)
        say(f"numbers: {asked.out / 'exact.json'}   figure: {asked.out / 'exact.png'}")
    return 0 if all(check.passed for check in checks) else 1


def _source(asked: Arguments, size: int) -> SyntheticSource:
    from unmask.experiments.exact.synthetic_sources import random_chain, random_grammar

    if asked.source == "grammar":
        return random_grammar(size, asked.concentration, seed=asked.seed)
    return random_chain(size, asked.order, asked.concentration, asked.seed)


def _gaps(
    source: SyntheticSource, n: int, length: int, seed: int, advance: Advance
) -> tuple[dict[str, list[GapRow]], list[GapRow]]:
    """Rows of each sampler at growing steps, and of the reveal orders at equal calls."""
    from unmask.experiments.exact import factorization_gap as exact
    from unmask.experiments.exact.oracle import masked_model, uniform_model
    from unmask.samplers.steps import Sampler, ancestral, confidence, reveal

    masked, steps = masked_model(source), exact.powers(length)
    plans: list[tuple[str, Sampler, bool]] = [
        ("reveal", reveal, True), ("even", exact.even, True), ("confidence", confidence, False),
        ("uniform", ancestral, False),
    ]  # fmt: skip
    calls = [count for count in steps if 2 <= count <= length // 2]
    total, done = len(plans) * len(steps) + len(calls), 0
    gaps: dict[str, list[GapRow]] = {}
    for name, sampler, traced in plans:
        model = uniform_model(source) if name == "uniform" else masked
        gaps[name] = []
        for row in exact.gap(model, name, sampler, steps, n, length, seed, traced=traced):
            gaps[name].append(row)
            advance("drawing", done := done + 1, total)
    orders: list[GapRow] = []
    for count in calls:
        orders += exact.orders(masked, count, n, length, seed)
        advance("drawing", done := done + 1, total)
    return gaps, orders


def _fixed_points(seed: int, train: bool, advance: Advance) -> list[FixedPoint]:
    """A row for each objective, after those of the teacher at some temperatures."""
    from unmask.experiments.exact import distillation_optima as fixed_points
    from unmask.experiments.exact.enumeration import enumerate_world
    from unmask.experiments.exact.synthetic_sources import random_chain

    world = enumerate_world(random_chain(3, 1, 0.5, seed), length=3)
    rows = [fixed_points.cooled(world, temperature) for temperature in (1.0, 0.9, 0.8)]
    for done, objective in enumerate(fixed_points.OBJECTIVES):
        trained = (
            fixed_points.train(world, objective, seed=seed) if train and objective.trained else None
        )
        rows.append(fixed_points.resting(world, objective, trained))
        advance("objectives", done + 1, len(fixed_points.OBJECTIVES))
    return rows


def _show(
    floor: Floor,
    gaps: Mapping[str, Sequence[GapRow]],
    orders: Sequence[GapRow],
    rows: Sequence[FixedPoint],
) -> None:
    columns = [
        "sampler",
        "N",
        "nfe",
        "nll",
        "±",
        "excess",
        "kl",
        "pair TV",
        "entropy",
        "pair entropy",
    ]

    def cells(row: GapRow) -> list[Any]:
        kl = "" if row.kl is None else f"{max(row.kl.value, 0):.4f} ± {row.kl.sem:.4f}"
        numbers = [round(row.nll.value, 4), round(row.nll.sem or 0, 4), round(row.excess, 4)]
        spread = [
            round(row.pair_distance, 4),
            round(row.entropy.value, 3),
            round(row.pair_entropy, 3),
        ]
        return [row.sampler, row.steps, round(row.nfe, 2), *numbers, kl, *spread]

    chance = f"chance alone gives a pair TV of {floor.mean:.4f} ± {floor.deviation:.4f}"
    family = [cells(row) for rows_of in gaps.values() for row in rows_of]
    table(f"the factorisation gap, nats a token; {chance}", columns, family)
    table("reveal orders at equal calls", columns, [cells(row) for row in orders])
    steps = rows[0].steps
    table(
        "fixed points from a perfect teacher, V = 3, L = 3: H, teacher's H, KL(teacher || optimum) of a token's law; "
        f"nll and kl of texts in {', '.join(map(str, steps))} steps; all exact. Trained: KL to optimum, KL to teacher",
        ["objective", "H", "teacher", "KL", *(f"nll {n}" for n in steps), *(f"kl {n}" for n in steps), "opt.", "tea."],
        [
            [f"{i + 1} {row.name}", f"{row.entropy:.4f}", f"{row.teacher_entropy:.4f}", f"{abs(row.from_teacher):.5f}",
             *(f"{value:.4f}" for value in (*row.nll, *row.kl)), _maybe(row.to_optimum), _maybe(row.to_teacher)]
            for i, row in enumerate(rows)
        ],
    )  # fmt: skip


def _tell(title: str, checks: Sequence[Check]) -> None:
    rows = [
        [c.name, c.statistic, c.error, c.expected_error, _chance(c), c.n, "holds" if c.passed else "FAILS"]
        for c in checks
    ]  # fmt: skip
    table(title, ["check", "value", "error", "expected", "", "n", ""], rows)


def _maybe(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _chance(check: Check) -> str:
    """How `expected` is to be read: the size of chance, nothing but rounding, or a limit."""
    if check.p_value is not None:
        return f"p = {check.p_value:.3g}"
    return "exact" if check.expected_error < ROUNDING else "limit"
