import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from unmask.dataclass_json import dumps
from unmask.evaluation.bootstrap import resamples
from unmask.evaluation.measure import (
    EvaluationProtocol,
    JudgeId,
    Measure,
    Row,
    Setting,
    UnequalProtocols,
    mean,
    over_seeds,
    perplexity,
    pooled,
    protocol_words,
    require_same_protocol,
)

STAMP = JudgeId("judge", "abc", "float32", 1024, True, False, "first")
PROTOCOL = EvaluationProtocol(STAMP, 128, 3, "float64", "data0", "0.1.0")
ROW = Row(
    "teacher",
    PROTOCOL,
    Setting("model0", "reveal", 16, 15.5, seeds=(0, 1)),
    {"gen_ppl": Measure(41.5, "perplexity", 3, 0.25), "entropy": Measure(3.5, "nats", 3)},
    {"nats": [1.0, 2.0, 3.0]},
)


def test_a_row_survives_json_and_shows_its_figures_on_top():
    data = json.loads(json.dumps(ROW.to_json()))
    assert Row.from_json(data) == ROW
    top = {key: data[key] for key in ("steps", "nfe", "temperature", "gen_ppl", "entropy", "sem")}
    assert top == {
        "steps": 16,
        "nfe": 15.5,
        "temperature": 1.0,
        "gen_ppl": 41.5,
        "entropy": 3.5,
        "sem": 0.25,
    }


def test_a_measure_that_is_not_finite_is_null_in_a_file():
    row = replace(
        ROW,
        measures={"gen_ppl": Measure(math.inf, "perplexity", 3)},
        samples={"nats": [1.0, math.nan]},
    )
    data = json.loads(dumps(row.to_json()))
    assert data["gen_ppl"] is None and data["measures"]["gen_ppl"]["value"] is None
    back = Row.from_json(data)
    assert math.isnan(back.measures["gen_ppl"].value)
    assert back.samples["nats"][0] == 1 and math.isnan(back.samples["nats"][1])


@pytest.mark.parametrize(
    "broken", [{}, {"name": "x"}, ROW.to_json() | {"setting": {"colour": 3, "seeds": []}}]
)
def test_a_foreign_row_is_refused(broken):
    with pytest.raises(ValueError, match="not a row"):
        Row.from_json(broken)


@pytest.mark.parametrize("draw", ["inverse_cdf", "legacy_gumbel32"])
def test_a_row_of_an_earlier_version_has_its_draw_behind_the_sampler(draw):
    row = replace(ROW, setting=replace(ROW.setting, sampler="psi:0.5", draw=draw))
    data = row.to_json()
    assert Row.from_json(data) == row
    old = {key: value for key, value in data["setting"].items() if key != "draw"}
    assert Row.from_json(data | {"setting": old | {"sampler": f"psi:0.5, {draw}"}}) == row
    assert Row.from_json(data | {"setting": old}).setting.draw == "race"


def test_unequal_protocols_are_refused_by_the_name_of_each_field_that_differs():
    other = replace(PROTOCOL, judge=replace(STAMP, revision="def"), length=64)
    student = replace(ROW, name="student", protocol=other)
    with pytest.raises(UnequalProtocols) as refused:
        require_same_protocol([ROW, student])
    message = str(refused.value)
    assert "judge.revision" in message and "length: 128 (teacher), 64 (student)" in message
    assert "precision" not in message and "judge.name" not in message
    assert require_same_protocol([ROW, replace(ROW, name="student")]) == PROTOCOL
    with pytest.raises(ValueError, match=r"^rows "):
        require_same_protocol([])


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        (Measure(41.234, "perplexity", 800, 0.17), "41.23 ± 0.17 perplexity (n = 800)"),
        (Measure(41.234, "perplexity", 800, 12.3), "41 ± 12 perplexity (n = 800)"),
        (Measure(5.0, "nats", 8, 0.0), "5.00 ± 0.00 nats (n = 8)"),
        (Measure(5.25, "nats", 1), "5.25 nats (n = 1)"),
    ],
)
def test_a_measure_prints_its_error_to_two_figures(measure, text):
    assert str(measure) == text


def test_the_bootstrap_error_of_a_mean_is_the_standard_error():
    values = np.random.default_rng(1).normal(size=200)
    measure = mean(values, "nats")
    assert measure.value == pytest.approx(values.mean())
    assert measure.sem == pytest.approx(values.std() / math.sqrt(200), rel=0.1)
    assert mean([2.0], "nats").sem is None


def test_perplexity_pools_over_tokens_not_over_samples():
    measure = perplexity([2.0, 30.0], [1, 10])
    assert measure.value == pytest.approx(math.exp(32 / 11))
    assert measure.n == 2 and measure.sem > 0
    assert perplexity([3.0, 3.0], [2, 2]).sem == pytest.approx(0, abs=1e-12)


def test_samples_that_count_nothing_add_nothing_and_nothing_at_all_is_an_error():
    assert pooled([4.0, 0.0], [2, 0], "nats").value == 2
    with pytest.raises(ValueError, match=r"nats.*got 1 "):
        pooled([0.0], [0], "nats")


def test_resamples_are_paired_by_n_and_seed():
    assert (resamples(7) == resamples(7)).all()
    assert (resamples(7, seed=1) != resamples(7)).any()
    assert set(np.unique(resamples(7))) == set(range(7))


def test_seeds_have_a_mean_and_a_spread():
    both = over_seeds(
        [Measure(10.0, "perplexity", 800, 0.1), Measure(12.0, "perplexity", 800, 0.1)]
    )
    assert (both.value, both.n, both.sem) == (11.0, 2, pytest.approx(1.0))
    with pytest.raises(ValueError, match=r"nats.*s"):
        over_seeds([Measure(1.0, "nats", 2), Measure(1.0, "s", 2)])


def test_reading_results_and_answers_takes_no_torch():
    code = "import sys; import unmask.evaluation.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_row_with_a_label_of_another_version_is_refused():
    """Rows of unequal protocols would otherwise share a table."""
    data = ROW.to_json()
    for broken in (
        data | {"protocol": data["protocol"] | {"unheard": 1}},
        data | {"measures": []},
        data | {"samples": {"nats": ["x"]}},
        [],
        None,
    ):
        with pytest.raises(ValueError, match=r"^not a row that this version of unmask wrote"):
            Row.from_json(broken)


def test_a_judge_that_has_read_the_held_out_text_is_named_in_the_protocol():
    protocol = replace(ROW.protocol, read_by_judge=0.5)
    assert "trained on 50% of the held-out documents" in protocol_words(protocol, [0])
    for share in (None, 0.0):
        assert "trained on" not in protocol_words(replace(protocol, read_by_judge=share), [0])
    with pytest.raises(UnequalProtocols, match="read_by_judge"):
        require_same_protocol([ROW, replace(ROW, protocol=protocol)])


def test_the_protocol_names_the_precision_of_the_networks() -> None:
    """A row that was kept before this field was there had products in float32."""
    single, half = PROTOCOL, replace(PROTOCOL, products="bfloat16")
    assert "draws in float64, products in bfloat16; " in protocol_words(half, [0])
    old = {name: value for name, value in asdict(single).items() if name != "products"}
    assert (
        EvaluationProtocol.from_json(old) == single
        and EvaluationProtocol.from_json(asdict(half)) == half
    )
