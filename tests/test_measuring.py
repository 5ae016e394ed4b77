"""The command line on held-out text: the protocol names the rows; interruptions keep results."""

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.cli import zero_shot
from unmask.cli.main import main
from unmask.evaluation.likelihood import nelbo_batches
from unmask.evaluation.scoring_rules import exact_rule
from unmask.experiments import package_corpora as offline
from unmask.experiments.shipped_models import publish
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.held_out import Text, held_out

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_rows_that_were_read_stand_beside_their_perplexity(
    capsys: Capture, causal: Path, text: Path
) -> None:
    every = len(held_out(Text(), str(causal), load(causal)).rows)
    command = ["eval", "likelihood", causal, "--limit", 3]
    code, out, err = run(capsys, *command)
    read = "exact, start token before each row; products in float32"
    words = f"{read}; 3 of {every} rows of 16 tokens, spread evenly; rows are plain crops; "
    assert code == 0 and f"(n = 3) [{words}held-out part of second half of {text}]" in out, (
        out + err
    )
    answer = json.loads(run(capsys, *command, "--json")[1])
    assert (answer["rows"], answer["of"], answer["perplexity"]["n"]) == (
        3,
        every,
        3,
    ) and words in answer["protocol"]
    whole = json.loads(run(capsys, *command[:-1], "all", "--json")[1])
    assert (whole["rows"], whole["of"]) == (every, every) and f"{every} of {every} rows" in whole[
        "protocol"
    ]
    ended = json.loads(run(capsys, *command, "--text.wrap", "True", "--json")[1])["protocol"]
    assert "rows with BOS and EOS at their ends" in ended
    longer = run(capsys, *command, "--text.length", 24)[2]
    assert (
        f"rows of 24 tokens are longer than the 16 tokens of the rows that {causal} was trained on"
        in longer
    )


@pytest.mark.parametrize("count", ["0", "-1"])
@pytest.mark.parametrize("verb", ["likelihood", "zero-shot", "lm-harness"])
def test_counts_below_one_are_refused(capsys: Capture, verb: str, count: str) -> None:
    """`--limit -1` once read all but the last row."""
    tasks = ["--tasks", "arc_easy"] if verb == "lm-harness" else []
    for name in ("limit", "batch_size"):
        flag = "--" + name.replace("_", "-")
        code, out, err = run(capsys, "eval", verb, "unmask:judge", *tasks, flag, count)
        assert (
            code == 1
            and not out
            and f"{name} is too small: got {count}, want a whole number 1 .. " in err
        )


def test_samples_and_frontier_name_their_real_rows(
    capsys: Capture, masked: Path, causal: Path, tmp_path: Path
) -> None:
    study = [f"--study.{name}" for name in ("samples", "texts", "completions")]
    few = ["--judge", causal, "--text.wrap", "True"]
    words = "Real text: held-out part of"
    sizes = ["--samples", 2, "--texts", 1, "--completions", 2, "--steps", 2, "--no-naive"]
    code, out, err = run(capsys, "eval", "samples", masked, *few, *sizes)
    assert (
        code == 0
        and words in out
        and "real ones with BOS and EOS at their ends; real text: 2 of" in out
    ), out + err
    counts = [part for pair in zip(study, (2, 1, 2), strict=True) for part in pair]
    steps = ["--study.teacher-steps", 2, 4, "--study.student-steps", 2]
    steps += ["--study.teacher-temperatures", 0.8, "--study.student-temperatures", 1.2]
    out = run(
        capsys,
        "eval",
        "frontier",
        masked,
        masked,
        *few,
        *counts,
        *steps,
        "--json",
        "--out",
        tmp_path / "f",
    )[1]
    report = json.loads(out)
    assert report["protocol"]["wrap"] is True
    assert report["held_out"].startswith(words)


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small sets, `code` and `kjv`, and no other file."""
    from unmask.data.corpora import Corpus
    from unmask.experiments import package_corpora

    monkeypatch.setattr(package_corpora, "present", lambda folder: ["kjv", "code"])

    def load_offline(name: str, folder: Path) -> Corpus:
        return Corpus(name, [f"{name} {i} the state of the union" for i in range(200)])

    monkeypatch.setattr(package_corpora, "load_offline", load_offline)


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_keeps_the_measured_rows(
    capsys: Capture, causal: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    real = zero_shot.scored

    def stopped(read: Any, x0: Any, stage: str) -> Any:
        if stage == "code":
            raise KeyboardInterrupt
        return real(read, x0, stage)

    monkeypatch.setattr(zero_shot, "scored", stopped)
    code, out, err = run(
        capsys, "eval", "zero-shot", causal, "--sets", "offline", *["--json"] * as_json
    )
    assert code != 0 and "interrupted" in err
    if as_json:
        answer = json.loads(out)
        assert [each["name"] for each in answer["sets"]] == ["kjv"] and answer["not measured"] == [
            "code"
        ]
        assert (
            "brown_news" in answer["missing"]
            and answer["sets"][0]["of"] > answer["sets"][0]["rows"] == 256
        )
    else:
        assert out.startswith("kjv: ") and "256 of " in out and "code" not in out
        assert "at most 256 rows, spread evenly" in out


@pytest.mark.usefixtures("sets")
def test_zero_shot_reports_its_progress(capsys: Capture, causal: Path, masked: Path) -> None:
    """What it measures and with which limit, which sets are missing, and how far it is."""
    code, out, err = run(capsys, "eval", "zero-shot", causal, "--sets", "offline", "--limit", "32")
    assert code == 0 and [line.partition(":")[0] for line in out.splitlines()[:2]] == [
        "kjv",
        "code",
    ]
    assert "measuring kjv, code [" in err and "at most 32 rows" in err
    assert "left out: brown_news, brown_religion," in err and "make texts" in err
    assert "kjv: 16/32" in err and "kjv: 32/32" in err
    for more, want in (
        ([], "rows are plain crops"),
        (["--wrap", "True"], "rows with BOS and EOS at their ends"),
    ):
        answer = json.loads(
            run(capsys, "eval", "zero-shot", masked, "--sets", "kjv", *more, "--json")[1]
        )
        assert want in answer["protocol"] and answer["missing"] == []
    everything = json.loads(
        run(capsys, "eval", "zero-shot", causal, "--sets", "kjv", "--limit", "all", "--json")[1]
    )
    assert everything["sets"][0]["rows"] == everything["sets"][0]["of"] > 256


def test_a_card_holds_the_printed_numbers(
    capsys: Capture, masked: Path, causal: Path, tmp_path: Path
) -> None:
    """`reproduce assets` measures all held-out rows, of the weights that are shipped."""
    for run_directory in (masked.parent, causal.parent):
        out = tmp_path / run_directory.parent.name
        publish(run_directory, out)
        printed = json.loads((out / "config.json").read_text("utf-8"))["card"][
            "held_out_perplexity"
        ]
        assert printed == run(capsys, "eval", "likelihood", out, "--limit", "all")[1].strip()
        assert printed in (out / "README.md").read_text("utf-8")


def test_the_offline_sets_are_known(tmp_path: Path) -> None:
    names, missing = zero_shot.resolve_sets(["offline", "kjv"], tmp_path)
    assert names == ["code", "kjv"] and sorted([*missing, *names]) == sorted(zero_shot.OFFLINE_SETS)
    assert set(offline.OFFLINE) < set(zero_shot.OFFLINE_SETS)


def test_a_mask_in_the_text_is_refused(masked: Path, causal: Path) -> None:
    model, judge = load(masked), load(causal)
    assert isinstance(model, Model) and isinstance(judge, CausalModel)
    x0 = held_out(Text(), str(masked), model).some(2)
    x0[1, 3] = model.process.mask_id
    with pytest.raises(ValueError, match=r"MASK \(id 261\) 1 times"):
        next(nelbo_batches(model.denoiser, model.process, x0))
    with pytest.raises(ValueError, match=r"MASK \(id 261\) 1 times"):
        exact_rule(judge, start=0).scores(x0)
