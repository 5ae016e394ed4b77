"""A new method is one frozen dataclass: here, total variation to the teacher in place of KL."""

from dataclasses import dataclass
from pathlib import Path

import torch

import unmask
from unmask.diffusion.row_losses import scatter_rows
from unmask.objectives.base import Loss
from unmask.training import AdamW, State, fit, launch


@dataclass(frozen=True)
class TotalVariation:
    """TV(student at z_t, teacher at z_s) where both are masked."""

    model: unmask.Model
    teacher: torch.nn.Module
    delta: float = 1 / 16

    def __call__(self, network, x0, *, step, generator=None):
        t = self.delta + (1 - self.delta) * torch.rand(
            len(x0), generator=generator, dtype=torch.float64
        )
        alpha_t, alpha_s = self.model.schedule.alpha(t), self.model.schedule.alpha(t - self.delta)
        path = unmask.trajectory(self.model.process, x0, generator)
        z_t, z_s = path.at(alpha_t), path.at(alpha_s)
        where = z_s == self.model.process.mask_id  # a subset of the MASKs of z_t: one trajectory
        with torch.no_grad():
            target = self.teacher(z_s, alpha_s).log_p(where)
        distance = (network(z_t, alpha_t).log_p(where).exp() - target.exp()).abs().sum(-1) / 2
        return Loss(scatter_rows(distance, where), torch.ones_like(x0, dtype=torch.float32))

    def networks(self):
        return {}

    def frozen(self):
        return {"teacher": self.teacher}

    def turn(self, step):
        return "student"

    def prepare(self, step, student):
        pass


folder = Path(unmask.__file__).parent / "assets" / "teacher"
student, teacher = unmask.load(folder), unmask.load(folder)
rows = unmask.sample(
    teacher, n=16, length=64, steps=8
).tokens  # on-policy rows; data would do as well
objective = TotalVariation(teacher, teacher.denoiser)
state = State.begin(objective, student.denoiser, AdamW(lr=1e-4), launch("cpu"))
for update in fit(objective, state, lambda step: rows[step % 2 * 8 :][:8], steps=6):
    print(f"step {update.step}: total variation {update.loss:.4f}")
