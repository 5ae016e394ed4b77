"""Rows of a study with the measures that compare a set of texts with real ones."""

from dataclasses import replace

import pytest
import torch

import unmask
from unmask.data.packing import evenly_spaced
from unmask.evaluation import sweep
from unmask.evaluation.example_texts import side_by_side
from unmask.evaluation.frontier import frontier
from unmask.evaluation.judges import LanguageModelJudge
from unmask.evaluation.measure import (
    BOUND,
    MAUVE,
    REVERSE,
    MeasuredRow,
    UnequalProtocols,
    protocol_words,
    require_same_protocol,
)
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.sweep import EvalContext, measure, measure_baselines
from unmask.samplers.categorical import DRAWS, PRECISION

STUDY = EvalSettings(samples=20, texts=0, completions=0, reverse_seeds=1, batch_size=20)
REAL = torch.randint(1, 1000, (40, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher() -> unmask.Model:
    return unmask.load("unmask:teacher")


@pytest.fixture(scope="module")
def judge(teacher: unmask.Model) -> LanguageModelJudge:
    return unmask.judge("unmask:judge", teacher.tokenizer, length=8)


@pytest.mark.parametrize(
    ("name", "low"), [("samples", 1), ("batch_size", 1), ("texts", 0), ("completions", 0)]
)
def test_counts_of_a_study_have_a_range(name: str, low: int) -> None:
    EvalSettings(**{name: low})
    for value, fault in ((low - 1, "small"), (2**63, "large")):
        with pytest.raises(
            ValueError, match=f"{name} is too {fault}: got {value}, want a whole number {low} .. "
        ):
            EvalSettings(**{name: value})


def test_reverse_perplexity_stands_in_every_row_and_is_not_fitted_twice(
    teacher: unmask.Model, judge: LanguageModelJudge
) -> None:
    scene = EvalContext(STUDY, judge, REAL, "digest")
    (measured,) = measure("teacher", teacher, scene, [2], [1.0])
    assert measured.row.measures[REVERSE].value > 100 and measured.row.measures[REVERSE].n == 1
    assert (
        "of 20 texts" in measured.row.measures[REVERSE].unit and MAUVE not in measured.row.measures
    )
    (again,) = measure("teacher", teacher, replace(scene, known_rows=[measured]), [2], [1.0])
    assert again is measured
    without = replace(
        measured.row,
        measures={key: m for key, m in measured.row.measures.items() if key != REVERSE},
    )
    (new,) = measure(
        "teacher", teacher, replace(scene, known_rows=[MeasuredRow(without, False)]), [2], [1.0]
    )
    assert new.row.measures[REVERSE] == measured.row.measures[REVERSE]
    rows = {m.row.name: m.row.measures for m in measure_baselines(scene, teacher)}
    assert rows["one text repeated"][REVERSE].value > rows["data"][REVERSE].value, (
        "sure of one text"
    )


def test_rows_at_temperature_1_have_the_bound_of_their_sampler(
    teacher: unmask.Model, judge: LanguageModelJudge
) -> None:
    """Also rows that were measured without it. A sampler that reads drawn tokens has none."""
    study = replace(STUDY, reverse_seeds=0, bound_texts=5, sampler="order=spread")
    context = EvalContext(study, judge, REAL, "digest")
    plain, cooled = measure("teacher", teacher, context, [4], [1.0, 0.9])
    ids = REAL[evenly_spaced(len(REAL), 5)]
    bound = unmask.few_step_bound(teacher, ids, 4, "spread")
    assert plain.row.samples[BOUND] == pytest.approx(bound.samples)
    assert plain.row.measures[BOUND].value == pytest.approx(bound.value)
    assert BOUND not in cooled.row.measures
    bare = replace(
        plain.row,
        measures={key: m for key, m in plain.row.measures.items() if key != BOUND},
    )
    known = replace(context, known_rows=[MeasuredRow(bare, shipped=False)])
    (again,) = measure("teacher", teacher, known, [4], [1.0])
    assert again.row.measures == plain.row.measures
    reader = replace(context, study=replace(study, sampler="confidence"))
    (row,) = measure("teacher", teacher, reader, [4], [1.0])
    assert BOUND not in row.row.measures
    writer = unmask.load("unmask:judge")
    (row,) = measure("autoregressive", writer, context, [8], [1.0])
    assert row.row.measures[BOUND].n == 5 and 1 < row.row.measures[BOUND].value < bound.value + 5


def test_rows_of_another_precision_have_another_protocol(judge: LanguageModelJudge) -> None:
    """They are measured again, and share no table with others."""
    scene = EvalContext(replace(STUDY, reverse_seeds=0), judge, REAL, "digest")
    model = unmask.load("unmask:teacher")
    (single,) = measure("teacher", model, scene, [2], [1.0])
    model.network.compute_dtype = torch.bfloat16
    (half,) = measure("teacher", model, replace(scene, known_rows=[single]), [2], [1.0])
    assert (single.row.protocol.products, half.row.protocol.products) == ("float32", "bfloat16")
    with pytest.raises(UnequalProtocols, match="products"):
        require_same_protocol([single.row, half.row])


def test_both_measures_side_by_side(teacher: unmask.Model, judge: LanguageModelJudge) -> None:
    pytest.importorskip("mauve", reason="pip install 'unmask[mauve]'")
    scene = EvalContext(replace(STUDY, mauve_seeds=2), judge, REAL, "digest")
    (measured,) = measure("teacher", teacher, scene, [2], [1.0])
    assert 0 < measured.row.measures[MAUVE].value <= 1 and measured.row.measures[MAUVE].n == 2
    assert REVERSE in measured.row.measures


def test_real_texts_for_both_sides_are_needed(judge: LanguageModelJudge) -> None:
    with pytest.raises(ValueError, match=r"samples .*got 19.*at least 20"):
        EvalContext(replace(STUDY, samples=19), judge, REAL, "digest")
    with pytest.raises(ValueError, match=r"samples or texts is too large: .* 40 .* 39"):
        EvalContext(STUDY, judge, REAL[:39], "digest")
    EvalContext(replace(STUDY, reverse_seeds=0), judge, REAL[:20], "digest")


def test_real_texts_are_spread_over_all_held_out_rows(
    teacher: unmask.Model, judge: LanguageModelJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completed rows and those of the row of real text are not the first ones, of one document."""
    real = torch.arange(1, 401)[:, None].expand(400, 8)
    study = EvalSettings(samples=10, texts=5, completions=2, batch_size=20)
    scene = EvalContext(study, judge, real, "digest")
    seen = []

    def disagreement(complete, texts, completions):
        seen.append((texts[:, 0].tolist(), completions))
        return torch.zeros(len(texts), dtype=torch.float64)

    monkeypatch.setattr(sweep, "completion_disagreement", disagreement)
    next(measure("teacher", teacher, scene, [1], [1.0]))
    assert seen == [([1 + row for row in [40, 120, 200, 280, 360]], 2)]
    assert scene.real_texts[:, 0].tolist() == (1 + evenly_spaced(400, 10)).tolist()
    compared = replace(scene, study=replace(study, samples=20, mauve_seeds=1))
    early, late = compared.real_texts, compared.reference_texts
    assert early[:, 0].tolist() == (1 + evenly_spaced(200, 20)).tolist()
    assert (late - early).unique().tolist() == [200]
    words = protocol_words(scene.protocol, [0])
    assert (
        "real text: 10 of 400 held-out rows, spread evenly; completions by masked diffusion: "
        "2 of each of 5 real" in words
    )
    assert replace(scene, real=real[:200]).protocol != scene.protocol


def test_a_protocol_takes_its_precision_from_the_draw(
    judge: LanguageModelJudge, teacher: unmask.Model
) -> None:
    assert PRECISION.keys() == DRAWS.keys()
    plain = EvalSettings(samples=2, texts=0, completions=0)
    rows = {}
    for draw, precision in (
        ("race", "float64"),
        ("inverse_cdf", "float64"),
        ("legacy_gumbel32", "float32 Gumbel"),
    ):
        scene = EvalContext(replace(plain, draw=draw, sampler="ancestral"), judge, REAL, "digest")
        assert (
            scene.protocol.precision == precision
            and f"draws in {precision}, products in" in protocol_words(scene.protocol, [0])
        )
        (rows[draw],) = measure(
            "teacher", teacher, replace(scene, known_rows=list(rows.values())), [1], [1.0]
        )
        assert not any(rows[draw] is row for name, row in rows.items() if name != draw)
    renamed = EvalContext(
        replace(plain, draw="gumbel_max", sampler="ancestral"), judge, REAL, "digest"
    )
    known = replace(renamed, known_rows=[rows["race"]])
    assert list(measure("teacher", teacher, known, [1], [1.0])) == [rows["race"]]
    assert EvalSettings().draw == "gumbel_max"
    with pytest.raises(UnequalProtocols, match=r'precision: "float64" .*, "float32 Gumbel"'):
        require_same_protocol(measured.row for measured in rows.values())
    with pytest.raises(ValueError, match="draw is unknown: got 'rase'"):
        _ = EvalContext(replace(plain, draw="rase"), judge, REAL, "digest").protocol


def test_a_judge_draws_no_texts_longer_than_its_rows(
    teacher: unmask.Model, judge: LanguageModelJudge
) -> None:
    study = EvalSettings(
        samples=1,
        texts=0,
        completions=0,
        teacher_steps=(1,),
        student_steps=(1,),
        teacher_temperatures=(),
        student_temperatures=(),
    )
    own = unmask.load("unmask:judge")
    for length, rows in ((8, 1), (129, 0)):
        real = REAL[:1].repeat(1, 20)[:, :length]
        *_, last = frontier(teacher, teacher, EvalContext(study, judge, real, "digest"), own)
        assert len(last.rows.get("autoregressive", [])) == rows


def test_uniform_noise_has_no_completions_and_no_mask_among_uniform_tokens(
    teacher: unmask.Model,
) -> None:
    """Duo's vocabulary holds the MASK of its tokenizer; a judge gives it no probability."""
    duo = unmask.load("unmask:duo")
    study = sweep.settings_for(duo, EvalSettings(samples=20, sampler="ancestral"))
    assert (study.texts, study.completions) == (0, 0)
    assert sweep.settings_for(teacher, EvalSettings()) == EvalSettings()
    scene = EvalContext(
        study, unmask.judge("unmask:judge", duo.tokenizer, length=128), REAL.repeat(1, 16), "digest"
    )
    assert "completions" not in protocol_words(scene.protocol, [0])
    (uniform,) = (m.row for m in measure_baselines(scene, duo) if m.row.name == "uniform tokens")
    assert uniform.measures["gen_ppl"].value < 1e6


def test_a_report_may_show_no_texts(teacher: unmask.Model) -> None:
    assert side_by_side(teacher, teacher, EvalSettings(shown=0), length=8) == []
