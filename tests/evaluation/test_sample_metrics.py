import math
from dataclasses import dataclass, replace
from functools import partial

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
from unmask.evaluation.metrics import completion_disagreement
from unmask.evaluation.sample_metrics import (
    baseline_rows,
    draw_and_measure,
    measure_row,
)
from unmask.samplers.sample import Samples

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
PROTOCOL = EvaluationProtocol(JUDGE.identity, L, N, "float64", "digest", "0")
SETTING = Setting("model", "reveal", 0, 0.0)


@dataclass
class Model:
    """A higher temperature is more random. Counts its draws."""

    draws: int = 0

    def draw(self, steps, temperature):
        self.draws += 1
        generator = torch.Generator().manual_seed(0)
        tokens = (torch.rand(N, L, generator=generator) * V * temperature).long().clamp(max=V - 1)
        texts = [decode(row) for row in tokens.tolist()]
        return Samples(tokens, texts, torch.full((N,), steps - 0.5), calls=steps)

    def complete(self, steps, temperature, pinned):
        generator = torch.Generator().manual_seed(steps)
        drawn = (torch.rand(pinned.shape, generator=generator) * V * temperature).long()
        return torch.where(pinned == -1, drawn, pinned)


def test_a_row_holds_every_measure_of_a_timed_draw():
    model, protocol = Model(), replace(PROTOCOL, texts=3, completions=4)
    texts = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))
    cold, plain = (
        draw_and_measure(
            partial(model.draw, 2, temperature),
            JUDGE,
            protocol,
            replace(SETTING, steps=2, temperature=temperature),
            name="student",
            on_real_text={
                "completion_disagreement": partial(
                    completion_disagreement, partial(model.complete, 2, temperature), texts, 4
                )
            },
            warmup=1,
        )
        for temperature in (0.5, 1.0)
    )
    assert model.draws == 2 * (1 + 1)
    assert (plain.setting.steps, plain.setting.temperature, plain.setting.nfe) == (2, 1.0, 1.5)
    tokens = model.draw(2, 1.0).tokens
    gen_ppl = plain.measures["gen_ppl"]
    assert gen_ppl.value == pytest.approx(math.exp(tokens[:, 1:].double().mean()))
    assert gen_ppl.sem > 0
    assert plain.measures["entropy"].value > cold.measures["entropy"].value
    disagreements = [row.measures["completion_disagreement"].value for row in (cold, plain)]
    assert 0 < disagreements[0] < disagreements[1] < 1
    assert plain.measures["seconds"].value > 0 and plain.measures["seconds"].n == 1
    assert {"repetition_4", "distinct_2", "overlap_4", "pooled_entropy"} <= plain.measures.keys()
    assert len(plain.samples["nats"]) == N and len(plain.samples["completion_disagreement"]) == 3
    require_same_protocol([cold, plain])
    assert Row.from_json(plain.to_json()) == plain


def test_texts_are_retokenised_where_the_judge_wants_them():
    judge = make_judge(ids=False)
    protocol = replace(PROTOCOL, judge=judge.identity)
    drawn = Model().draw(2, 1.0)
    row = measure_row("x", drawn, judge, protocol, SETTING)
    assert row.measures["bits_per_byte"].value > 0
    with pytest.raises(ValueError, match="drawn has ids only"):
        measure_row("x", replace(drawn, texts=None), judge, protocol, SETTING)


def test_a_row_that_contradicts_its_protocol_is_refused():
    drawn = Model().draw(2, 1.0)
    with pytest.raises(ValueError, match=r"drawn .*row x, want \(7, 16\)"):
        measure_row("x", drawn, JUDGE, replace(PROTOCOL, samples=7), SETTING)
    with pytest.raises(ValueError, match=r"judge\.identity"):
        measure_row(
            "x",
            drawn,
            JUDGE,
            replace(PROTOCOL, judge=replace(JUDGE.identity, revision="1")),
            SETTING,
        )


def test_naive_rows_show_which_measure_can_be_gamed():
    generator = torch.Generator().manual_seed(0)
    real = torch.multinomial(
        torch.tensor([0.4, 0.3, 0.2, 0.1]), N * L, True, generator=generator
    ).view(N, L)
    rows = {
        row.name: row
        for row in baseline_rows(real, V, JUDGE, PROTOCOL, decode=decode, never=[V - 1])
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
    only_zero = baseline_rows(real, V, JUDGE, PROTOCOL, never=range(1, V))[0]
    assert only_zero.measures["gen_ppl"].value == 1
