import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.evaluation.answers import answer_questions
from unmask.evaluation.interpolation import Estimate, interpolate
from unmask.evaluation.measure import (
    ENTROPIES,
    EvaluationProtocol,
    JudgeId,
    Measure,
    Row,
    Setting,
    UnequalProtocols,
)
from unmask.evaluation.verdict import (
    Finding,
    calls_by_bound,
    judge_gain,
    reasons_against_claim,
    verdict,
)

N, L = 64, 32
PROTOCOL = EvaluationProtocol(
    JudgeId("j", "0", "float32", 1024, True, False, "first"), L, N, "float64", "data", "0"
)
NOISE = np.random.default_rng(0).normal(size=(2, N)) * [
    [0.3],
    [0.05],
]  # of the latents: shared by all rows
NOISE -= NOISE.mean(axis=1, keepdims=True)


def line(level, entropy):
    """Every curve here is log gen_ppl = level + 2 entropy."""
    return level + 2 * entropy


def row(
    name,
    steps,
    tau,
    level,
    entropy,
    *,
    nfe=None,
    seconds=None,
    columns=tuple(ENTROPIES),
    noise=NOISE,
    gap=None,
):
    shifts = dict.fromkeys(columns, 0.0) | (gap or {})
    log_ppl = line(level, entropy)
    samples = {"nats": (log_ppl + noise[0]) * L, "tokens": np.full(N, L)}
    samples |= {column: entropy + shift + noise[1] for column, shift in shifts.items()}
    measures = {"gen_ppl": Measure(math.exp(log_ppl), "perplexity", N)}
    measures |= {"seconds": Measure(seconds, "s", 1)} if seconds else {}
    setting = Setting(name, "reveal", steps, nfe or steps, tau)
    return Row(
        name, PROTOCOL, setting, measures, {key: values.tolist() for key, values in samples.items()}
    )


def curve(name, steps, level, entropies, taus=None, **options):
    taus = taus or [1.0 + 0.1 * (k - len(entropies) + 1) for k in range(len(entropies))]
    return [
        row(name, steps, tau, level, entropy, **options)
        for tau, entropy in zip(taus, entropies, strict=True)
    ]


# The teacher improves with steps at every diversity. The target is its entropy at temperature 1
# and 16 steps, 3.5.
LEVELS = {4: 1.0, 8: 0.5, 16: 0.0}
SECONDS = {4: 0.5, 8: 1.0, 16: 2.0}
TEACHER = [
    row("teacher", n, 1.0, LEVELS[n], 3.5 + LEVELS[n] / 10, nfe=n - 0.5, seconds=SECONDS[n])
    for n in LEVELS
]
COLD = [
    each
    for n in LEVELS
    for each in curve("cold", n, LEVELS[n], [3.3, 3.4], [0.8, 0.9], nfe=n - 0.5, seconds=SECONDS[n])
]


def student(levels, entropies=(3.2, 3.45, 3.6), taus=(0.9, 1.0, 1.2), **options):
    return [
        each
        for n, level in levels.items()
        for each in curve(
            "student",
            n,
            level,
            entropies,
            list(taus),
            nfe=n - 0.5,
            seconds=SECONDS.get(n, 4.0),
            **options,
        )
    ]


def words(answers):
    return " ".join(map(str, verdict(answers)))


def conclusions(answers):
    return [finding for finding in verdict(answers) if not finding.details]


def pick(entries, **fields):
    matching = [
        entry
        for entry in entries
        if all(vars(entry)[key] == value for key, value in fields.items())
    ]
    (entry,) = matching
    return entry


def test_a_known_gain_at_equal_entropy_in_every_column():
    answers = answer_questions(TEACHER, student({4: 0.6, 8: 0.4}), COLD)
    for column in ENTROPIES:
        for steps, gain in ((4, math.exp(0.4)), (8, math.exp(0.1))):
            entry = pick(answers.equal_entropy, column=column, steps=steps)
            assert entry.at == "the teacher at 16 steps" and entry.target == pytest.approx(3.5)
            assert entry.gain.value == pytest.approx(gain)
            assert entry.student.gen_ppl.value == pytest.approx(
                math.exp(line({4: 0.6, 8: 0.4}[steps], 3.5))
            )
            assert entry.student.nfe == pytest.approx(steps - 0.5) and entry.reason is None
            # All rows share the latents' noise: the gain has almost no error, unlike gen_ppl.
            assert (
                entry.gain.high / entry.gain.low
                < 1.01
                < entry.student.gen_ppl.high / entry.student.gen_ppl.low
            )


def test_pairing_makes_the_interval_narrow():
    other = NOISE[:, np.random.default_rng(9).permutation(N)]

    def width(rows):
        gain = answer_questions(TEACHER, rows, COLD).same_steps[0].gain
        return gain.high - gain.low

    assert width(student({4: 0.6})) < 0.1 * width(student({4: 0.6}, noise=other))


def test_same_steps_compares_temperature_one():
    answers = answer_questions(TEACHER, student({4: 0.6, 2: 1.0}), COLD)
    (entry,) = answers.same_steps  # the teacher was not measured at 2 steps
    assert entry.steps == 4
    assert entry.gain.value == pytest.approx(math.exp(line(1.0, 3.6) - line(0.6, 3.45)))
    assert entry.gain.value == pytest.approx(entry.teacher / entry.student)
    assert entry.student_entropy["entropy"] == pytest.approx(3.45)


def test_a_student_that_only_lowers_the_temperature_lies_on_the_teachers_curve():
    cold = student(LEVELS, (3.2, 3.4, 3.6))
    answers = answer_questions(TEACHER, cold, COLD)
    for entry in answers.equal_entropy:
        assert entry.gain.value == pytest.approx(1) and entry.gain.low == pytest.approx(1)
    assert "does not beat" in words(answers)


def test_a_target_that_is_not_bracketed_is_not_reached_and_never_extrapolated():
    answers = answer_questions(TEACHER, student({4: 0.6}, (3.2, 3.45), (0.9, 1.0)), COLD)
    for entry in answers.equal_entropy:
        assert entry.student is None and entry.gain is None
        assert (
            "student: not reached: 3.5 is outside 3.2 to 3.45 (temperatures 0.9, 1)" in entry.reason
        )
        assert entry.teacher is not None
    for entry in answers.speed:
        assert (entry.steps is None) == (entry.model == "student")
    text = words(answers)
    assert (
        "not reached at 4 steps" in text
        and "cannot be compared with" in text
        and "the student not reached: 4 steps: 3.5 is outside" in text
    )


def test_a_target_at_the_edge_of_the_points_has_a_value_and_no_interval():
    """The measured target is just inside, but outside in half of the unpaired resamples."""
    other = NOISE[:, np.random.default_rng(9).permutation(N)]
    answers = answer_questions(
        TEACHER, student({4: 0.6}, (3.2, 3.45, 3.5 + 1e-9), noise=other), COLD
    )
    gain = pick(answers.equal_entropy, column="entropy").gain
    assert gain.value == pytest.approx(math.exp(0.4)) and gain.low is None and gain.high is None
    assert "too few resamples" in words(answers)


def test_a_column_that_was_not_measured_says_so():
    some = ("entropy", "pooled_entropy")
    teacher = [
        replace(
            each, samples={k: v for k, v in each.samples.items() if k in ("nats", "tokens", *some)}
        )
        for each in TEACHER
    ]
    answers = answer_questions(teacher, student({4: 0.6}, columns=some), COLD)
    entry = pick(answers.equal_entropy, column="completion_disagreement")
    assert entry.target is None and "not measured" in entry.reason
    assert "Equal completion disagreement: not measured." in words(answers)
    assert "cannot be compared with" in words(answers)


def test_no_win_is_called_on_unigram_entropy_alone():
    """The student keeps its unigram entropy and loses the others; at equal ones it is worse."""
    lost = {"pooled_entropy": -0.4, "completion_disagreement": -0.4}
    rows = student({4: 0.6, 8: 0.1}, (3.2, 3.45, 3.6, 4.0), (0.9, 1.0, 1.1, 1.5), gap=lost)
    answers = answer_questions(TEACHER, rows, COLD)
    assert pick(answers.equal_entropy, column="entropy", steps=4).gain.low > 1
    assert pick(answers.equal_entropy, column="pooled_entropy", steps=4).gain.high < 1
    (conclusion,) = conclusions(answers)
    assert "does not beat a teacher" in conclusion.claim
    assert conclusion.figures == (
        "better by unigram entropy, worse by pooled 4-gram entropy and completion disagreement "
        "at 4, 8 steps"
    )


def test_compared_rows_count_and_missing_rows_are_not_a_defeat():
    rows = student({4: 0.6, 8: 0.4}, (3.2, 3.4, 3.6))
    cool = [r for r in rows if r.setting.steps == 4 or r.setting.temperature <= 1]
    (conclusion,) = conclusions(answer_questions(TEACHER, cool, COLD))
    assert "beats at some steps" in conclusion.claim
    assert "not reached at 8 steps" in conclusion.figures


def test_the_data_is_a_second_target():
    data = row("data", 0, 1.0, 0.0, 3.4)
    answers = answer_questions(TEACHER, student({4: 0.6}), COLD, data=data)
    entry = pick(answers.equal_entropy, column="entropy", at="data")
    assert entry.target == pytest.approx(3.4) and entry.gain.value == pytest.approx(math.exp(0.4))
    assert len(answers.equal_entropy) == 6


def test_speed_is_the_least_steps_in_calls_and_in_seconds():
    answers = answer_questions(TEACHER, student({2: 0.3, 4: -0.1, 8: -0.3}), COLD)
    for column in ENTROPIES:
        ours = pick(answers.speed, column=column, model="student")
        assert ours.steps == 4 and ours.reference_steps == 16
        assert ours.calls == pytest.approx(15.5 / 3.5) and ours.seconds == pytest.approx(
            2.0 / 0.5
        )  # calls, not 16 / 4
        assert ours.support == 1 and "2 steps: gen_ppl" in ours.reason
        cold = pick(answers.speed, column=column, model="temperature_teacher")
        assert cold.steps == 16 and cold.calls == 1
    assert "4.43 times fewer calls, 4.00 times fewer seconds (in 100% of resamples)" in words(
        answers
    )
    never = pick(
        answer_questions(TEACHER, student({4: 0.6}), COLD).speed, column="entropy", model="student"
    )
    assert (
        never.steps is None
        and never.reason
        == f"not reached: 4 steps: gen_ppl {math.exp(7.6):.4g} is above {math.exp(7):.4g}"
    )


def test_equal_seconds_reads_the_teacher_between_its_step_counts():
    rows = student({2: 0.6})  # four seconds: the teacher has no row as slow
    slow = answer_questions(TEACHER, rows, COLD)
    assert "4 s is outside 0.5 to 2 s" in pick(slow.equal_seconds, column="entropy").reason
    timed = [
        replace(each, measures=each.measures | {"seconds": Measure(2**0.5, "s", 1)})
        for each in rows
    ]
    entry = pick(answer_questions(TEACHER, timed, COLD).equal_seconds, column="entropy")
    assert entry.gain.value == pytest.approx(
        math.exp(0.25 - 0.6)
    )  # halfway from 8 to 16 steps in log seconds
    untimed = [replace(each, measures={}) for each in rows]
    assert (
        "not measured"
        in pick(answer_questions(TEACHER, untimed, COLD).equal_seconds, column="entropy").reason
    )


@pytest.mark.parametrize(
    ("levels", "claim"),
    [
        (
            {4: 0.6, 8: 0.4},
            "beats a teacher that only changes its temperature (better at 4, 8 steps)",
        ),
        (
            {4: 0.6, 8: 0.7},
            "beats at some steps a teacher that only changes its temperature "
            "(better at 4 steps; worse at 8 steps)",
        ),
        (
            {4: 1.0},
            "does not beat a teacher that only changes its temperature "
            "(no difference seen at 4 steps)",
        ),
        ({4: 1.2}, "does not beat a teacher that only changes its temperature (worse at 4 steps)"),
    ],
)
def test_the_verdict_is_true_in_every_case(levels, claim):
    findings = verdict(answer_questions(TEACHER, student(levels, (3.2, 3.4, 3.6)), COLD))
    sentences = [str(finding) for finding in findings]
    assert sum(claim in sentence for sentence in sentences) == 1
    assert all(sentence.endswith(".") for sentence in sentences)
    assert "One training seed" in sentences[-1]
    assert [finding.claim for finding in findings if finding.kind == "conclusion"] == [
        finding.claim for finding in findings if "by all 3 measures" in finding.claim
    ]


@pytest.mark.parametrize("reasons", [[], ["one reason", "another"]])
def test_a_verdict_survives_a_file(reasons):
    rows = student({4: 0.6, 8: 0.7})
    for finding in verdict(answer_questions(TEACHER, rows, COLD), reasons=reasons):
        assert Finding(**json.loads(json.dumps(asdict(finding)))) == finding


@pytest.mark.parametrize(
    ("gain", "word"),
    [
        (Estimate(1.2, 1.01, 1.4), "better"),
        (Estimate(1.2, 0.99, 1.4), "no difference seen"),
        (Estimate(0.8, 0.7, 1.01), "no difference seen"),
        (Estimate(0.8, 0.7, 0.99), "worse"),
        (Estimate(2.0, None, None), "no interval"),
    ],
)
def test_a_gain_is_called_by_its_interval(gain, word):
    assert judge_gain(gain) == word


def test_answers_are_plain_json():
    answers = answer_questions(TEACHER, student({4: 0.6}), COLD)
    data = json.loads(json.dumps(asdict(answers), allow_nan=False))
    assert {"same_steps", "equal_entropy", "speed"} <= data.keys()


def test_what_cannot_be_compared_is_refused():
    foreign = [
        replace(each, protocol=replace(PROTOCOL, precision="float32")) for each in student({4: 0.6})
    ]
    with pytest.raises(UnequalProtocols, match="precision"):
        answer_questions(TEACHER, foreign, COLD)
    with pytest.raises(ValueError, match=r"teacher .*student .*got 0"):
        answer_questions(COLD, student({4: 0.6}), COLD)
    with pytest.raises(ValueError, match=r"row .*teacher .*nats.*tokens"):
        answer_questions(TEACHER, [replace(TEACHER[0], samples={})], COLD)


def test_interpolation_takes_the_nearest_neighbours():
    x, y = np.array([[3.0], [1.0], [2.0], [9.0]]), np.array([[0.0], [7.0], [10.0], [1.0]])
    assert [interpolate(x, y, np.array([at]))[0] for at in (1.0, 1.5, 2.5, 3.0, 9.0)] == [
        7,
        8.5,
        5,
        0,
        1,
    ]


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=6), st.integers(-60, 60))
def test_interpolation_is_exact_on_lines_and_silent_outside(points, target):
    x = np.array(points, dtype=np.float64)[:, None]
    value = interpolate(x, 3 - 2 * x, np.array([float(target)]))[0]
    if min(points) <= target <= max(points):
        assert value == pytest.approx(3 - 2 * target)
    else:
        assert math.isnan(value)


# No claim is made where rows allow none, and the verdict says why.
GOOD = student({4: 0.3, 8: 0.2, 16: -0.1}, (3.2, 3.45, 3.6))
UNIGRAM = row(
    "unigram draws", 0, 1.0, 3.0, 3.0
)  # gen PPL exp(9); the teacher's is exp(7) at 16 steps
DATA = row("data", 0, 1.0, -2.0, 3.5)


def under(protocol, rows):
    return [replace(each, protocol=protocol) for each in rows]


def repeating(rows, key, share):
    return [
        replace(each, measures={**each.measures, key: Measure(share, "share", 64)}) for each in rows
    ]


def test_good_rows_allow_a_claim():
    assert not list(reasons_against_claim(TEACHER, GOOD, [UNIGRAM], DATA))
    assert not list(reasons_against_claim(TEACHER, GOOD, [], None))


@pytest.mark.parametrize(
    ("teacher", "student", "naive", "data", "why"),
    [
        (under(replace(PROTOCOL, read_by_judge=0.5), TEACHER), GOOD, [UNIGRAM], DATA,
         "the judge was trained on 50% of the held-out documents"),
        (under(replace(PROTOCOL, samples=2), TEACHER), GOOD, [UNIGRAM], DATA,
         "n = 2 texts per row are fewer than the 16 that an interval needs"),
        (TEACHER, TEACHER, [UNIGRAM], DATA, "student and teacher have the same weights"),
        (TEACHER, GOOD, [row("unigram draws", 0, 1.0, 0.0, 3.5)], DATA,
         "the teacher at 16 steps has gen PPL 1097, no lower than 1097 of unigram draws"),
        (TEACHER, GOOD, [UNIGRAM], row("data", 0, 1.0, 3.0, 3.5),
         "real text has gen PPL 2.203e+04, no lower than 8103 of unigram draws"),
        (TEACHER, repeating(GOOD[:1], "overlap_4", 0.9), [UNIGRAM], DATA,
         "90% of the student's 4-grams at 4 steps repeat other texts"),
        (repeating(TEACHER, "repetition_4", 0.6), GOOD, [UNIGRAM], DATA,
         "60% of the teacher's 4-grams at 16 steps repeat the same text"),
    ],
)  # fmt: skip
def test_a_verdict_on_nothing_is_none(teacher, student, naive, data, why):
    (reason,) = reasons_against_claim(teacher, student, naive, data)
    assert reason == why
    findings = verdict(answer_questions(TEACHER, GOOD, COLD), reasons=[reason])
    conclusion, remark = findings
    assert conclusion == Finding("No claim is made about the student", why, kind="conclusion")
    assert remark.kind == "remark"
    text = " ".join(map(str, findings))
    assert not [word for word in ("beat", "better", "gain") if word in text]


def test_the_same_rows_claim_something_without_a_reason_against_it():
    assert "beats" in words(answer_questions(TEACHER, GOOD, COLD))
    assert LEVELS.keys() == {4, 8, 16}


def test_an_infinite_gen_ppl_is_never_lower():
    broken = replace(
        DATA, measures={**DATA.measures, "gen_ppl": Measure(float("nan"), "perplexity", 64)}
    )
    assert len(list(reasons_against_claim(TEACHER, GOOD, [UNIGRAM], broken))) == 1


def bounded(steps, nats, nfe=None):
    """A row of the teacher with an N-step bound."""
    plain = row("teacher", steps, 1.0, 1.0, 4.0, nfe=nfe)
    bound = Measure(nats, "nats a token", N, 0.02)
    return replace(plain, measures={**plain.measures, "bound": bound})


def test_the_bound_names_the_fewest_calls_that_do_the_work_of_all():
    """Within 0.05 nats a token of the most calls."""
    teacher = [bounded(4, 3.50), bounded(8, 3.46), bounded(16, 3.44), bounded(128, 3.42)]
    random = [bounded(8, 3.74), bounded(128, 3.44, nfe=81.2)]
    (finding,) = calls_by_bound(teacher, random)
    assert finding.kind == "conclusion" and "8 calls of the teacher do the work of 128" in str(
        finding
    )
    assert "3.460 nats a token in 8 calls, 3.420 nats a token in 128 calls" in str(finding)
    assert "in random order 3.740 nats a token in 8 calls" in str(finding)
    (finding,) = calls_by_bound([bounded(4, 4.0), bounded(128, 3.4)], [])
    assert "fewer calls than 128 lose more than 0.05 nats" in str(finding)
    assert not list(calls_by_bound([row("teacher", 4, 1.0, 1.0, 4.0)], []))
    assert not list(calls_by_bound([bounded(4, 4.0)], []))


def test_a_teacher_with_top_p_is_a_second_opponent():
    """Its gains stand beside those over the temperature-scaled teacher, with their own verdict."""
    better = student({n: level - 0.1 for n, level in LEVELS.items()})
    stronger = [
        each
        for n, level in LEVELS.items()
        for each in curve("top-p", n, level - 0.2, [3.2, 3.45, 3.6], [1.0, 1.15, 1.3])
    ]
    alone = answer_questions(TEACHER, better, COLD)
    answers = answer_questions(TEACHER, better, COLD, top_p_teacher=stronger)
    assert alone.against_top_p == [] and answers.equal_entropy == alone.equal_entropy
    assert {entry.column for entry in answers.against_top_p} == ENTROPIES.keys()
    for entry in answers.against_top_p:
        assert entry.gain.value == pytest.approx(math.exp(-0.1)) and entry.gain.high < 1
    conclusions = [str(one) for one in verdict(answers) if one.kind == "conclusion"]
    assert "beats a teacher that only changes its temperature" in conclusions[0]
    assert "does not beat a teacher with top-p" in conclusions[1]
