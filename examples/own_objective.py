"""A new distillation objective: total variation to the teacher in place of a KL divergence."""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch

import unmask
from unmask.objectives.base import no_networks, no_preparation, student_turn
from unmask.recipes.traits import Traits
from unmask.rng import stratified


@dataclass(frozen=True)
class TotalVariation:
    """TV(student at z_t, teacher at z_s), at the MASKs of z_s; s = t - delta."""

    process: unmask.MaskedProcess
    schedule: unmask.LogLinear
    teacher: torch.nn.Module
    delta: float
    networks, turn, prepare = no_networks, student_turn, no_preparation

    def frozen(self):
        return {"teacher": self.teacher}

    def __call__(self, student, x0, *, step, generator=None):
        t = self.delta + (1 - self.delta) * stratified(len(x0), generator, x0.device)
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(t - self.delta)
        path = unmask.trajectory(self.process, x0, generator)
        z_t, z_s = path.at(alpha_t), path.at(alpha_s)
        masked = z_s == self.process.mask_id  # masked in z_t too, because both read one trajectory
        with torch.no_grad():
            target = self.teacher(z_s, alpha_s).log_p(where=masked).exp()
        tv = (student(z_t, alpha_t).log_p(where=masked).exp() - target).abs().sum(-1) / 2
        per_token = torch.zeros(x0.shape, device=x0.device).masked_scatter(masked, tv)
        return unmask.Loss(per_token, weight=torch.ones_like(per_token))


@dataclass(frozen=True)
class TotalVariationSettings:
    kind: Literal["total-variation"] = "total-variation"
    delta: float = 1 / 16

    def traits(self):
        return Traits(noise="masked", distils=True, teacher_passes=1)

    def build(self, student, schedule, tokenizer):
        process = unmask.MaskedProcess(student.vocab_size, student.mask_id)
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        return TotalVariation(process, schedule, teacher, self.delta)


model = unmask.load("unmask:teacher")
ids = unmask.sample(model, n=16, length=64, steps=8).tokens  # or rows of your own text
recipe = replace(unmask.recipe("demo-mcd"), steps=6, batch_size=8)
recipe = replace(recipe, objective=TotalVariationSettings())
for update in unmask.distill(model, ids, recipe):
    print(f"step {update.step}: total variation {update.loss:.4f}")
