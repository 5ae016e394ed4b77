import math
from dataclasses import dataclass, replace

import pytest
import torch

from unmask.evaluation.judges import LanguageModelJudge
from unmask.evaluation.measure import (
    EvaluationProtocol,
    JudgeId,
    Row,
    Setting,
    require_same_protocol,
)
from unmask.evaluation.sample_metrics import DrawnTexts, measure_frontier, measure_row, naive_rows

V, N, L = 8, 6, 16


def make_judge(ids=True):
    """Bits of ids as surprise: token v costs v nats."""
    return LanguageModelJudge(
        JudgeId("stub", "0", "float32", 64, not ids, False, "all"),
        vocab_size=V,
        next_nats=lambda rows: rows[:, 1:].double(),
        encode=lambda text: [int(letter) for letter in text],
        eos_id=None,
    )


def decode(ids):
    return "".join(map(str, ids))


JUDGE = make_judge()
PROTOCOL = EvaluationProtocol(JUDGE.stamp, L, N, "float64", "digest", "0")
SETTING = Setting("model", "reveal", 0, 0.0)


@dataclass
class Model:
    """Hotter is more random; counts what it was asked."""

    asked: list

    def draw(self, steps, temperature):
        self.asked.append((steps, temperature))
        generator = torch.Generator().manual_seed(0)
        tokens = (torch.rand(N, L, generator=generator) * V * temperature).long().clamp(max=V - 1)
        return DrawnTexts(
            tokens, [decode(row) for row in tokens.tolist()], torch.full((N,), steps - 0.5)
        )

    def complete(self, pinned, *, steps, temperature):
        generator = torch.Generator().manual_seed(steps)
        drawn = (torch.rand(pinned.shape, generator=generator) * V * temperature).long()
        return torch.where(pinned == -1, drawn, pinned)


def test_a_frontier_is_a_row_for_each_steps_and_temperature():
    model = Model([])
    texts = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))
    rows = list(
        measure_frontier(
            model.draw, JUDGE, PROTOCOL, SETTING, name="student", steps=[2, 4], temperatures=iter([0.5, 1.0]),
            complete=model.complete, texts=texts, repeats=2,
        )
    )  # fmt: skip
    assert [(row.setting.steps, row.setting.temperature) for row in rows] == [
        (2, 0.5),
        (2, 1.0),
        (4, 0.5),
        (4, 1.0),
    ]
    assert len(model.asked) == 1 + 2 * 4  # one draw to warm up
    assert [row.setting.nfe for row in rows] == [1.5, 1.5, 3.5, 3.5]
    row = rows[1]
    tokens = model.draw(2, 1.0).tokens
    assert row.measures["gen_ppl"].value == pytest.approx(math.exp(tokens[:, 1:].double().mean()))
    assert row.measures["gen_ppl"].sem > 0
    assert row.measures["entropy"].value > rows[0].measures["entropy"].value
    assert (
        0
        < rows[0].measures["completion_disagreement"].value
        < row.measures["completion_disagreement"].value
        < 1
    )
    assert row.measures["seconds"].value > 0 and row.measures["seconds"].n == 2
    assert {"repetition_4", "distinct_2", "overlap_4", "pooled_entropy"} <= row.measures.keys()
    assert len(row.samples["nats"]) == N and len(row.samples["completion_disagreement"]) == 3
    require_same_protocol(rows)
    assert Row.from_json(row.to_json()) == row


def test_texts_are_retokenised_where_the_judge_wants_them():
    judge = make_judge(ids=False)
    protocol = replace(PROTOCOL, judge=judge.stamp)
    drawn = Model([]).draw(2, 1.0)
    row = measure_row("x", drawn, judge, protocol, SETTING)
    assert row.measures["bits_per_byte"].value > 0
    with pytest.raises(ValueError, match="has none"):
        measure_row("x", DrawnTexts(drawn.tokens, None, drawn.nfe), judge, protocol, SETTING)


def test_a_row_that_is_not_what_its_protocol_says_is_refused():
    drawn = Model([]).draw(2, 1.0)
    with pytest.raises(ValueError, match="7 samples of 16"):
        measure_row("x", drawn, JUDGE, replace(PROTOCOL, samples=7), SETTING)
    with pytest.raises(ValueError, match=r"judge\.stamp"):
        measure_row(
            "x", drawn, JUDGE, replace(PROTOCOL, judge=replace(JUDGE.stamp, revision="1")), SETTING
        )
    with pytest.raises(ValueError, match="both or neither"):
        next(
            measure_frontier(
                Model([]).draw,
                JUDGE,
                PROTOCOL,
                SETTING,
                name="x",
                steps=[2],
                temperatures=[1.0],
                texts=drawn.tokens,
            )
        )


def test_naive_rows_show_which_measure_can_be_gamed():
    generator = torch.Generator().manual_seed(0)
    real = torch.multinomial(
        torch.tensor([0.4, 0.3, 0.2, 0.1]), N * L, True, generator=generator
    ).view(N, L)
    rows = {
        row.name: row for row in naive_rows(real, V, JUDGE, PROTOCOL, decode=decode, never=[V - 1])
    }
    assert list(rows) == ["uniform tokens", "unigram draws", "one text repeated", "data"]
    value = lambda name, measure: rows[name].measures[measure].value  # noqa: E731
    assert value("uniform tokens", "gen_ppl") > value("unigram draws", "gen_ppl")
    repeated, data = "one text repeated", "data"
    assert value(repeated, "entropy") == pytest.approx(
        value(data, "entropy"), abs=0.3
    )  # looks healthy
    assert value(repeated, "overlap_4") == 1 > value(data, "overlap_4")
    assert value(repeated, "pooled_entropy") < value(data, "pooled_entropy")
    assert all(row.setting.nfe == 0 for row in rows.values())
    require_same_protocol(rows.values())
    only_zero = naive_rows(real, V, JUDGE, PROTOCOL, never=range(1, V))[0]
    assert only_zero.measures["gen_ppl"].value == 1
