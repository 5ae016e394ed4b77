"""Run a recipe in a run directory that can stop and resume, or in memory: the same training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unmask.recipes.run
import unmask.recipes.start
from toy_recipes import shrink
from unmask.data.packing import batch_at
from unmask.dataclass_json import to_json
from unmask.models.model import Model, load
from unmask.recipes.catalog import recipe
from unmask.recipes.data import TrainingData, documents, training_data
from unmask.recipes.objective_settings import ConsistencySettings
from unmask.recipes.run import distill, run, train
from unmask.recipes.schema import HELD_OUT, Recipe
from unmask.training import Engine, RunError

GOLDEN = Path(__file__).parents[1] / "golden"

IN_FLOAT32 = ", matrix products in float32"


@pytest.fixture(scope="module")
def plan(text: Path, masked: Path) -> Recipe:
    """Three rounds of two steps with dropout, so that a resume has every difficulty."""
    small = shrink(recipe("demo-mcd"), text, masked)
    objective = replace(small.objective, round_steps=2, temperatures=(0.9, 0.8, 0.7))
    return replace(small, objective=objective, steps=6, save_every=3, precision="float32")


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_leaves_a_model_with_its_history(plan: Recipe, tmp_path: Path) -> None:
    messages: list[str] = []
    updates = list(run(plan, tmp_path / "run", say=messages.append, device="cpu"))
    assert [update.step for update in updates] == [1, 2, 3, 4, 5, 6] and messages == [
        f"starting at step 0{IN_FLOAT32}"
    ]
    assert [update.metrics["round"] for update in updates] == [0, 0, 1, 1, 2, 2]
    card = json.loads((tmp_path / "run" / "model" / "config.json").read_text("utf-8"))["card"]
    assert card == {
        "recipe": to_json(plan),
        "steps": 6,
        HELD_OUT: documents(plan.data).held_out.digest,
    }
    average, raw = (load(tmp_path / "run" / "model", weights=which) for which in ("ema", "raw"))
    assert not same(weights(average.network), weights(raw.network))
    assert average.tokenizer.digest == load(plan.objective.teacher).tokenizer.digest


@pytest.mark.processor
def test_stopping_and_resuming_changes_nothing(plan: Recipe, tmp_path: Path) -> None:
    """Stopped after step 4, in the middle of a round; the last saved state is step 3."""
    whole = list(run(plan, tmp_path / "whole", device="cpu"))
    broken = run(plan, tmp_path / "parts", device="cpu")
    first = [next(broken).loss for _ in range(4)]
    broken.close()
    messages: list[str] = []
    rest = [
        update.loss for update in run(plan, tmp_path / "parts", say=messages.append, device="cpu")
    ]
    losses = [update.loss for update in whole]
    assert first == losses[:4] and rest == losses[3:]
    assert messages == [
        f"resuming at step 3; 1 steps after the last save were lost and are done again{IN_FLOAT32}"
    ]
    for which in ("ema", "raw"):
        one, two = (
            weights(load(tmp_path / name / "model", weights=which).network)
            for name in ("whole", "parts")
        )
        assert same(one, two)


def test_a_finished_run_is_left_alone(plan: Recipe, tmp_path: Path) -> None:
    list(run(plan, tmp_path / "run", device="cpu"))
    before = weights(load(tmp_path / "run" / "model").network)
    messages: list[str] = []
    assert list(run(plan, tmp_path / "run", say=messages.append, device="cpu")) == []
    assert messages[0].startswith("all 6 steps are done; ")
    assert same(weights(load(tmp_path / "run" / "model").network), before)
    with pytest.raises(RunError, match=r"fields that differ .*\n.*optim.lr"):
        list(run(replace(plan, optim=replace(plan.optim, lr=1.0)), tmp_path / "run", device="cpu"))
    with pytest.raises(RunError, match=r"already holds a run.* The finished model is kept in"):
        list(run(plan, tmp_path / "run", resume=False, device="cpu"))


def test_distill_is_the_same_training_in_memory(plan: Recipe, tmp_path: Path) -> None:
    rows = training_data(plan)
    in_files = list(run(plan, tmp_path / "run", data=rows, device="cpu"))
    model = load(plan.objective.teacher)
    before = weights(model.network)
    in_memory = list(distill(model, rows.train, plan))
    assert [update.loss for update in in_memory] == [update.loss for update in in_files]
    for updates in (in_files, in_memory):
        assert [update.student is not None for update in updates] == [False, True] * 3, (
            "where a round ends"
        )
    student = in_memory[-1].student
    assert (
        isinstance(student, Model)
        and student.tokenizer is model.tokenizer
        and student.process == model.process
    )
    for other in (in_files[-1].student, load(tmp_path / "run" / "model")):
        assert same(weights(student.network), weights(other.network)), "the average of weights"
    assert same(weights(model.network), before) and not model.network.training, (
        "the teacher is as it was"
    )


def test_distill_needs_neither_corpus_nor_directory() -> None:
    """A public checkpoint and rows of ids are enough; the recipe's own teacher is not read."""
    model = load(GOLDEN / "hub_mdlm")
    ids = torch.randint(37, (12, 16), generator=torch.Generator().manual_seed(0))
    small = Recipe(
        "x",
        ConsistencySettings(teacher="nowhere", round_steps=1),
        batch_size=4,
        steps=2,
        precision="float32",
    )
    *_, last = distill(model, ids, small)
    assert last.student.network.shape == model.network.shape and last.student.tokenizer is None


def test_wrong_use_of_distill() -> None:
    model, ids = load(GOLDEN / "hub_mdlm"), torch.zeros(4, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"'demo-judge' does not distill: got .*'next-token'"):
        list(distill(model, ids, recipe("demo-judge")))
    for wrong in (ids[0], ids[:0]):
        with pytest.raises(ValueError, match=r"ids .*got .*\[n, L\]"):
            list(distill(model, wrong, recipe("demo-mcd")))
    with pytest.raises(
        ValueError,
        match=r"got 0 to 99, .*vocab_size = 38",
    ):
        list(
            distill(
                model,
                ids.index_fill(0, torch.tensor(0), 99),
                replace(recipe("demo-mcd"), batch_size=4),
            )
        )


def test_train_is_the_same_training_in_memory(text: Path, tmp_path: Path) -> None:
    plan = replace(shrink(recipe("demo-teacher"), text), steps=3)
    rows = training_data(plan)
    in_files = list(run(plan, tmp_path / "run", data=rows, device="cpu"))
    other_length = replace(plan, network=replace(plan.network, length=99))
    in_memory = list(train(other_length, rows.train, tokenizer=rows.tokenizer))
    assert [update.loss for update in in_memory] == [update.loss for update in in_files]
    assert [update.student is None for update in in_memory] == [True, True, False]
    one, two = in_memory[-1].student, load(tmp_path / "run" / "model")
    assert one.digest == two.digest and one.length == rows.train.shape[1]
    assert one.tokenizer is rows.tokenizer


@pytest.mark.parametrize(
    ("name", "vocab_size", "mask_id"),
    [("demo-teacher", 38, 37), ("demo-duo", 37, None), ("demo-judge", 38, None)],
)
def test_train_needs_only_rows(name: str, vocab_size: int, mask_id: int | None) -> None:
    """Without a tokenizer the vocabulary is that of the rows, with MASK or a start token."""
    ids = torch.arange(40).view(5, 8) % 37
    small = shrink(recipe(name), Path())
    *_, last = train(small, ids)
    assert (last.student.vocab_size, last.student.mask_id) == (vocab_size, mask_id)
    *_, last = train(small, ids, vocab_size=50)
    assert last.student.vocab_size == 50 and last.student.length == 8


def test_train_continues_from_the_model_of_the_recipe(plan: Recipe, text: Path) -> None:
    start = load(plan.objective.teacher)
    long = shrink(recipe("long-teacher"), text, Path(plan.objective.teacher))
    rows = torch.zeros(4, 8, dtype=torch.int64)
    *_, last = train(replace(long, optim=replace(long.optim, lr=1e-12)), rows)
    before, after = weights(start.network), weights(last.student.network)
    assert before.keys() == after.keys() and last.student.tokenizer is not None
    assert all(torch.allclose(before[name], after[name]) for name in before)


def test_wrong_use_of_train() -> None:
    ids = torch.zeros(4, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"'demo-mcd' distills .*'consistency'.*unmask\.distill"):
        next(train(recipe("demo-mcd"), ids))
    with pytest.raises(ValueError, match=r"recipe .*'demo-teacher'.*unmask\.recipe"):
        next(train("demo-teacher", ids))
    for wrong, got in (
        (ids[0], r"\(8,\)"),
        (ids[:0], r"\(0, 8\)"),
        (ids[:, :0], "0"),
        ([[1]], "list"),
    ):
        with pytest.raises(ValueError, match=rf"ids .*got .*{got}.*\[n, L\]"):
            next(train(recipe("demo-teacher"), wrong))


def test_data_may_be_given(plan: Recipe, tmp_path: Path) -> None:
    """Rows that are already there; the corpus of the recipe is not read."""
    rows = training_data(plan)
    elsewhere = replace(plan, data=replace(plan.data, corpus="/nowhere"), steps=1)
    data = TrainingData(rows.train, rows.held_out, rows.tokenizer, rows.digest, rows.text_digest)
    assert len(list(run(elsewhere, tmp_path / "run", data=data, device="cpu"))) == 1


@pytest.mark.processor
@pytest.mark.parametrize("faster", [True, False])
def test_the_fastest_precision_is_decided_once_and_kept(
    faster: bool, plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume on another machine keeps the precision, which start line and model card name."""
    fastest, chosen, messages = (
        replace(plan, precision="fastest"),
        "bfloat16" if faster else "float32",
        [],
    )
    monkeypatch.setattr(unmask.recipes.start, "faster_in_bfloat16", lambda device: faster)
    begun = run(fastest, tmp_path / "run", say=messages.append, device="cpu")
    next(begun)
    begun.close()
    monkeypatch.setattr(unmask.recipes.start, "faster_in_bfloat16", lambda device: not faster)
    assert len(list(run(fastest, tmp_path / "run", say=messages.append, device="cpu"))) == 6
    assert len(messages) == 2 and all(
        line.endswith(f", matrix products in {chosen}") for line in messages
    )
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text("utf-8"))
    card = json.loads((tmp_path / "run" / "model" / "config.json").read_text("utf-8"))["card"]
    assert saved == card["recipe"] == to_json(replace(plan, precision=chosen))


def test_a_run_reports_settings_that_the_weights_contradict(plan: Recipe, tmp_path: Path) -> None:
    messages: list[str] = []
    other = replace(plan, network=replace(plan.network, width=32, dropout=0.3), steps=1)
    list(run(other, tmp_path / "run", say=messages.append, device="cpu"))
    start = plan.objective.teacher
    assert messages[1:] == [
        f"network.width = 8 of {start}, not 32",
        f"network.dropout = 0.0 of {start}, not 0.3",
    ]


def test_a_run_resumes_only_with_the_weights_of_its_start(
    plan: Recipe, masked: Path, tmp_path: Path
) -> None:
    """The teacher's directory may hold another model later."""
    model = load(masked)
    model.save(tmp_path / "teacher")
    other = replace(plan, objective=replace(plan.objective, teacher=str(tmp_path / "teacher")))
    begun = run(other, tmp_path / "run", device="cpu")
    next(begun)
    begun.close()
    with torch.no_grad():
        model.network.head.weight.add_(1)
    model.save(tmp_path / "teacher")
    with pytest.raises(RunError, match=r"teacher has other weights .* was trained again since"):
        list(run(other, tmp_path / "run", device="cpu"))


def test_two_processes_share_the_rows_of_a_distillation_in_memory(
    plan: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[Tensor]] = {0: [], 1: []}
    for rank in (0, 1):

        class Other(Engine):
            """One of two processes, without communication."""

            def sum_(self, tensors):
                pass

            def broadcast_weights(self, modules):
                pass

        def watched(ids, step, *, rank, **options):
            seen[rank].append(batch_at(ids, step, rank=rank, **options))
            return seen[rank][-1]

        monkeypatch.setattr(
            unmask.recipes.run,
            "launch",
            lambda device, rank=rank: Other(torch.device("cpu"), rank, 2),
        )
        monkeypatch.setattr(unmask.recipes.run, "batch_at", watched)
        list(
            distill(
                load(plan.objective.teacher),
                torch.arange(64).view(8, 8) % 20,
                replace(plan, steps=1),
            )
        )
    (one,), (two,) = seen[0], seen[1]
    assert len(one) == len(two) == plan.batch_size // 2 and not torch.equal(one, two)


def test_a_run_killed_while_the_caller_has_an_update_yields_it_again(
    plan: Recipe, tmp_path: Path
) -> None:
    """The state of step 3 is saved after the caller's code for update 3, so nothing is lost."""
    for update in run(plan, tmp_path / "run", device="cpu"):
        if update.step == 3:
            shutil.copytree(tmp_path / "run", tmp_path / "killed")
    assert [update.step for update in run(plan, tmp_path / "killed", device="cpu")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    one, two = (weights(load(tmp_path / name).network) for name in ("run", "killed"))
    assert same(one, two)


def test_a_run_from_before_a_field_was_added_resumes(plan: Recipe, tmp_path: Path) -> None:
    begun = run(plan, tmp_path / "run", device="cpu")
    next(begun)
    begun.close()
    file = tmp_path / "run" / "recipe.json"
    content = json.loads(file.read_text("utf-8"))
    del content["accumulation"], content["optim"]["weight_decay"]
    file.write_text(json.dumps(content), "utf-8")
    assert len(list(run(plan, tmp_path / "run", device="cpu"))) == plan.steps
    with pytest.raises(RunError, match=r"(?s)another recipe.*weight_decay"):
        list(
            run(
                replace(plan, optim=replace(plan.optim, weight_decay=0.5)),
                tmp_path / "run",
                device="cpu",
            )
        )
