"""The whole job of the paper on one small scale: a teacher and a judge, trained or shipped, and one experiment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from unmask.cli.console import Progress
from unmask.data.hub import PACKAGE_PREFIX, shipped
from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.experiment import ROWS, Experiment, experiment, read_rows
from unmask.recipes.catalog import recipe
from unmask.recipes.run import finished, run
from unmask.recipes.schema import Recipe

SHIPPED = "sotu"  # the corpus that the shipped teacher and judge were trained on


@dataclass(frozen=True)
class Demo:
    """What `unmask demo` does. Of the three recipes, the first two are shipped trained.

    corpus        "sotu", "pydocs", a file or a folder; another corpus than "sotu" trains everything
    from_scratch  train teacher and judge although they are shipped
    """

    corpus: str = SHIPPED
    from_scratch: bool = False
    teacher: Recipe = field(default_factory=lambda: recipe("demo-teacher"))
    judge: Recipe = field(default_factory=lambda: recipe("demo-judge"))
    student: Recipe = field(default_factory=lambda: recipe("demo-mcd"))
    study: EvalSettings = field(default_factory=EvalSettings)


def demo(settings: Demo, directory: Path) -> Iterator[Progress]:
    """Run the demo in `directory`; a run that was stopped goes on where it was."""
    title = f"Masked Consistency Distillation on {settings.corpus}"
    student = replace(settings.student, data=replace(settings.student.data, corpus=settings.corpus))
    if settings.corpus == SHIPPED and not settings.from_scratch:
        known = read_rows(shipped() / ROWS, shipped=True)
        plan = Experiment(
            title,
            student,
            PACKAGE_PREFIX + "teacher",
            PACKAGE_PREFIX + "judge",
            settings.study,
            "shipped",
            known,
        )
    else:
        pair = from_scratch(settings, directory)
        yield from train(pair, directory)
        if not trained(pair, directory):
            return  # stopped by a signal
        teacher, judge = (str(directory / name / "model") for name in pair)
        plan = Experiment(title, student, teacher, judge, settings.study)
    yield from experiment(plan, directory)


def from_scratch(settings: Demo, directory: Path) -> dict[str, Recipe]:
    """The recipes of teacher and judge, trained in `directory`/teacher and /judge on the two halves of the corpus."""
    teacher, judge = settings.teacher, settings.judge
    tokenizer = str(directory / "teacher" / "model")
    return {
        "teacher": replace(teacher, data=replace(teacher.data, corpus=settings.corpus)),
        "judge": replace(
            judge, data=replace(judge.data, corpus=settings.corpus, tokenizer=tokenizer)
        ),
    }


def train(
    plans: Mapping[str, Recipe], directory: Path, device: str | None = None
) -> Iterator[Progress]:
    """Train each recipe in `directory`/name, one after the other; a signal ends them all.

    What is trained already is only looked at: several processes may do so at a time.
    """
    for name, plan in plans.items():
        if finished(plan, directory / name):
            continue
        said: list[str] = []
        for update in run(plan, directory / name, say=said.append, device=device):
            line = f"{name}: {update.loss:.3f} nats a token" if update.step % 100 == 0 else None
            line = f"{name}: {said.pop(0)}" if said else line
            yield Progress(f"training the {name}", update.step, plan.steps, line)
        if not trained([name], directory):
            return


def trained(names: Iterable[str], directory: Path) -> bool:
    """Whether all these trainings of `directory` are done; else a signal stopped them."""
    return all((directory / name / "model").exists() for name in names)
