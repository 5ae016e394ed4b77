"""A new objective with a critic, complete in this file: recipe -> run -> resume.

Besides the objective and its settings, one thing has to be registered: the settings join the union
`BuiltInSettings`, from which recipe.json and the command line are read. The fixture `registered`
does this. Nothing in build, run, estimate, start or unused_settings changes.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from toy_recipes import shrink
from unmask import dataclass_json
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import to_json
from unmask.diffusion.processes import Process
from unmask.diffusion.schedules import NoiseSchedule
from unmask.diffusion.trajectory import trajectory
from unmask.models.model import load
from unmask.objectives.base import Loss, Objective
from unmask.objectives.nelbo import Nelbo
from unmask.recipes import schema
from unmask.recipes.catalog import recipe
from unmask.recipes.estimate import estimate
from unmask.recipes.objective_settings import frozen_copy, process_of
from unmask.recipes.run import finished, run
from unmask.recipes.schema import Recipe, recipe_of
from unmask.recipes.traits import Student, Traits
from unmask.recipes.unused_settings import check_flags
from unmask.rng import stratified
from unmask.training import STUDENT, AdamW

STEPS, EVERY = 8, 3


@dataclass(frozen=True)
class Matching:
    """Distribution matching: the student moves from the critic's prediction to the teacher's.

    The critic learns the student's own samples in `critic_steps` updates for each of the student.
    """

    process: Process
    schedule: NoiseSchedule
    teacher: nn.Module
    critic: nn.Module
    critic_steps: int

    def __call__(
        self, network: nn.Module, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        alpha = self.schedule.alpha(stratified(len(x0), generator, x0.device))
        z = trajectory(self.process, x0, generator).at(alpha)
        masked = z == self.process.mask_id
        if self.turn(step) == "critic":
            with torch.no_grad():  # the student is not trained in this step
                drawn = network(z, alpha).sample(masked, 1, generator)[0]
            log_p = self.critic(z, alpha).log_p(where=masked)
            terms = -log_p.gather(-1, drawn[:, None])[:, 0]
        else:
            with torch.no_grad():
                teacher, critic = (net(z, alpha).log_p(where=masked) for net in self._helpers())
            terms = (network(z, alpha).log_p(where=masked).exp() * (critic - teacher)).sum(-1)
        per_token = torch.zeros(x0.shape).masked_scatter(masked, terms)
        return Loss(per_token, masked.to(per_token))

    def _helpers(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, self.critic

    def networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def turn(self, step: int) -> str:
        return STUDENT if step % (self.critic_steps + 1) == self.critic_steps else "critic"

    def prepare(self, step: int, student: nn.Module) -> None:
        """Nothing: teacher and critic stay."""


@dataclass(frozen=True)
class MatchingSettings:
    """Distil by distribution matching.

    teacher       directory or hub id
    critic_steps  updates of the critic for each update of the student
    critic_optim  optimizer of the critic
    """

    kind: Literal["matching"] = "matching"
    teacher: str = ""
    critic_steps: int = 2
    critic_optim: AdamW = field(
        default_factory=lambda: AdamW(lr=4e-3, warmup_steps=4, ema_decay=None)
    )

    def traits(self) -> Traits:
        return Traits(
            "masked",
            self.teacher,
            distils=True,
            teacher_passes=1,
            optims={"critic": self.critic_optim},
        )

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        teacher, critic = frozen_copy(student), copy.deepcopy(student)
        return Matching(process_of(student), schedule, teacher, critic, self.critic_steps)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one line that a new objective adds to existing code."""
    joined = schema.ObjectiveSettings | MatchingSettings
    monkeypatch.setattr(schema, "ObjectiveSettings", joined)
    dataclass_json._hints.cache_clear()
    yield
    dataclass_json._hints.cache_clear()


@pytest.fixture
def plan(text: Path, masked: Path) -> Recipe:
    small = shrink(recipe("demo-mcd"), text, masked)
    network = replace(small.network, dropout=0.2)
    optim = AdamW(lr=1e-3, warmup_steps=2, ema_decay=0.9)
    objective = MatchingSettings(teacher=str(masked))
    return replace(small, objective=objective, network=network, optim=optim, steps=STEPS,
                   save_every=EVERY, accumulation=2)  # fmt: skip


def test_it_runs_and_resumes_bit_for_bit(plan: Recipe, tmp_path: Path) -> None:
    """Stopped after step 4, with both optimizers in the middle of their warm-ups."""
    whole = [update.loss for update in run(plan, tmp_path / "whole", device="cpu")]
    stopped = run(plan, tmp_path / "parts", device="cpu")
    first = [next(stopped).loss for _ in range(4)]
    stopped.close()
    state = tmp_path / "parts" / "state" / f"step-{EVERY:08d}"
    assert sorted(file.stem for file in (state / "critic").iterdir()) == ["model", "optimizer"]
    rest = [update.loss for update in run(plan, tmp_path / "parts", device="cpu")]
    assert first == whole[:4] and rest == whole[EVERY:] and len({*whole}) == STEPS
    for weights in ("ema", "raw"):
        one, two = (
            load(tmp_path / name / "model", weights=weights).network.state_dict()
            for name in ("whole", "parts")
        )
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_each_network_has_its_own_schedule(plan: Recipe, tmp_path: Path) -> None:
    """Turns are critic, critic, student, ...; each network warms up over its own updates."""
    updates = [(u.turn, u.lr) for u in run(plan, tmp_path / "run", device="cpu")]
    assert [turn for turn, _ in updates] == ["critic", "critic", "student"] * 2 + ["critic"] * 2
    assert [lr for turn, lr in updates if turn == "student"] == [0.5e-3, 1e-3]
    expected = pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 4e-3, 4e-3])
    assert [lr for turn, lr in updates if turn == "critic"] == expected


def test_recipe_json_estimate_and_flags_know_it(plan: Recipe, tmp_path: Path) -> None:
    next(run(plan, tmp_path / "run", device="cpu"))
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text("utf-8"))
    assert saved["objective"]["critic_optim"]["lr"] == 4e-3
    assert recipe_of(tmp_path / "run") == plan and to_json(plan) == saved
    costs = estimate(plan, vocab_size=262)
    assert costs["weights_bytes"] == (20 + 20 + 4) * costs["parameters"]
    flagged = replace(plan, network=replace(plan.network, sees_alpha=True))
    with pytest.raises(ValueError, match=r"network\.sees-alpha"):
        check_flags(flagged, plan)
    critic = replace(plan.objective, critic_optim=AdamW(lr=1.0))
    check_flags(replace(plan, objective=critic), plan)


def test_a_network_without_settings_is_refused(plan: Recipe, tmp_path: Path) -> None:
    class Forgotten(MatchingSettings):
        def traits(self) -> Traits:
            return Traits("masked", self.teacher, distils=True)

    forgotten = replace(plan, objective=Forgotten(teacher=plan.objective.teacher))
    with pytest.raises(ValueError, match=r"settings .*\['student'\].*\['critic', 'student'\]"):
        next(run(forgotten, tmp_path / "run", device="cpu"))


@dataclass(frozen=True)
class OwnSettings(MatchingSettings):
    """Settings that no list of the library names; the critic starts from random weights."""

    kind: Literal["own"] = "own"  # type: ignore[assignment]

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        objective = super().build(student, schedule, tokenizer)
        assert isinstance(objective, Matching)
        for weight in objective.critic.parameters():
            nn.init.normal_(weight, std=0.02)
        return objective


def test_settings_of_a_user_run_and_resume_bit_for_bit(plan: Recipe, tmp_path: Path) -> None:
    """Also the random weights of the critic follow from the seed of the recipe."""
    own = replace(plan, objective=OwnSettings(teacher=plan.objective.teacher))
    whole = [update.loss for update in run(own, tmp_path / "whole", device="cpu")]
    torch.rand(3)  # the global generator does not matter
    stopped = run(own, tmp_path / "parts", device="cpu")
    first = [next(stopped).loss for _ in range(4)]
    stopped.close()
    rest = [update.loss for update in run(own, tmp_path / "parts", device="cpu")]
    assert first == whole[:4] and rest == whole[EVERY:]
    assert finished(own, tmp_path / "parts")
    again = run(own, tmp_path / "parts", device="cpu")
    assert list(again) == []  # all steps are done
    with pytest.raises(ValueError, match=r"recipe\.objective\.kind is unknown: got 'own'"):
        recipe_of(tmp_path / "parts")


def test_settings_without_a_start_need_no_field_for_it(plan: Recipe, tmp_path: Path) -> None:
    """The settings of docs/extending.md have no field `init`."""

    @dataclass(frozen=True)
    class Plain:
        kind: Literal["plain"] = "plain"

        def traits(self) -> Traits:
            return Traits("masked")

        def build(
            self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
        ) -> Objective:
            return Nelbo(process_of(student), schedule)

    plain = replace(plan, objective=Plain(), steps=2, save_every=1)
    assert len([*run(plain, tmp_path / "run", device="cpu")]) == 2
