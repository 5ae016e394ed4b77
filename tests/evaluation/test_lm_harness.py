"""Our models in stock lm-eval: a task through its evaluator, and each request by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.diffusion.processes import UniformProcess
from unmask.diffusion.schedules import Cosine, LogLinear
from unmask.evaluation.judge_by_name import judge_of
from unmask.evaluation.lm_harness import harness
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import DiT
from unmask.models.model import CausalModel, Model
from unmask.recipes.held_out import Text, held_out, scoring_rule

pytest.importorskip("lm_eval", reason="pip install 'unmask[lm-eval]'")
Harness = harness()
EXACT = "exact log-likelihoods, one network call per token of a text"

QUESTIONS = [
    {"question": "The President of the United", "choices": [" States", " banana"], "answer": 0},
    {
        "question": "The Congress of the",
        "choices": [" purple zebra", " United States"],
        "answer": 1,
    },
    {"question": "I have the honor to", "choices": [" submit", " xylophone"], "answer": 0},
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""


def request_of(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def uniform() -> Model:
    """The shipped teacher's weights as if they were of uniform diffusion: poor, but a law."""
    teacher = unmask.load("unmask:teacher")
    network: DiT = teacher.network
    size = network.shape.vocab_size
    return Model(
        NetworkDenoiser(network, None, True),
        UniformProcess(size),
        LogLinear(),
        teacher.tokenizer,
    )


@pytest.mark.parametrize("name", ["unmask:teacher", "unmask:judge"])
def test_multiple_choice_through_stock_lm_eval(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Both models, trained on presidential messages, choose the right answer each time."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, QUESTIONS)))
    more = 'doc_to_choice: "{{choices}}"\n'
    more += "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
    text = TASK.format(name="toy_choice", file=file, kind="multiple_choice", more=more)
    (tmp_path / "toy_choice.yaml").write_text(text)
    call = [
        "eval",
        "lm-harness",
        name,
        "--tasks",
        "toy_choice",
        "--include-path",
        str(tmp_path),
        "--draws",
        "8",
    ]
    assert main([*call, "--no-greedy", "--json", "--out", str(tmp_path / "all.json")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["results"]["toy_choice"]["acc,none"] == 1
    how = "8 draws per log-likelihood, 32 steps per text" if "teacher" in name else EXACT
    assert answer["protocol"] == f"{how}, seed 0"
    assert len(json.loads((tmp_path / "all.json").read_text())["samples"]["toy_choice"]) == 3
    assert (
        main([*call, "--no-greedy", "--json", "--limit", "2", "--out", str(tmp_path / "some.json")])
        == 0
    )
    some = json.loads(capsys.readouterr().out)
    assert some["samples"]["toy_choice"] == {"original": 3, "effective": 2}
    assert some["protocol"].endswith("; at most 2 questions of a task, spread evenly")
    read = json.loads((tmp_path / "some.json").read_text())["samples"]["toy_choice"]
    assert [each["doc"]["question"] for each in read] == [
        QUESTIONS[0]["question"],
        QUESTIONS[2]["question"],
    ]


def test_tasks_that_lm_eval_does_not_know(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    monkeypatch.setattr(
        tasks.TaskManager, "__init__", lambda self, **_: None
    )  # it reads thousands of files
    monkeypatch.setattr(tasks.TaskManager, "all_tasks", ["arc_easy"], raising=False)
    assert (
        main(["eval", "lm-harness", "unmask:teacher", "--tasks", "no_such_task", "arc_easy"]) == 1
    )
    assert (
        "tasks has unknown names: got no_such_task; `lm-eval ls tasks`" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "model", [unmask.load("unmask:teacher"), uniform()], ids=["masked", "uniform"]
)
def test_a_likelihood_is_a_function_of_its_text_and_seed(model: Model) -> None:
    pairs = [
        request_of("The President of the United", " States"),
        request_of("", "In the year"),
        request_of("We", " must act now"),
    ]
    one = Harness(model, draws=8, greedy=False).loglikelihood(pairs)
    two = Harness(model, draws=8, greedy=False, batch_size=3).loglikelihood(pairs[::-1])[::-1]
    other = Harness(model, draws=8, greedy=False, seed=1).loglikelihood(pairs)
    for (a, _), (b, _) in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3) and a < 0
    assert [a for a, _ in one] != [a for a, _ in other]


def test_the_greedy_continuation_is_known_as_such() -> None:
    for name in ("unmask:teacher", "unmask:judge"):
        harness = Harness(name, draws=4)
        context = "The President of the United"
        written = harness.generate_until([request_of(context, {"max_gen_toks": 1})])[0]
        (_, yes), (_, no) = harness.loglikelihood(
            [request_of(context, " States"), request_of(context, " banana")]
        )
        assert yes and not no
        if name == "unmask:judge":  # a writer from left to right begins with its likeliest token
            assert written and " States".startswith(written)


@pytest.mark.parametrize("context", ["", "The President of the United"])
def test_an_autoregressive_model_writes_its_greedy_text_and_no_other(context: str) -> None:
    """Both use one start token: the text drawn token by token is the one that is greedy."""
    harness_ = Harness("unmask:judge")
    ids = [harness_._start, *harness_.model.tokenizer.encode(context)]
    for _ in range(6):
        ids.append(int(harness_.model.predictor(torch.tensor([ids])).log_p()[0, -1].argmax()))
    text = harness_.model.tokenizer.decode(ids[-6:])
    (row,) = harness_._draw([ids[:-6]], {"top_k": 1})
    assert row[: len(ids)] == ids
    assert harness_._continuations.is_greedy(ids, 6) and not harness_._continuations.is_greedy(
        [*ids[:-1], (ids[-1] + 1) % 1000], 6
    )
    assert (
        harness_.generate_until([request_of(context, {"max_gen_toks": 6, "until": []})])[0] == text
    )


def test_with_masks_the_surest_token_comes_first_whatever_the_schedule() -> None:
    teacher = unmask.load("unmask:teacher")
    model = Model(teacher.denoiser, teacher.process, Cosine(), teacher.tokenizer)
    harness_ = Harness(model)
    ids = [harness_._start, *teacher.tokenizer.encode("The President of the United"), *[-1] * 5]
    z = torch.tensor([ids]).masked_fill(torch.tensor([ids]) == -1, teacher.process.mask_id)
    while bool((z == teacher.process.mask_id).any()):
        free = (z[0] == teacher.process.mask_id).nonzero().flatten()
        best, token = teacher.denoiser(z, torch.tensor([0.5])).log_p(free).max(-1)
        z[0, free[best.argmax()]] = token[best.argmax()]
    assert harness_._continuations.is_greedy(z[0].tolist(), 5)
    z[0, -1] = (z[0, -1] + 1) % 1000
    assert not harness_._continuations.is_greedy(z[0].tolist(), 5)
    assert not Harness("unmask:duo")._continuations.is_greedy(z[0].tolist(), 5), (
        "uniform noise has no greedy continuation"
    )


def test_without_the_option_no_answer_is_greedy() -> None:
    harness = Harness("unmask:teacher", draws=4, greedy=False)
    ((_, greedy),) = harness.loglikelihood([request_of("The President of the United", " States")])
    assert not greedy


def test_an_autoregressive_likelihood_adds_up() -> None:
    """log p(ab) = log p(a) + log p(b | a), where the pieces are tokens."""
    harness = Harness("unmask:judge", greedy=False)
    (whole, _), (first, _), (second, _) = harness.loglikelihood(
        [
            request_of("", "The United States"),
            request_of("", "The United"),
            request_of("The United", " States"),
        ]
    )
    assert whole == pytest.approx(first + second, rel=1e-5)
    assert harness.loglikelihood_rolling([request_of("The United States")])[0] == pytest.approx(
        whole, rel=1e-5
    )


def test_long_texts_are_read_in_windows_and_long_contexts_lose_their_beginning() -> None:
    harness = Harness("unmask:judge", greedy=False)
    text = "The Congress of the United States has before it the question. " * 30
    ids = harness.model.tokenizer.encode(text)
    assert isinstance(harness.model, CausalModel) and len(ids) > 300
    start = harness.model.tokenizer.bos_id
    want, stream = 0.0, [start, *ids]
    for first in range(
        0, len(ids), 128
    ):  # the network reads 128 tokens; the last window slides back to be full
        last = min(first + 128, len(ids))
        row = torch.tensor([stream[max(0, last - 128) : last + 1]])
        table = harness.model.predictor(row[:, :-1]).log_p()[0].detach().gather(1, row[0, 1:, None])
        want += float(table[-(last - first) :].sum())
    assert harness.loglikelihood_rolling([request_of(text)])[0] == pytest.approx(want, rel=1e-4)
    assert harness.loglikelihood([request_of(text, " States")])[0][0] < 0
    assert harness.loglikelihood_rolling([request_of("")]) == [0.0]


def test_one_row_has_one_likelihood() -> None:
    """`eval likelihood`, the harness and a judge of ids put a start token before each row."""
    judge = unmask.load("unmask:judge")
    assert isinstance(judge, CausalModel) and judge.tokenizer is not None
    text = held_out(Text(), "unmask:judge", judge)
    rows, read = text.some(3), scoring_rule(judge, text.data.wrap)
    want, start = read.scores(rows), judge.tokenizer.eos_id
    assert want.tokens.tolist() == [128] * 3 and "start token before each row" in read.words
    by_judge = judge_of(judge, 128)(rows)
    assert by_judge.tokens.tolist() == [128] * 3
    torch.testing.assert_close(by_judge.nats, want.nats, rtol=1e-5, atol=0)
    by_harness = [Harness(judge)._continuations.nats([start, *row], 128) for row in rows.tolist()]
    assert by_harness == pytest.approx(want.nats.tolist(), rel=1e-5)


def test_rows_that_begin_with_bos_have_it_behind_the_start_token() -> None:
    """As an autoregressive model reads them in training with `data.wrap`: start, BOS, text."""
    judge = unmask.load("unmask:judge")
    plain, wrapped = (
        Harness(replace(judge, card={"recipe": {"data": {"wrap": wrap}}}), greedy=False)
        for wrap in (False, True)
    )
    assert wrapped.wrap and not Harness(wrapped.model, wrap=False).wrap
    bos, ids = plain._start, plain.model.tokenizer.encode("The United States")
    want = -plain._continuations.nats([bos, bos, *ids], len(ids))
    assert wrapped.loglikelihood_rolling([request_of("The United States")]) == [want]
    assert wrapped.loglikelihood([request_of("", "The United States")])[0][0] == want
    assert plain.loglikelihood_rolling([request_of("The United States")])[0] != want
    (row,) = wrapped._draw([wrapped._context("The United", 3)], {"top_k": 1})
    assert len(row) == 128 and row[:2] == [bos, bos]
    long = "The Congress of the United States has before it the question. " * 30
    assert wrapped.loglikelihood_rolling([request_of(long)])[0] < 0
    assert len(wrapped._context(long, 126)) == 2 == 128 - 126


@pytest.mark.parametrize("blanks", [" ", "   ", "\n\n "])
def test_blanks_of_a_context_belong_to_the_continuation(blanks: str) -> None:
    """Also where the context holds nothing else: the continuation is scored whole."""
    harness = Harness("unmask:judge", greedy=False)
    for stem in ("", "The United"):
        (one, _), (other, _) = harness.loglikelihood(
            [request_of(stem + blanks, "States"), request_of(stem, blanks + "States")]
        )
        assert one == other
    assert not harness.notes


@pytest.mark.parametrize(
    "context, continuation", [("The Presid", "ent"), ("The Uni", "ted States of America")]
)
def test_a_token_across_the_border_ends_no_task(context: str, continuation: str) -> None:
    """Context and continuation are encoded separately: exactly the continuation is scored."""
    harness = Harness("unmask:judge", greedy=False)
    given, follows, whole = map(
        harness.model.tokenizer.encode, (context, continuation, context + continuation)
    )
    assert whole[: len(given)] != given and len(whole) - len(given) < len(follows), (
        "a token lies across the border"
    )
    want = -harness._continuations.nats([harness._start, *given, *follows], len(follows))
    assert harness.loglikelihood([request_of(context, continuation)]) == [(want, False)]
    assert list(harness.notes.values()) == [1]


def test_a_continuation_longer_than_the_model_is_scored_in_pieces() -> None:
    harness = Harness("unmask:judge")
    follows = " the people of the United States" * 30
    ids = harness.model.tokenizer.encode("We" + follows)
    given, start, want = harness.model.tokenizer.encode("We"), harness._start, 0.0
    assert len(ids) > 128
    for first in range(len(given), len(ids), 64):
        end = min(first + 64, len(ids))
        want -= harness._continuations.nats([start, *ids[max(0, end - 128) : end]], end - first)
    ((score, greedy),) = harness.loglikelihood([request_of("We", follows)])
    assert score == pytest.approx(want, rel=1e-6) and not greedy
    assert dict(harness.notes) == {"continuations of more than 128 tokens, scored 64 at a time": 1}
    assert (
        Harness("unmask:teacher", draws=2, greedy=False).loglikelihood([request_of("We", follows)])[
            0
        ][0]
        < 0
    )


def test_the_protocol_names_the_settings() -> None:
    assert Harness("unmask:teacher", draws=2, steps=3, sampler="confidence").words == (
        "2 draws per log-likelihood, 3 steps per text by confidence, seed 0"
    )
    assert Harness("unmask:judge", draws=2, seed=5).words == f"{EXACT}, seed 5"
    with pytest.raises(
        ValueError, match=r"sampler .*got 'confidence', and the model is autoregressive"
    ):
        Harness("unmask:judge", sampler="confidence")


def test_answers_longer_than_the_model_are_capped_with_a_note() -> None:
    long, plain = {"max_gen_toks": 256}, {"max_gen_toks": 20}
    harness = Harness("unmask:judge")
    (text,) = harness.generate_until([request_of("The Congress", long)])
    assert harness.generate_until([request_of("The Congress", {"max_gen_toks": 64})]) == [text]
    assert dict(harness.notes) == {"answers of 64 tokens at most, where the task allows 256": 1}
    few = Harness("unmask:judge", max_gen_toks=8)
    answers = few.generate_until(
        [request_of("The Congress", each) for each in (long, plain, {"max_gen_toks": 4})]
    )
    assert (
        answers[0] == answers[1]
        and text.startswith(answers[0])
        and answers[0].startswith(answers[2])
    )
    assert sorted(few.notes.values()) == [1, 1]


def test_texts_end_before_a_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness("unmask:teacher", steps=8, batch_size=2)
    plain = {"max_gen_toks": 24}
    contexts = [
        "My fellow citizens",
        "The Congress",
        "In the year of our Lord, the people of the United States",
    ]
    texts = harness.generate_until([request_of(context, plain) for context in contexts])
    assert all(texts) and texts == harness.generate_until(
        [request_of(context, plain) for context in contexts]
    )
    mark = texts[0][3:5]
    cut = harness.generate_until(
        [request_of(contexts[0], {"max_gen_toks": 24, "until": [mark, "\0"]})]
    )[0]
    assert cut == texts[0][: texts[0].find(mark)]
    hot = {"max_gen_toks": 24, "do_sample": True, "temperature": 1.0}
    mixed = harness.generate_until(
        [
            request_of(contexts[0], plain),
            request_of(contexts[1], hot),
            request_of(contexts[2], plain),
        ]
    )
    assert mixed[1] != texts[1] and all(mixed)
    with pytest.raises(ValueError, match=r"top_p.*got 0"):
        harness.generate_until([request_of(contexts[0], hot | {"top_p": 0.0})])
    for options in (
        {"do_sample": True},
        {"temperature": 1.0},
        {"do_sample": True, "temperature": 1.0},
    ):
        again = harness.generate_until(
            [request_of(contexts[1], options | {"max_tokens": 24}) for _ in range(2)]
        )
        assert again[0] == harness.generate_until([request_of(contexts[1], hot)])[0] != texts[1], (
            options
        )
    cold = harness.generate_until(
        [request_of(contexts[1], {"do_sample": True, "top_k": 1, "max_gen_toks": 24})]
    )
    assert cold == harness.generate_until([request_of(contexts[1], plain)]), "top_k has an effect"
    assert harness.generate_until([request_of(contexts[0], {})])[0], (
        "no length given: half the row at most"
    )
    short = harness.generate_until([request_of(contexts[0], {"max_gen_toks": 2})])[0]
    assert len(harness.model.tokenizer.encode(short)) <= 2


def test_stock_lm_eval_knows_it_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("unmask") is Harness
    made = Harness.create_from_arg_string(
        "model=unmask:teacher,draws=3", {"batch_size": "4", "device": None}
    )
    assert (made.draws, made.rows, made.rank) == (3, 4, 0)
    harness.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'unmask\[lm-eval\]'"):
        harness()
    monkeypatch.undo()


def test_wrong_requests_are_refused() -> None:
    harness = Harness("unmask:teacher")
    with pytest.raises(ValueError, match=r"max_gen_toks .*got 128, want 1 \.\. 127"):
        Harness("unmask:teacher", max_gen_toks=128)
    with pytest.raises(ValueError, match=r"batch_size .* got 'auto'"):
        Harness("unmask:teacher", batch_size="auto")
    with pytest.raises(ValueError, match=r"continuation .* got '' after 'a'"):
        harness.loglikelihood([request_of("a", "")])
    with pytest.raises(ValueError, match=r"model_args .* pretrained"):
        Harness("unmask:teacher", pretrained="gpt2")
    teacher = unmask.load("unmask:teacher")
    with pytest.raises(ValueError, match="model has no tokenizer"):
        Harness(Model(teacher.denoiser, teacher.process, teacher.schedule, None)).loglikelihood(
            [request_of("a", " b")]
        )
