"""`unmask eval lm-harness`: tasks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from unmask.atomic_files import write_text
from unmask.cli.console import emit, parse, result_folder, say, table
from unmask.data.packing import evenly_spaced
from unmask.dataclass_json import dumps
from unmask.evaluation.lm_harness import harness
from unmask.limits import whole


@dataclass(frozen=True)
class LmHarness:
    """Accuracies of multiple choice, perplexities and generated answers, as stock lm-eval counts them.

    model         a run or model directory, a hub id, unmask:teacher or unmask:judge
    tasks         names of tasks: arc_easy, hellaswag, lambada_openai, .. (`lm-eval ls tasks` lists them)
    include_path  a folder with tasks of your own, as YAML
    num_fewshot   examples before each question (the task's)
    limit         questions of a task at most, spread evenly over them (all)
    draws         noise levels behind each log-likelihood of a diffusion model, which is a bound
    greedy        find out whether an answer is the greedy one, a call a token (lambada_openai asks; else leave it out)
    max_gen_toks  tokens of a drawn answer at most (the task's, or half of the model's length where those do not fit)
    steps         of a text that a diffusion model draws
    sampler       that draws it: see `unmask sample --help`
    seed          of noise and latents
    batch_size    rows a network call
    device        where the model runs
    out           a file for all that lm-eval returns, as JSON
    json          print the results as JSON
    """

    model: Annotated[str, tyro.conf.Positional]
    tasks: tuple[str, ...]
    include_path: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    draws: int = 32
    greedy: bool = True
    max_gen_toks: int | None = None
    steps: int = 32
    sampler: str | None = None
    seed: int = 0
    batch_size: int = 32
    device: str = "cpu"
    out: Path | None = None
    json: bool = False


def lm_harness(arguments: Sequence[str]) -> int:
    asked = parse(LmHarness, "eval lm-harness", arguments)
    for name, count in {
        "limit": asked.limit,
        "batch_size": asked.batch_size,
        "draws": asked.draws,
    }.items():
        if count is not None:
            whole(name, count, "see `unmask eval lm-harness --help`")
    if asked.out is not None:
        result_folder(asked.out.parent)
        if asked.out.is_dir():
            raise ValueError(
                f"out is a directory: got {str(asked.out)!r}, want the name of a file to write"
            )
    known = harness()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = None if asked.include_path is None else str(asked.include_path)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not {*asked.tasks} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=folder)  # reads thousands of files
    if unknown := sorted({*asked.tasks} - {*manager.all_tasks}):
        raise ValueError(
            f"lm-eval knows no task {', '.join(unknown)}: `lm-eval ls tasks` lists them, include_path adds"
        )
    model = known(
        asked.model, draws=asked.draws, greedy=asked.greedy, steps=asked.steps, sampler=asked.sampler, seed=asked.seed,
        batch_size=asked.batch_size, device=asked.device, max_gen_toks=asked.max_gen_toks,
    )  # fmt: skip
    chosen = (
        None
        if asked.limit is None
        else questions(manager.load_task_or_group(list(asked.tasks)), asked.limit)
    )
    answer: Mapping[str, Any] | None = simple_evaluate(
        model, tasks=list(asked.tasks), num_fewshot=asked.num_fewshot, samples=chosen, task_manager=manager,
        log_samples=asked.out is not None,
    )  # fmt: skip
    if answer is None:
        raise RuntimeError("lm-eval returned nothing: it answers on the first process only")
    protocol = model.words
    protocol += (
        "" if asked.limit is None else f"; at most {asked.limit} questions of a task, spread evenly"
    )
    protocol += "".join(f"; {count} {what}" for what, count in sorted(model.notes.items()))
    if asked.out is not None:
        plain = json.loads(json.dumps(answer, default=str))
        write_text(asked.out, dumps(plain | {"unmask": protocol}, indent=1) + "\n")
    if asked.json:
        emit({"results": answer["results"], "samples": answer["n-samples"], "protocol": protocol})
        return 0
    table(asked.model, ["task", "metric", "value", "±", "questions", "of"], lines(answer))
    say(f"[{protocol}]")
    return 0


def lines(answer: Mapping[str, Any]) -> list[list[object]]:
    """A line for each metric of each task; lm-eval writes "acc,none" and "acc_stderr,none"."""
    table = []
    for task, found in answer["results"].items():
        for key, value in found.items():
            name, _, kind = key.partition(",")
            if kind and not name.endswith("_stderr"):
                error = found.get(f"{name}_stderr,{kind}")
                counts = answer["n-samples"].get(task, {})
                read = [counts.get("effective", ""), counts.get("original", "")]
                table.append([task, name, value, error if isinstance(error, float) else "", *read])
    return table


def questions(tasks: Mapping[Any, Any], limit: int) -> dict[str, list[int]]:
    """Numbers of at most `limit` questions of each task, spread evenly over them; groups hold further tasks.

    lm-eval's own limit takes the first ones, and many tasks are sorted by their sources.
    """
    found: dict[str, list[int]] = {}
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            found |= questions(task, limit)
        else:
            found[str(name)] = evenly_spaced(len(task.eval_docs), limit).tolist()
    return found
