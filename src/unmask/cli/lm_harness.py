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
    """Run tasks of lm-evaluation-harness: multiple choice, perplexity, generated answers.

    Attributes:
        model: run or model directory, hub id, unmask:teacher or unmask:judge
        tasks: names of tasks such as arc_easy, hellaswag, lambada_openai (`lm-eval ls tasks`
            lists them)
        include_path: directory with additional tasks in YAML files
        num_fewshot: examples before each question; None: the task's
        limit: maximum questions per task, spread evenly over them; None: all
        draws: noise levels per log-likelihood of a diffusion model, which is a bound
        greedy: also compute is_greedy, one call per token; only tasks such as lambada_openai
            use it
        max_gen_toks: maximum tokens of a generated answer; None: the task's, or half of the
            model's length if the task's do not fit
        steps: steps of a text that a diffusion model generates
        sampler: sampler of generated texts, see `unmask sample --help`
        seed: seed of noise and latents
        batch_size: rows per network call
        device: device of the model
        out: JSON file for all results of lm-eval
        json: print the results as JSON
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
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


def main(verb: str, arguments: Sequence[str]) -> int:
    options = parse(LmHarness, verb, arguments)
    for name in ("limit", "batch_size", "draws"):
        count = vars(options)[name]
        if count is not None:
            whole(name, count, "see `unmask eval lm-harness --help`")
    if options.out is not None:
        result_folder(options.out.parent)
        if options.out.is_dir():
            raise ValueError(f"out is a directory: got {str(options.out)!r}, want a file name")
    model_class = harness()
    from lm_eval import simple_evaluate

    manager = _task_manager(options)
    model = model_class(
        options.model,
        draws=options.draws,
        greedy=options.greedy,
        steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        batch_size=options.batch_size,
        device=options.device,
        max_gen_toks=options.max_gen_toks,
    )
    chosen = None
    if options.limit is not None:
        chosen = questions(manager.load(list(options.tasks))["tasks"], options.limit)
    results: Mapping[str, Any] | None = simple_evaluate(
        model,
        tasks=list(options.tasks),
        num_fewshot=options.num_fewshot,
        samples=chosen,
        task_manager=manager,
        log_samples=options.out is not None,
    )
    if results is None:
        raise RuntimeError(
            "lm-eval returned no results, because only the first process gets them: see the output "
            "of that process"
        )
    protocol = model.words
    if options.limit is not None:
        protocol += f"; at most {options.limit} questions of a task, spread evenly"
    protocol += "".join(f"; {count} {change}" for change, count in sorted(model.notes.items()))
    if options.out is not None:
        plain = json.loads(json.dumps(results, default=str))
        write_text(options.out, dumps(plain | {"unmask": protocol}, indent=1) + "\n")
    if options.json:
        counts = results["n-samples"]
        emit({"results": results["results"], "samples": counts, "protocol": protocol})
        return 0
    head = ["task", "metric", "value", "±", "questions", "of"]
    table(options.model, head, metric_lines(results))
    say(f"[{protocol}]")
    return 0


def _task_manager(options: LmHarness) -> Any:
    """lm-eval's task manager; ValueError for unknown tasks."""
    from lm_eval.tasks import TaskManager

    folder = None if options.include_path is None else str(options.include_path)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not {*options.tasks} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=folder)  # reads thousands of files
    if unknown := sorted({*options.tasks} - {*manager.all_tasks}):
        raise ValueError(
            f"tasks has unknown names: got {', '.join(unknown)}; `lm-eval ls tasks` lists all, "
            "include_path adds more"
        )
    return manager


def metric_lines(results: Mapping[str, Any]) -> list[list[object]]:
    """A line per metric of each task; lm-eval's keys are "acc,none" and "acc_stderr,none"."""
    lines: list[list[object]] = []
    for task, metrics in results["results"].items():
        counts = results["n-samples"].get(task, {})
        questions_of = [counts.get("effective", ""), counts.get("original", "")]
        for key, value in metrics.items():
            name, _, kind = key.partition(",")
            if kind and not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr,{kind}")
                sem = error if isinstance(error, float) else ""
                lines.append([task, name, value, sem, *questions_of])
    return lines


def questions(tasks: Mapping[str, Any], limit: int) -> dict[str, list[int]]:
    """Numbers of at most `limit` questions of each task, spread evenly.

    lm-eval's own limit takes the first questions, and many tasks are sorted by source.
    """
    return {
        name: evenly_spaced(len(task.eval_docs), limit).tolist() for name, task in tasks.items()
    }
