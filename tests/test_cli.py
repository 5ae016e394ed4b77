"""The command line: help, exit codes, and a sentence instead of a stack trace for wrong use."""

import dataclasses
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import types
import typing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.cli import console, train
from unmask.cli.main import EXPERIMENTS, VERBS, main
from unmask.data.corpora import library_files
from unmask.experiments import package_corpora
from unmask.models.model import load
from unmask.recipes.catalog import RECIPES
from unmask.training import Update

GOLDEN = Path(__file__).parent / "golden"
TINY = (
    "--network.width 16 --network.blocks 1 --network.heads 2 --network.cond-dim 4 "
    "--network.length 16 --batch-size 4 --precision float32 --save-every 2 --optim.warmup-steps 1"
).split()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    for i in range(12):
        text = f"document {i}: " + "the people of the United States " * 20
        (folder / f"{i:02}.txt").write_text(text)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # how tyro ends on wrong use and on --help
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def test_a_command_without_arguments_prints_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unmask"])
    monkeypatch.setattr(os, "environ", {**os.environ})
    assert main() == 0 and "usage: unmask VERB" in capsys.readouterr().out


def test_waiting_threads_of_the_program_sleep():
    """The program sets the policy before torch reads it; OpenMP prints the policy in use."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    words = [sys.executable, "-m", "unmask", "sample", "--help"]
    ran = subprocess.run(
        words, env=environment | {"OMP_DISPLAY_ENV": "TRUE"}, capture_output=True, text=True
    )
    assert ran.returncode == 0 and "OMP_WAIT_POLICY = 'PASSIVE'" in ran.stderr


def test_the_users_policy_and_the_callers_environment_stay(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unmask", "--version"])
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "ACTIVE"})
    assert main() == 0 and os.environ == {"OMP_WAIT_POLICY": "ACTIVE"}
    monkeypatch.setattr(os, "environ", {})
    assert run(capsys, "--version")[0] == 0 and os.environ == {}


def test_help_lists_every_verb(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb not in ("train", "distill", "eval")]
)
def test_each_verb_explains_itself(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert f"unmask {verb}" in out


@pytest.mark.parametrize("verb", ["train", "distill", "eval"])
def test_verbs_with_a_second_word_show_their_usage(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and f"usage: unmask {verb}" in out
    for wrong in ([], ["--nonsense"]):
        code, out, err = run(capsys, verb, *wrong)
        assert (code, out) == (2, "") and f"usage: unmask {verb}" in err
        assert ("got '--nonsense', want" in err) == bool(wrong)


def test_wrong_use_is_code_2(capsys):
    code, _, err = run(capsys, "smaple")
    assert (code, "did you mean 'sample'?" in err) == (2, True)
    assert run(capsys, "sample")[0] == 2
    assert run(capsys, "sample", GOLDEN / "hub_mdlm", "--steps", "many")[0] == 2


def test_sample_prints_tokens_and_calls(capsys):
    code, out, _ = run(
        capsys, "sample", GOLDEN / "hub_mdlm", "--n", "3", "--length", "8", "--steps", "4", "--json"
    )
    drawn = json.loads(out)
    assert code == 0
    assert torch.tensor(drawn["tokens"]).shape == (3, 8)
    assert drawn["calls"] <= 4 and max(drawn["nfe"]) <= 4


def test_steps_of_an_autoregressive_model_are_refused(capsys):
    code, _, err = run(
        capsys, "sample", "unmask:judge", "--n", "1", "--length", "4", "--steps", "4"
    )
    assert code == 1 and err.startswith("unmask sample: steps has no effect: got 4, ")
    code, out, _ = run(capsys, "sample", "unmask:judge", "--n", "1", "--length", "4")
    assert code == 0 and "4 network calls" in out


def test_sample_with_a_cache(capsys):
    command = (
        "sample",
        GOLDEN / "hub_mdlm",
        "--n",
        "2",
        "--length",
        "8",
        "--steps",
        "8",
        "--sampler",
        "blockwise:4",
        "--json",
    )
    exact, one, four = (
        run(capsys, *command, *more)[1] for more in ((), ("--cache", "1"), ("--cache", "4"))
    )
    assert exact == one and json.loads(four)["nfe"] != json.loads(exact)["nfe"], (
        "whole passes take all of a period"
    )
    code, _, err = run(capsys, *command, "--cache", "0")
    assert code == 1 and "cache is too small: got 0" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", GOLDEN / "hub_mdlm", "--steps", "0"], ["steps", "0"]),
        (["sample", GOLDEN / "hub_mdlm", "--temperature", "0"], ["temperature", "0"]),
        (["sample", GOLDEN / "hub_mdlm", "--top-p", "1.5"], ["top_p", "1.5"]),
        (["sample", GOLDEN / "hub_mdlm", "--prompt", "words"], ["tokenizer"]),
        (["sample", "no/such/place/at/all"], ["no/such/place/at/all"]),
        (["train", "owt-small-techer"], ["did you mean 'owt-small-teacher'?"]),
        (["train", "owt-small-mcd"], ["unmask distill"]),
        (["distill", "demo-teacher"], ["unmask train"]),
        (["report", "."], ["report.json", "bench.json"]),
        (["bench", "--steps", "0"], ["steps", "too small", "0"]),
        (["bench", "--batches", "8", "0"], ["batches", "too small", "0"]),
        (["bench", "--length", "0"], ["length", "too small", "0"]),
        (["bench", "--repeats", "0"], ["repeats", "too small", "0"]),
        (["bench", "unmask:judge"], ["unmask:judge is autoregressive", "--baseline"]),
        (
            ["bench", "--baseline", "unmask:duo"],
            ["unmask:duo is a diffusion model", "leave --baseline out"],
        ),
        (["bench", "--device", "cuda:99"], ["device", "cuda:99"]),
    ],
)
def test_wrong_arguments_end_with_a_sentence(capsys, arguments, words):
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert all(word in err for word in words), err


def test_damaged_models_are_refused(capsys, tmp_path):
    for damage, words in {_cut: "cut off", _nan: "NaN", _alien: "missing"}.items():
        folder = tmp_path / words
        shutil.copytree(GOLDEN / "hub_mdlm", folder)
        damage(folder / "model.safetensors")
        code, _, err = run(capsys, "sample", folder)
        assert (code, words in err) == (1, True), err


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _nan(file: Path) -> None:
    tensors = load_file(file)
    next(iter(tensors.values())).flatten()[0] = torch.nan
    save_file(tensors, file)


def _alien(file: Path) -> None:
    save_file({"conv.weight": torch.ones(2, 2)}, file)


def test_dry_run_prints_the_recipe_and_trains_nothing(capsys, tmp_path):
    code, out, _ = run(
        capsys,
        "train",
        "owt-small-teacher",
        "--dry-run",
        "--optim.lr",
        "1e-4",
        "--out",
        tmp_path / "run",
    )
    printed = json.loads(out)
    assert code == 0
    assert printed["recipe"]["optim"]["lr"] == 1e-4
    assert printed["estimate"]["parameters"] == 169_627_218
    assert printed["estimate"]["tokens"] == 512 * 1024 * 1_000_000
    assert not (tmp_path / "run").exists()


def dry(capsys, verb, name, *more):
    code, out, err = run(capsys, verb, name, "--dry-run", *more)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda function: function.__name__)
def test_every_recipe_has_its_dry_run(capsys, recipe):
    """Nothing is read but a tokenizer that is at hand: no teacher, no corpus, no hub."""
    plan = recipe()
    verb = plan.traits.verb
    printed = dry(capsys, verb, plan.name)
    assert (
        printed["recipe"]["name"] == plan.name
        and printed["recipe"]["objective"]["kind"] == plan.objective.kind
    )
    assert printed["estimate"]["tokens"] == plan.batch_size * plan.steps * plan.network.length


def test_the_estimate_counts_the_passes_of_the_teacher(capsys):
    """6 FLOPs per weight and token for the student, 2 per pass of a teacher; SDTT has several."""
    teacher = dry(capsys, "train", "demo-teacher", "--batch-size", "32", "--steps", "480")[
        "estimate"
    ]
    unit = teacher["flops"] / 6
    passes = {
        "demo-mcd": dry(capsys, "distill", "demo-mcd"),
        "demo-sdtt": dry(capsys, "distill", "demo-sdtt"),
        "three": dry(capsys, "distill", "demo-sdtt", "--objective.teacher-steps", "3"),
    }
    costs = {name: printed["estimate"]["flops"] / unit for name, printed in passes.items()}
    assert costs == pytest.approx({"demo-mcd": 8, "demo-sdtt": 10, "three": 12})
    for printed in passes.values():
        assert printed["estimate"]["parameters"] == teacher["parameters"]
        assert printed["estimate"]["weights_bytes"] == 24 * teacher["parameters"]


def test_flags_reach_the_objectives_of_duo_and_sdtt(capsys):
    printed_recipe = dry(
        capsys,
        "train",
        "demo-duo",
        "--objective.gamma",
        "-3.0",
        "-1.0",
        "--objective.soft-steps",
        "7",
    )
    assert (
        printed_recipe["recipe"]["objective"]["gamma"] == [-3.0, -1.0]
        and printed_recipe["recipe"]["objective"]["soft_steps"] == 7
    )
    # The second and the third flag are an old name of the first.
    for flag in (
        ["--objective.time-grid", "released"],
        ["--objective.faithful", "released"],
        ["--objective.faithful=released"],
    ):
        printed = dry(capsys, "distill", "demo-sdtt", "--objective.divergence", "tvd", *flag)
        objective = printed["recipe"]["objective"]
        assert (objective["divergence"], objective["time_grid"]) == ("tvd", "released")
    assert run(capsys, "distill", "demo-sdtt", "--dry-run", "--objective.divergence", "kl")[0] == 2
    assert (
        run(capsys, "train", "demo-dcd", "--dry-run")[0]
        == run(capsys, "distill", "demo-duo", "--dry-run")[0]
        == 1
    )


def test_a_teacher_of_other_noise_is_refused_by_name(capsys, tmp_path, text, masked, uniform):
    data = [
        "--data.corpus",
        text,
        "--data.part",
        "all",
        "--data.tokenizer",
        masked,
        "--out",
        tmp_path / "run",
    ]
    for name, folder, want, got in (
        ("dcd", masked, "uniform", "masked"),
        ("sdtt", uniform, "masked", "uniform"),
    ):
        code, _, err = run(
            capsys, "distill", f"demo-{name}", *TINY, *data, "--objective.teacher", folder
        )
        assert code == 1 and f"got '{got}', want '{want}'; give another model" in err
        assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> types.SimpleNamespace:
    """Run directories of a teacher, a judge and a student that the command line trained."""
    root = tmp_path_factory.mktemp("family")
    corpus = write_corpus(root / "corpus")
    data = ["--data.corpus", str(corpus), "--data.part", "all"]
    teacher, judge, student = (root / name for name in ("teacher", "judge", "student"))

    def train(verb: str, recipe: str, out: Path, *flags: object) -> None:
        words = [verb, recipe, *TINY, *data, "--steps", "4", "--out", out, *flags]
        assert main([str(word) for word in words]) == 0

    train("train", "demo-teacher", teacher, "--data.tokenizer", "bpe:280")
    same = ["--data.tokenizer", teacher / "model"]
    train("train", "demo-judge", judge, *same)
    rounds = ["--objective.round-steps", "2", "--objective.temperatures", "0.9", "0.8"]
    train("distill", "demo-mcd", student, *same, "--objective.teacher", teacher / "model", *rounds)
    text = ["--text.corpus", corpus, "--text.length", "16"]
    return types.SimpleNamespace(
        teacher=teacher, judge=judge, student=student, corpus=corpus, data=data, text=text
    )


def test_a_trained_student_draws_and_scores_text(capsys, family):
    assert run(capsys, "sample", family.student, "--steps", "4", "--n", "2")[0] == 0
    code, out, err = run(capsys, "eval", "likelihood", family.student, *family.text, "--json")
    assert code == 0, out + err
    assert json.loads(out)["perplexity"]["value"] > 1


def test_the_bound_of_few_steps_is_printed_for_each_order(capsys, family):
    words = ["eval", "likelihood", family.student, *family.text, "--steps", "1", "4"]
    code, out, err = run(capsys, *words, "--order", "random", "spread", "--passes", "1", "--json")
    assert code == 0, out + err
    result = json.loads(out)["bounds"]
    assert [(row["order"], row["steps"]) for row in result] == [
        ("random", 1), ("spread", 1), ("random", 4), ("spread", 4)
    ]  # fmt: skip
    assert all(row["bound"]["value"] > 1 for row in result)
    assert result[1]["difference"]["value"] == pytest.approx(0, abs=1e-6), "one step has no order"
    for wrong in (["--steps", "2", "--order", "confidence"], ["--order", "spread"]):
        code, _, err = run(capsys, "eval", "likelihood", family.student, *family.text, *wrong)
        assert code == 1 and "order" in err
    code, _, err = run(capsys, "eval", "likelihood", family.judge, *family.text, "--steps", "2")
    assert code == 1 and "steps has no effect" in err


def test_a_finished_run_trains_no_further_and_prints_json_lines(capsys, family, tmp_path):
    new = ["--data.tokenizer", "bpe:280", "--steps", "2", "--out", tmp_path / "json"]
    first = run(capsys, "train", family.teacher, "--json")
    second = run(capsys, "train", "demo-teacher", *TINY, *family.data, *new, "--json")
    assert (first[0], second[0]) == (0, 0)
    lines = [json.loads(line) for line in (first[1] + second[1]).splitlines()]
    assert [line["step"] for line in lines] == [1, 2], "the finished run prints no updates"


@pytest.fixture
def frontier(capsys, family, tmp_path) -> types.SimpleNamespace:
    """The result and the output of `unmask eval frontier`."""
    flags = {
        "samples": [2],
        "teacher-steps": [2, 4],
        "student-steps": [2],
        "teacher-temperatures": [0.8],
        "student-temperatures": [1.2],
        "texts": [1],
        "completions": [2],
        "shown": [1],
        "player-steps": [2],
        "round-steps": [4],
    }
    study = [word for name, values in flags.items() for word in (f"--study.{name}", *values)]
    models = [family.student, family.teacher, "--judge", family.judge]
    words = ["eval", "frontier", *models, *family.text, *study]
    folder = tmp_path / "frontier"
    code, out, err = run(capsys, *words, "--out", folder)
    assert code == 0, out + err
    result = json.loads((folder / "report.json").read_text())
    return types.SimpleNamespace(words=words, folder=folder, out=out, result=result)


def test_a_frontier_has_rows_answers_a_verdict_and_example_texts(capsys, frontier):
    result = frontier.result
    keys = {"teacher", "student", "temperature_teacher", "answers", "verdict", "protocol"}
    assert keys <= set(result)
    assert [pair["latent"] for pair in result["samples"]] == [0] and len(result["real"]) == 2
    titles = ["teacher, 2 steps", "student, 2 steps", "teacher, 16 steps", "student, 4 steps"]
    assert [trace["title"] for trace in result["player"]] == titles
    *_, conclusion, caveat = result["verdict"]
    assert conclusion["claim"] == "No claim is made about the student"
    assert conclusion["figures"].startswith("n = 2 texts per row are fewer than the 16")
    assert caveat["claim"] == "One training seed"
    assert f"{conclusion['claim']} ({conclusion['figures']})." in frontier.out
    assert run(capsys, "report", frontier.folder)[0] == 0
    assert (frontier.folder / "report.html").exists()


def test_a_frontier_in_json_prints_nothing_else(capsys, frontier, tmp_path):
    code, out, _ = run(capsys, *frontier.words, "--json", "--out", tmp_path / "again")
    assert code == 0 and json.loads(out)["verdict"] == frontier.result["verdict"]


FEW = ["--samples", "2", "--texts", "1", "--completions", "2", "--steps", "2", "4"]


def test_samples_have_a_row_for_each_seed_and_a_row_of_means(capsys, family):
    words = ["eval", "samples", family.student, "--judge", family.judge, *family.text, *FEW]
    rows = json.loads(run(capsys, *words, "--seeds", "0", "1", "--json")[1])
    baselines = ["uniform tokens", "unigram draws", "one text repeated", "data"]
    assert [row["name"] for row in rows] == ["samples"] * 4 + ["2 seeds"] * 2 + baselines
    by_seed, both = [row["gen_ppl"] for row in rows[0:4:2]], rows[4]
    assert both["gen_ppl"] == pytest.approx(sum(by_seed) / 2)
    assert both["setting"]["seeds"] == [0, 1]


def test_the_protocol_of_samples_names_their_draw(capsys, family):
    words = ["eval", "samples", family.student, "--judge", family.judge, *family.text, *FEW]
    words += ["--no-naive", "--json"]
    legacy = ["--draw", "legacy_gumbel32", "--sampler", "ancestral"]
    plain, noisy = (json.loads(run(capsys, *words, *more)[1])[0] for more in ([], legacy))
    assert plain["protocol"]["precision"] == "float64" and plain["setting"]["draw"] == "race"
    assert noisy["protocol"]["precision"] == "float32 Gumbel"
    assert noisy["setting"]["sampler"] == "ancestral"
    assert noisy["setting"]["draw"] == "legacy_gumbel32"


def test_samples_of_an_autoregressive_model(capsys, family):
    """A call a token, on the text of its own card; flags of diffusion models are refused."""
    words = ["eval", "samples", family.judge, "--judge", family.judge]
    for flag, name in ((["--steps", "2", "4"], "steps"), (["--texts", "1"], "texts")):
        code, _, err = run(capsys, *words, *flag)
        assert code == 1
        assert f"{name} has no effect: got" in err and "is autoregressive; leave --" in err
    code, out, err = run(capsys, *words, "--samples", "2", "--no-naive", "--json")
    assert code == 0, err
    assert [row["steps"] for row in json.loads(out)] == [16]
    assert run(capsys, *words, "--steps")[0] == 1


def test_zero_shot_reads_the_sets_that_are_available(capsys, tmp_path, monkeypatch):
    files = library_files()[:40]
    monkeypatch.setattr(package_corpora, "library_files", lambda: files)  # some of 12 MB
    few = ["--limit", "2", "--batch-size", "2", "--texts", tmp_path]
    code, out, err = run(
        capsys, "eval", "zero-shot", "unmask:judge", "--sets", "offline", *few, "--json"
    )
    assert code == 0, err
    (result,) = json.loads(out)["sets"]
    assert result["name"] == "code" and result["rows"] == 2 and result["of"] > 1000
    assert result["perplexity"]["value"] > 30 and 2 < result["bits_per_byte"]["value"] < 20
    bound, mdlm = (
        json.loads(
            run(
                capsys,
                "eval",
                "zero-shot",
                "unmask:teacher",
                "--sets",
                "code",
                *few,
                "--json",
                *more,
            )[1]
        )
        for more in ([], ["--convention", "mdlm"])
    )
    assert "upper bound" in bound["protocol"] and "not a bound" in mdlm["protocol"]
    assert "products in float32" in bound["protocol"] and "products in float32" in mdlm["protocol"]
    code, out, err = run(capsys, "eval", "zero-shot", "unmask:teacher", "--sets", "code", *few)
    assert code == 0 and "bits per byte" in out
    assert (
        "make texts" in run(capsys, "eval", "zero-shot", "unmask:teacher", "--sets", "kjv", *few)[2]
    )
    assert (
        "want some of ptb, wikitext"
        in run(capsys, "eval", "zero-shot", "unmask:teacher", "--sets", "lambda", *few)[2]
    )
    assert (
        "limit is too small: got 0, want a whole number 1 .. "
        in run(capsys, "eval", "zero-shot", "unmask:teacher", "--limit", "0")[2]
    )


def test_bench_measures_and_its_figure_is_drawn_again(capsys, tmp_path, uniform, causal):
    few = [
        "--steps",
        "2",
        "4",
        "--batches",
        "1",
        "3",
        "--repeats",
        "2",
        "--length",
        "8",
        "--out",
        tmp_path,
    ]
    code, out, err = run(capsys, "bench", *few, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result == json.loads((tmp_path / "bench.json").read_text())
    assert result["model"]["name"] == "unmask:teacher" and result["baseline"]["random"]
    assert [(row["batch"], row["steps"]) for row in result["rows"]] == [
        (b, s) for b in (1, 3) for s in (2, 4, None)
    ]
    assert [row["nfe"] for row in result["rows"] if row["steps"] is None] == [8, 8]
    (tmp_path / "bench.png").unlink()
    assert run(capsys, "report", tmp_path)[0] == 0 and (tmp_path / "bench.png").exists()
    code, out, err = run(
        capsys, "bench", uniform, "--baseline", causal, "--precision", "bfloat16", *few
    )
    assert code == 0, err
    assert "tokens/forward" in out and "drawn at random" not in out and "bfloat16" in out
    result = json.loads((tmp_path / "bench.json").read_text())
    assert (
        result["model"]["digest"] != result["baseline"]["digest"]
        and not result["baseline"]["random"]
    )


@pytest.mark.parametrize(
    "command",
    [["bench"], ["verify", "duality"], ["verify", "exact"], ["demo"],
     ["eval", "frontier", "unmask:teacher", "unmask:teacher", "--judge", "unmask:judge"]],
    ids=lambda command: command[1] if len(command) > 1 else command[0],
)  # fmt: skip
def test_a_place_that_takes_no_files_is_refused_before_the_work(
    capsys, tmp_path, monkeypatch, command
):
    def work(*_: object) -> typing.NoReturn:
        raise AssertionError("the work began")

    for place in (
        "experiments.bench.ar_speedup.time_pairs",
        "experiments.exact.duality_checks.observe",
        "experiments.commands.verify._gaps",
        "experiments.commands.demo.demo",
        "cli.evaluate.measure_frontier",
    ):
        monkeypatch.setattr(f"unmask.{place}", work)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        code, _, err = run(capsys, *command, "--out", out)
        assert code == 1 and f": out is not writable: got '{out}'" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_refused_before_the_tasks(capsys, tmp_path):
    command = ["eval", "lm-harness", "unmask:teacher", "--tasks", "no_such_task", "--out"]
    (tmp_path / "file").write_text("mine")
    code, _, err = run(capsys, *command, tmp_path)
    assert code == 1 and f": out is a directory: got '{tmp_path}'" in err
    code, _, err = run(capsys, *command, tmp_path / "file" / "below")
    assert code == 1 and f": out is not writable: got '{tmp_path / 'file'}'" in err


def test_a_run_of_another_recipe_is_refused_and_kept(capsys, tmp_path, corpus):
    recipe = [
        "train",
        "demo-teacher",
        *TINY,
        "--data.corpus",
        corpus,
        "--data.tokenizer",
        "bpe:280",
        "--steps",
        "2",
    ]
    out = tmp_path / "run"
    assert run(capsys, *recipe, "--out", out)[0] == 0
    before = (out / "recipe.json").read_text()
    code, _, err = run(capsys, *recipe, "--optim.lr", "0.5", "--out", out)
    assert code == 1
    assert "lr" in err
    assert (out / "recipe.json").read_text() == before


def test_corpora_that_cannot_be_used(capsys, tmp_path, corpus):
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run(
        capsys, "train", "demo-teacher", *TINY, "--data.corpus", empty, "--out", tmp_path / "a"
    )
    assert (code, str(empty) in err) == (1, True)
    long = [*TINY, "--network.length", "100000"]
    small = ["--data.corpus", corpus, "--data.tokenizer", "bpe:280", "--out", tmp_path / "b"]
    code, _, err = run(capsys, "train", "demo-teacher", *long, *small)
    assert (code, "100000" in err) == (1, True)


def test_doctor_and_convert(capsys, tmp_path):
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(out)["torch"]
    assert (
        run(capsys, "convert", GOLDEN / "lightning_mdlm" / "mdlm.ckpt", tmp_path / "ours")[0] == 0
    )
    assert run(capsys, "sample", tmp_path / "ours", "--steps", "2", "--n", "1")[0] == 0


@pytest.mark.parametrize("rank", ["0", "1"])
def test_updates_go_to_tensorboard_from_one_process(monkeypatch, tmp_path, rank):
    """TensorBoard reads the numbers back. Without it, no process writes."""
    monkeypatch.setenv("RANK", rank)
    metrics = {"round": 1.0}
    update = Update(3, loss=2.5, grad_norm=0.5, lr=1e-3, metrics=metrics, tokens=8, seconds=0.25)
    with train.tensorboard(tmp_path) as board:
        assert not any(tmp_path.iterdir()), "a new run directory must be empty"
        board(update)
    if rank == "1" or find_spec("tensorboard") is None:
        assert not any(tmp_path.iterdir())
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = {name: events.Scalars(name)[0] for name in events.Tags()["scalars"]}
    expected = {name: value for name, value in update.record().items() if isinstance(value, float)}
    assert {name: event.value for name, event in written.items()} == pytest.approx(expected)
    assert {event.step for event in written.values()} == {3}


def test_one_process_of_many_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "sample", GOLDEN / "hub_mdlm", "--n", "1", "--length", "4")[:2] == (0, "")
    code, _, err = run(capsys, "sample", GOLDEN / "no such model")
    assert code == 1 and "no such model" in err, "every process prints its errors"


@pytest.mark.parametrize(
    "name",
    [
        *(f"{verb}.Arguments" for verb in sorted(VERBS.keys() - {"distill", "eval"})),
        "evaluate.Frontier",
        "evaluate.SamplesArguments",
        "likelihood.Likelihood",
        "zero_shot.ZeroShot",
        "lm_harness.LmHarness",
    ],
)
def test_every_flag_has_its_sentence(name):
    module, _, own = name.partition(".")
    package = "unmask.experiments.commands" if module in EXPERIMENTS else "unmask.cli"
    kind = vars(importlib.import_module(f"{package}.{module}"))[own]
    for settings in console.dataclasses_of(kind):
        doc = inspect.getdoc(settings)
        for f in dataclasses.fields(settings):
            nested = any(console.dataclasses_of(typing.get_type_hints(settings)[f.name]))
            assert nested or f.name == "kind" or f"\n    {f.name}: " in doc, (settings, f.name)


@pytest.fixture
def few_objectives(monkeypatch):
    from unmask.experiments.exact import distillation_optima as fixed_points

    monkeypatch.setattr(fixed_points, "OBJECTIVES", fixed_points.OBJECTIVES[:2])


@pytest.mark.usefixtures("few_objectives")
def test_verify_measures_on_a_known_law(capsys, tmp_path):
    command = [
        "verify",
        "exact",
        "--n",
        "200",
        "--length",
        "4",
        "--vocab-size",
        "4",
        "--out",
        tmp_path,
        "--no-train",
    ]
    code, out, err = run(capsys, *command)
    assert code == 0, out + err
    assert "entropy_bounded" in out and "FAILS" not in out and "forward KL" in out
    assert (tmp_path / "exact.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "exact.json").read_text())
    assert {len(result["gaps"][name]) for name in ("reveal", "even", "confidence", "uniform")} == {
        3
    }
    assert result["source"]["length"] == 4 and all(check["passed"] for check in result["checks"])
    code, out, _ = run(capsys, *command, "--json", "--source", "grammar")
    assert code == 0 and json.loads(out)["source"]["kind"] == "grammar"
    faults = {
        "--n": ("50", "n is too small: got 50"),
        "--order": ("3", "order is too large: got 3"),
        "--vocab-size": ("0", "vocab_size is too small: got 0"),
    }
    for flag, (value, words) in faults.items():
        code, _, err = run(capsys, *command, flag, value)
        assert code == 1 and words in err
    assert run(capsys, "verify", "nothing")[0] == 2
    for flag in (["--length", "8"], ["--no-train"], ["--source", "grammar"]):
        code, _, err = run(capsys, "verify", "duality", *flag)
        assert (
            code == 1
            and "belongs to `verify exact`" in err
            and flag[0].removeprefix("--no-").strip("-") in err
        )
    for flag, value in (
        ("--seed", 2**63),
        ("--seed", -1),
        ("--vocab-size", 2**40),
        ("--n", 10**15),
    ):
        for what in ("duality", "exact"):
            code, _, err = run(capsys, "verify", what, flag, value)
            assert code == 1 and f"{flag.strip('-').replace('-', '_')} is too" in err.replace(
                "n x length", "n"
            ), err


@pytest.mark.usefixtures("few_objectives")
def test_verify_fails_where_a_law_does(capsys, tmp_path, monkeypatch):

    from unmask.experiments.exact import factorization_gap
    from unmask.samplers.unmasking import confidence

    monkeypatch.setattr(factorization_gap, "even", confidence)
    command = ["--n", "200", "--length", "4", "--vocab-size", "4", "--no-train", "--out", tmp_path]
    code, out, _ = run(capsys, "verify", "exact", *command)
    assert code == 1 and "FAILS" in out


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["sample", ""], "the first argument"),
        (["train", ""], "the first argument"),
        (["eval", "frontier", "unmask:teacher", ""], "an argument"),
        (["eval", "samples", "unmask:teacher", "--judge", ""], "--judge"),
        (["eval", "samples", "unmask:teacher", "--judge="], "--judge"),
        (["distill", "demo-mcd", "--dry-run", "--data.corpus", ""], "--data.corpus"),
        (["bench", "--out", ""], "--out"),
        (["sample", "unmask:teacher", "--order", ""], "--order"),
    ],
)
def test_an_empty_name_is_refused(capsys, arguments, flag):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and f": {flag} is empty: got ''" in err


def test_an_option_that_is_empty_by_default_may_be_empty(capsys):
    drawn = [
        run(capsys, "sample", GOLDEN / "hub_mdlm", "--n", "1", "--length", "4", *more)
        for more in ([], ["--prompt", ""])
    ]
    assert drawn[0] == drawn[1] and drawn[0][0] == 0


@pytest.mark.parametrize(
    ("value", "fault"), [("a\0b", "a NUL character"), ("a\udcff", "bytes that are not UTF-8")]
)
def test_an_argument_that_no_file_can_hold_is_refused(capsys, value, fault):
    for words, flag in (
        (["--prompt", value], "--prompt"),
        ([f"--prompt={value}"], "--prompt"),
        ([value], "an argument"),
    ):
        code, _, err = run(capsys, "sample", *words)
        assert code == 2 and f"{flag} holds {fault}: got " in err


def test_a_length_of_zero_is_refused(capsys):
    code, _, err = run(capsys, "sample", GOLDEN / "hub_mdlm", "--length", "0")
    assert code == 1 and "length is too small: got 0" in err


def test_a_text_longer_than_the_rows_of_training_is_named(capsys):
    trained = load(GOLDEN / "hub_mdlm").network.shape.length
    for length, fault in (
        (trained, ""),
        (trained + 1, f"rows of {trained + 1} tokens are longer than the {trained}"),
    ):
        code, _, err = run(
            capsys,
            "sample",
            GOLDEN / "hub_mdlm",
            "--n",
            "1",
            "--length",
            str(length),
            "--steps",
            "2",
        )
        assert code == 0 and fault in err and ("longer" in err) == bool(fault)


def test_a_batch_at_a_time_is_the_same_text(capsys):
    command = ["sample", GOLDEN / "hub_mdlm", "--n", "5", "--length", "8", "--steps", "4", "--json"]
    all_at_once, by_two = (
        json.loads(run(capsys, *command, *more)[1]) for more in ([], ["--batch-size", "2"])
    )
    assert by_two.pop("calls") >= all_at_once.pop("calls") and by_two == all_at_once
