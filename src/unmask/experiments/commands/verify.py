"""`unmask verify`: simulate the paper's duality, or measure samplers and objectives exactly."""

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
    from unmask.experiments.exact.factorization_gap import ChanceDistance, GapRow
    from unmask.experiments.exact.oracle import ExactModel
    from unmask.experiments.exact.synthetic_sources import SyntheticSource
    from unmask.samplers.steps import Sampler

EXACT_ONLY = ("source", "order", "length", "concentration", "train")
LARGEST_VOCABULARY = 2**20  # the work is proportional to it
SHORTEST = 4  # tokens of a text
TOKEN_BYTES = 200  # least memory of a token that is drawn and tested: 9 times of 3 paths


@dataclass(frozen=True)
class Arguments:
    """Check the theory without a network. The exit code is 0 if all checks pass.

    duality: simulate Lemma 3.1 to Theorem 3.3 of Latent Shadows, K-dimensional Gaussians against
    one uniform number for each token. exact: compute the error of few-step sampling on a synthetic
    source, and the optimum of each distillation objective.

    Attributes:
        what: the check to run
        vocab_size: duality: K, coordinates of the Gaussian, None: 512; exact: tokens of the source,
            None: 8
        n: duality: tokens to simulate, None: 20,000; exact: texts for each row, None: 2000
        seed: duality: seed of the Gaussians; exact: seed of the source and the texts
        out: directory of the figure and the numbers
        json: print the checks (exact: all numbers) as JSON
        source: exact: a Markov chain, or a grammar of random templates
        order: exact: tokens that the next one of the chain depends on, 1 or 2
        length: exact: tokens of a text
        concentration: exact: Dirichlet parameter of the source; a small value gives a low entropy
        train: exact: also train students on a source of 3 tokens (about a minute)
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
    args = parse(Arguments, verb, arguments)
    # The three numbers above the seed are used too.
    whole("seed", args.seed, "a seed", 0, INT64 - 4)
    default = vars(Arguments())
    unused = [name for name in EXACT_ONLY if vars(args)[name] != default[name]]
    if args.what == "duality" and unused:
        raise ValueError(
            f"{', '.join(unused)} belongs to `verify exact`: leave it out of `verify duality`"
        )
    checks = _exact(args) if args.what == "exact" else _duality(args)
    return 0 if all(check.passed for check in checks) else 1


def _duality(args: Arguments) -> list[Check]:
    """Simulate the duality, draw its figure and print the checks."""
    from unmask.experiments.exact.duality_checks import FEWEST, examine, observe
    from unmask.experiments.exact.verify_figures import duality_figure

    size = 512 if args.vocab_size is None else args.vocab_size
    whole("vocab_size", size, "the coordinates of the Gaussian", 2, LARGEST_VOCABULARY)
    n = whole("n", 20_000 if args.n is None else args.n, "the tokens simulated", FEWEST)
    check_memory("n", str(n), n * TOKEN_BYTES, "give a smaller --n")
    result_folder(args.out)
    observation = observe(size, n, args.seed)
    checks = examine(observation)
    duality_figure(observation, args.out / "duality.png")
    if args.json:
        emit([_record(check) for check in checks])
    else:
        _show_checks(f"K = {size}, seed {args.seed}", checks)
        say(f"figure: {args.out / 'duality.png'}")
    return checks


def _exact(args: Arguments) -> list[Check]:
    """Measure samplers and objectives, write the numbers and the figure, and print the tables."""
    from unmask.atomic_files import write_text
    from unmask.experiments.exact import distillation_optima, factorization_gap
    from unmask.experiments.exact.verify_figures import exact_figure

    n, length, source = _checked_source(args)
    result_folder(args.out)
    with progress() as (advance, _):
        gaps, orders = _gaps(source, n, length, args.seed, advance)
        rows = _fixed_points(args.seed, args.train, advance)
    chance = factorization_gap.chance_distance(source, n, length, args.seed + 1)
    checks = factorization_gap.gap_checks(
        source, gaps["reveal"], gaps["even"], chance, args.seed + 2
    )
    checks += distillation_optima.fixed_point_checks(rows)
    entropy = source.entropy(length)
    exact_figure(gaps, orders, chance, entropy, rows, args.out / "exact.png")
    results = {
        "source": {
            "kind": args.source,
            "vocab_size": source.vocab_size,
            "order": args.order,
            "length": length,
            "concentration": args.concentration,
            "seed": args.seed,
            "entropy": entropy,
            "last": source.rate(length),
        },
        "n": n,
        "pair_distance_floor": asdict(chance),
        "own": asdict(factorization_gap.own_row(source, n, length, args.seed + 3)),
        "gaps": {name: [asdict(row) for row in family] for name, family in gaps.items()},
        "orders": [asdict(row) for row in orders],
        "fixed_points": [asdict(row) for row in rows],
        "checks": [_record(check) for check in checks],
    }
    write_text(args.out / "exact.json", dumps(results, indent=2) + "\n")
    if args.json:
        emit(results)
    else:
        kind = f"{args.source}{f' of order {args.order}' if args.source == 'chain' else ''}"
        say(
            f"{kind}, V = {source.vocab_size}, L = {length}, seed {args.seed}: entropy "
            f"{entropy:.4f} nats a token, {source.rate(length):.4f} of the last given the others; "
            f"n = {n} texts, temperature 1, float64"
        )
        _show_gaps(chance, gaps, orders)
        _show_fixed_points(rows)
        _show_checks(f"checks, seed {args.seed}", checks)
        say(f"numbers: {args.out / 'exact.json'}   figure: {args.out / 'exact.png'}")
    return checks


def _checked_source(args: Arguments) -> tuple[int, int, SyntheticSource]:
    """The number of texts, their length, and the source; ValueError for values out of range."""
    from unmask.experiments.exact.duality_checks import FEWEST
    from unmask.experiments.exact.synthetic_sources import random_chain, random_grammar

    size = 8 if args.vocab_size is None else args.vocab_size
    n = whole("n", 2000 if args.n is None else args.n, "the texts of a row", FEWEST)
    length = whole("length", args.length, "the tokens of a text", SHORTEST)
    order = whole("order", args.order, "the tokens that the next one depends on", 1, 2)
    least = n * length * TOKEN_BYTES
    check_memory("n x length", f"{n} x {length}", least, "give a smaller --n or --length")
    whole("vocab_size", size, "the tokens of the source", 2, LARGEST_VOCABULARY)
    advice = "give a smaller --vocab-size, or --order 1"
    check_memory("vocab_size", str(size), 8 * size ** (order + 1), advice)
    if args.source == "grammar":
        return n, length, random_grammar(size, args.concentration, seed=args.seed)
    return n, length, random_chain(size, order, args.concentration, args.seed)


def _gaps(
    source: SyntheticSource, n: int, length: int, seed: int, advance: Advance
) -> tuple[dict[str, list[GapRow]], list[GapRow]]:
    """Rows of each sampler at increasing steps, and of the unmasking orders at equal calls."""
    from unmask.experiments.exact import factorization_gap as gap
    from unmask.experiments.exact.oracle import masked_model, uniform_model
    from unmask.samplers.remasking import ancestral
    from unmask.samplers.unmasking import confidence, reveal

    masked = masked_model(source)
    steps = [*(2**k for k in range((length - 1).bit_length())), length]  # 1, 2, 4, .., length
    families: dict[str, tuple[ExactModel, Sampler, bool]] = {
        "reveal": (masked, reveal, True),
        "even": (masked, gap.even, True),
        "confidence": (masked, confidence, False),
        "uniform": (uniform_model(source), ancestral, False),
    }
    calls = [count for count in steps if 2 <= count <= length // 2]
    total, done = len(families) * len(steps) + len(calls), 0
    gaps: dict[str, list[GapRow]] = {name: [] for name in families}
    for name, (model, sampler, traced) in families.items():
        for row in gap.gap_rows(model, name, sampler, steps, n, length, seed, traced=traced):
            gaps[name].append(row)
            advance("drawing", done := done + 1, total)
    orders: list[GapRow] = []
    for count in calls:
        orders += gap.order_rows(masked, count, n, length, seed)
        advance("drawing", done := done + 1, total)
    return gaps, orders


def _fixed_points(seed: int, train: bool, advance: Advance) -> list[FixedPoint]:
    """Rows of the teacher at some temperatures, and a row for each objective."""
    from unmask.experiments.exact import distillation_optima as optima
    from unmask.experiments.exact.oracle import enumerate_source
    from unmask.experiments.exact.synthetic_sources import random_chain

    source = enumerate_source(random_chain(3, 1, 0.5, seed), length=3)
    rows = [optima.teacher_at_temperature(source, temperature) for temperature in (1.0, 0.9, 0.8)]
    for done, objective in enumerate(optima.OBJECTIVES, start=1):
        log_p, weight = optima.optimum(source, objective)
        trained = (
            optima.train(source, objective, seed=seed) if train and objective.trained else None
        )
        rows.append(optima.fixed_point(source, objective.name, log_p, weight, trained))
        advance("objectives", done, len(optima.OBJECTIVES))
    return rows


def _show_gaps(
    chance: ChanceDistance, gaps: Mapping[str, Sequence[GapRow]], orders: Sequence[GapRow]
) -> None:
    columns = ["sampler", "N", "nfe", "nll", "±", "excess", "kl", "pair TV"]
    columns += ["entropy", "pair entropy"]

    def cells(row: GapRow) -> list[Any]:
        kl = "" if row.kl is None else f"{max(row.kl.value, 0):.4f} ± {row.kl.sem:.4f}"
        nll = [round(row.nll.value, 4), round(row.nll.sem or 0, 4), round(row.excess, 4)]
        pairs = round(row.pair_distance, 4)
        entropies = [round(row.entropy.value, 3), round(row.pair_entropy, 3)]
        return [row.sampler, row.steps, round(row.nfe, 2), *nll, kl, pairs, *entropies]

    by_chance = f"by chance alone the pair TV is {chance.mean:.4f} ± {chance.deviation:.4f}"
    rows = [cells(row) for family in gaps.values() for row in family]
    table(f"the factorisation gap, nats a token; {by_chance}", columns, rows)
    table("unmasking orders at equal calls", columns, [cells(row) for row in orders])


def _show_fixed_points(rows: Sequence[FixedPoint]) -> None:
    steps = rows[0].steps
    title = (
        "optima for an exact teacher, V = 3, L = 3: H, the teacher's H, KL(teacher || optimum) "
        f"of a token; nll and kl of texts in {', '.join(map(str, steps))} steps; all exact. "
        "Trained students: KL to the optimum, KL to the teacher"
    )
    columns = ["objective", "H", "teacher", "KL"]
    columns += [f"{name} {n}" for name in ("nll", "kl") for n in steps]
    body = [
        [
            f"{i} {row.name}",
            *(f"{entropy:.4f}" for entropy in (row.entropy, row.teacher_entropy)),
            f"{abs(row.from_teacher):.5f}",
            *(f"{value:.4f}" for value in (*row.nll, *row.kl)),
            *("" if kl is None else f"{kl:.5f}" for kl in (row.to_optimum, row.to_teacher)),
        ]
        for i, row in enumerate(rows, start=1)
    ]
    table(title, [*columns, "opt.", "tea."], body)


def _show_checks(title: str, checks: Sequence[Check]) -> None:
    from unmask.experiments.exact.duality_checks import ROUNDING

    def cells(check: Check) -> list[Any]:
        # The expected error is the size of chance, of rounding alone, or a limit.
        kind = "exact" if check.expected_error <= ROUNDING else "limit"
        kind = kind if check.p_value is None else f"p = {check.p_value:.3g}"
        numbers = [check.statistic, check.error, check.expected_error]
        return [check.name, *numbers, kind, check.n, "holds" if check.passed else "FAILS"]

    columns = ["check", "value", "error", "expected", "", "n", ""]
    table(title, columns, [cells(check) for check in checks])


def _record(check: Check) -> dict[str, Any]:
    return asdict(check) | {"passed": check.passed}
