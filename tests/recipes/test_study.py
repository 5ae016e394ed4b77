"""Rows of a study with the measures that compare a set of texts with real ones."""

from dataclasses import replace

import pytest
import torch

import unmask
from unmask.evaluation.judges import LanguageModelJudge
from unmask.evaluation.measure import MAUVE, REVERSE, UnequalProtocols, require_same_protocol
from unmask.recipes.judge import judge_named
from unmask.recipes.study import Measured, Scene, Study, measure, naive

STUDY = Study(samples=20, texts=0, completions=0, reverse_seeds=1, batch_size=20)
REAL = torch.randint(1, 1000, (40, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher() -> unmask.Model:
    return unmask.load("unmask:teacher")


@pytest.fixture(scope="module")
def judge(teacher: unmask.Model) -> LanguageModelJudge:
    return judge_named("unmask:judge", teacher.tokenizer, length=8)


def test_reverse_perplexity_stands_in_every_row_and_is_not_fitted_twice(
    teacher: unmask.Model, judge: LanguageModelJudge
) -> None:
    scene = Scene(STUDY, judge, REAL, "digest")
    (found,) = measure("teacher", teacher, scene, [2], [1.0])
    assert found.row.measures[REVERSE].value > 100 and found.row.measures[REVERSE].n == 1
    assert "of 20 texts" in found.row.measures[REVERSE].unit and MAUVE not in found.row.measures
    (again,) = measure("teacher", teacher, replace(scene, known=[found]), [2], [1.0])
    assert again is found
    without = replace(found.row, measures={key: m for key, m in found.row.measures.items() if key != REVERSE})
    (new,) = measure("teacher", teacher, replace(scene, known=[Measured(without, False)]), [2], [1.0])
    assert new.row.measures[REVERSE] == found.row.measures[REVERSE]
    rows = {m.row.name: m.row.measures for m in naive(scene, teacher)}
    assert rows["one text repeated"][REVERSE].value > rows["data"][REVERSE].value, "sure of one text"


def test_rows_of_another_precision_have_another_protocol(judge: LanguageModelJudge) -> None:
    """They are measured again, and share no table with others."""
    scene = Scene(replace(STUDY, reverse_seeds=0), judge, REAL, "digest")
    model = unmask.load("unmask:teacher")
    (single,) = measure("teacher", model, scene, [2], [1.0])
    model.network.compute_dtype = torch.bfloat16
    (half,) = measure("teacher", model, replace(scene, known=[single]), [2], [1.0])
    assert (single.row.protocol.products, half.row.protocol.products) == ("float32", "bfloat16")
    with pytest.raises(UnequalProtocols, match="products"):
        require_same_protocol([single.row, half.row])


def test_both_measures_side_by_side(teacher: unmask.Model, judge: LanguageModelJudge) -> None:
    pytest.importorskip("mauve", reason="pip install 'unmask[mauve]'")
    scene = Scene(replace(STUDY, mauve_seeds=2), judge, REAL, "digest")
    (found,) = measure("teacher", teacher, scene, [2], [1.0])
    assert 0 < found.row.measures[MAUVE].value <= 1 and found.row.measures[MAUVE].n == 2
    assert REVERSE in found.row.measures


def test_real_texts_for_both_sides_are_needed(judge: LanguageModelJudge) -> None:
    with pytest.raises(ValueError, match="compare at least 20 texts with as many: want more samples, or mauve_seeds ="):
        Scene(replace(STUDY, samples=19), judge, REAL, "digest")
    with pytest.raises(ValueError, match="a row measures 40 texts and only 39 real ones"):
        Scene(STUDY, judge, REAL[:39], "digest")
    Scene(replace(STUDY, reverse_seeds=0), judge, REAL[:20], "digest")
