"""A made-up report.json of plausible shape, without a network and without torch."""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np

from unmask import __version__
from unmask.evaluation.answers import answer_questions
from unmask.evaluation.measure import (
    EvaluationProtocol,
    JudgeId,
    Measure,
    Row,
    Setting,
    mean,
    perplexity,
)

L = 128
WORDS = (
    "the of and to in that our which a for be with is have been as by it not this on are has will "
    "their from all an at government states people public United Congress country great system "
    "law citizens peace treasury policy commerce present foreign nations interest power measures "
    "general subject last year service revenue attention necessary duties relations important war "
    "progress labor treaty industry prosperity confidence liberty land"
).split()
TEACHER = {4: 210.0, 8: 128.0, 16: 98.0, 32: 84.0, 64: 77.0, 128: 74.0}  # gen PPL at temperature 1
STUDENT = {4: 121.0, 8: 79.0, 16: 64.0, 32: 58.0}
NAIVE = (
    ("uniform tokens", 21_400.0, 4.72),
    ("unigram draws", 1460.0, 4.11),
    ("one text repeated", 27.1, 3.88),
)
# Findings in each of their forms: comparisons, a conclusion, a remark.
VERDICT = [
    {
        "claim": "Same steps (4), temperature 1",
        "figures": None,
        "details": ["gain 1.743", "better"],
        "kind": "comparison",
    },
    {
        "claim": "Equal unigram entropy, against a temperature-scaled teacher",
        "figures": "3.879, the teacher at 128 steps",
        "details": ["4 steps 187.7 to 165.5", "8 steps 118.3 to 112.1"],
        "kind": "comparison",
    },
    {
        "claim": "As diverse as the teacher at 128 steps by all 3 measures together, the student "
        "does not beat a teacher that only changes its temperature",
        "figures": "worse by 2 of 3 measures at 4 steps, not reached at 32 steps",
        "details": [],
        "kind": "conclusion",
    },
    {
        "claim": "One training seed",
        "figures": None,
        "details": ["not yet a verdict on the method"],
        "kind": "remark",
    },
]


def protocol(samples: int) -> EvaluationProtocol:
    stamp = JudgeId("demo-judge", "1f0c9a7be4d25a31", "float32", L, False, True, "all")
    return EvaluationProtocol(stamp, L, samples, "float64", "9d41c0ffee77aa02", __version__)


def row(
    name: str,
    steps: int,
    tau: float,
    gen_ppl: float,
    entropy: float,
    samples: int,
    noise: np.ndarray,
    narrow: float = 0.0,
) -> Row:
    """A row whose columns follow from gen_ppl and entropy.

    narrow  lowers the other two diversities, and leaves the entropy
    """
    rng = np.random.default_rng([steps, round(100 * tau), *name.encode()])
    noise = noise + 0.3 * rng.normal(size=noise.shape)
    nats = (math.log(gen_ppl) + 0.15 * noise[0]) * L
    columns = {
        "entropy": entropy + 0.08 * noise[1],
        "pooled_entropy": 8.1 + 1.2 * (entropy - 3.8) - narrow + 0.1 * noise[2],
    }
    disagreement = 0.74 + 0.3 * (entropy - 3.8) - narrow / 3 + 0.02 * noise[1]
    columns["completion_disagreement"] = disagreement[:8]
    if steps in (0, L) and name != "teacher":
        del columns["completion_disagreement"]
    if tau == 1 and steps > 0:
        floor = 3.3 if name == "autoregressive" else 3.4 + 4 / steps
        columns["bound"] = floor + 0.05 * noise[0][:8]
    units = {"completion_disagreement": "share of positions", "bound": "nats a token"}
    share = Measure(0.1, "share", samples, 0.002)
    measures = {
        "gen_ppl": perplexity(nats, np.full(samples, L), "perplexity under demo-judge"),
        **{key: mean(values, units.get(key, "nats")) for key, values in columns.items()},
        **{
            f"repetition_{n}": Measure(0.3 / n**2, "share of repeated n-grams", samples, 0.003 / n)
            for n in (2, 3, 4)
        },
        **{
            f"distinct_{n}": Measure(1 - 0.8 / n**2, "share of distinct n-grams", samples, 0.01 / n)
            for n in (1, 2, 3, 4)
        },
        "overlap_4": share,
        "seconds": Measure(0.0016 * max(steps, 1) ** 0.9, "s a sample", 1),
    }
    nfe = steps if steps < L / 4 else L * (1 - math.exp(-steps / L))
    setting = Setting("model-" + name, "reveal", steps, nfe, tau, seeds=(0,))
    per_sample = {key: values.tolist() for key, values in columns.items()}
    per_sample |= {"nats": nats.tolist(), "tokens": [L] * samples}
    return Row(name, protocol(samples), setting, measures, per_sample)


def rows(samples: int) -> dict[str, list[Row]]:
    noise = np.random.default_rng(0).normal(size=(3, samples))
    warmer = np.random.default_rng(1).normal(size=(3, samples))

    def tempered(
        name: str, levels: dict[int, float], entropy: float, taus: Sequence[float], seen: np.ndarray
    ) -> list[Row]:
        """Rows where 0.1 less temperature costs 0.045 nats and a fifth of the gen PPL."""
        narrow, shift = (0.06 if name == "student" else 0.0), 0.45
        return [
            row(name, n, tau, level * math.exp(2.2 * (tau - 1)),
                entropy + shift * (tau - 1) + 0.02 * math.log(level / 74), samples, seen, narrow)
            for n, level in levels.items() for tau in taus
        ]  # fmt: skip

    return {
        "teacher": tempered("teacher", TEACHER, 3.86, [1.0], noise),
        "temperature_teacher": tempered("teacher", TEACHER, 3.86, [0.7, 0.8, 0.9], noise),
        "student": tempered("student", STUDENT, 3.78, [1.0], noise),
        "temperature_student": tempered("student", STUDENT, 3.78, [1.1, 1.2, 1.3, 1.4], noise),
        "random_order": tempered("teacher", TEACHER, 3.86, [1.0], warmer),
        "top_p_teacher": tempered("teacher", {n: 0.8 * TEACHER[n] for n in STUDENT}, 3.84,
                                  [1.0, 1.15, 1.3], warmer),
        "autoregressive": [row("autoregressive", L, 1.0, 24.0, 3.84, samples, warmer)],
        "naive": [
            row(name, 0, 1.0, gen_ppl, entropy, samples, warmer)
            for name, gen_ppl, entropy in NAIVE
        ],
        "data": [row("data", 0, 1.0, 27.4, 3.87, samples, warmer)],
    }  # fmt: skip


def text(seed: int, words: int = 70) -> str:
    rng = random.Random(seed)
    sentences = [
        " ".join(rng.choices(WORDS, k=rng.randint(6, 17))).capitalize() + "."
        for _ in range(words // 11)
    ]
    return " ".join(sentences[:3]) + "\n\n" + " ".join(sentences[3:])


def trace(title: str, steps: int, seed: int) -> dict[str, Any]:
    """An unmasking trace with tokens of one to five letters, as a small vocabulary has them."""
    rng, pieces = random.Random(seed), []
    for word in text(seed, 200).replace("\n\n", " \n\n ").split(" "):
        piece = word if "\n" in word else " " + word
        while len(piece) > 5:
            cut = rng.randint(3, 5)
            pieces.append(piece[:cut])
            piece = piece[cut:]
        pieces.append(piece)
    pieces = pieces[:L]
    when = [rng.randrange(steps) for _ in pieces]
    calls = sorted(set(when))
    return {
        "title": title,
        "pieces": pieces,
        "frames": [[i for i, call in enumerate(when) if call == k] for k in calls],
        "alphas": [k / steps for k in calls],
    }


def build(samples: int = 24) -> dict[str, Any]:
    """The whole report, as plain JSON values."""
    lists = rows(samples)
    (data,) = lists.pop("data")
    students = [*lists["student"], *lists["temperature_student"]]
    answers = answer_questions(
        lists["teacher"], students, lists["temperature_teacher"], data, lists["top_p_teacher"]
    )
    table = {
        name: [each.to_json() | {"shipped": False} for each in some] for name, some in lists.items()
    }
    for each in [*table["teacher"], *table["temperature_teacher"]]:
        each["shipped"] = each["steps"] >= 64
    rng = np.random.default_rng(2)
    steps = list(range(0, 1000, 4))
    decay = [math.exp(-(n % 200) / 60) for n in steps]
    distillation = [0.02 + 0.05 * d + 0.006 * float(rng.normal()) for d in decay]
    reconstruction = [0.21 - 0.00005 * n + 0.01 * float(rng.normal()) for n in steps]
    return table | {
        "title": "Masked Consistency Distillation on sotu",
        "version": __version__,
        "date": "2026-03-01",
        "seed": 0,
        "seconds": {"distil": 171.2, "total": 402.9},
        "corpus": {"name": "sotu", "train_rows": 18_211, "held_out_rows": 2031, "length": L,
                   "vocab_size": 1024, "digest": "9d41c0ffee77aa02"},
        "models": {
            "teacher": {"parameters": 1_513_472, "source": "shipped"},
            "student": {"parameters": 1_513_472, "source": "1000 steps of MCD"},
            "judge": {"parameters": 2_104_832, "source": "shipped"},
        },
        "protocol": table["teacher"][0]["protocol"],
        "data": data.to_json(),
        "answers": asdict(answers),
        "verdict": VERDICT,
        "rounds": [
            {"round": k, "steps": 8, "gen_ppl": 79 + 40 * math.exp(-k),
             "entropy": 3.78 + 0.08 * math.exp(-k), "delta": 2.0**k / 512,
             "temperature": 0.99 - 0.03 * k} for k in range(1, 6)
        ],
        "training": {
            "step": steps,
            "loss": [a + b for a, b in zip(distillation, reconstruction, strict=True)],
            "distillation": distillation,
            "reconstruction": reconstruction,
            "round": [1 + n // 200 for n in steps],
        },
        "samples": [
            {"latent": latent, "steps": n, "temperature": 1.0, "teacher": text(latent),
             "student": text(latent + n)}
            for n in STUDENT for latent in range(3)
        ],
        "real": [text(100), text(101)],
        "player": [trace("teacher, 16 steps", 16, 0), trace("student, 16 steps", 16, 1),
                   trace("teacher, 128 steps", L, 0), trace("student, 8 steps", 8, 1)],
    }  # fmt: skip


@cache
def small() -> dict[str, Any]:
    """A report that all tests share: copy it before a change."""
    return build(samples=8)
