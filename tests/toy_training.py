"""A small training with every part of a run: dropout, noise, a moving teacher, metrics."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.objectives.base import Loss
from unmask.training import STUDENT, AdamW, Engine, RunDir, State, Update, fit, with_checkpoints

TOKENS = 4
ROUND = 4  # steps
CPU = Engine(torch.device("cpu"))
RECIPE = {"optim": {"lr": 0.01, "betas": [0.9, 0.999]}, "seed": 1}


class Net(nn.Module):
    """One-hot tokens [B, L, V] -> one number a token [B, L]."""

    def __init__(self, dropout: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(TOKENS, 8)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(torch.tanh(self.inner(x)))).squeeze(-1)


@dataclass
class Chase:
    """The student learns its teacher's output plus the token id, from a noisy input.

    The teacher is replaced by the student at the start of each round.

    Token 0 has no weight, so that micro-batches weigh differently.
    """

    noise: float = 1.0
    teacher: nn.Module = field(default_factory=lambda: Net(dropout=0.0, seed=9))
    prepared: list[int] = field(default_factory=list)

    def __call__(
        self, network: nn.Module, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        dtype = next(network.parameters()).dtype
        x = F.one_hot(x0, TOKENS).to(dtype)
        x = x + self.noise * torch.rand(x.shape, generator=generator, dtype=dtype)
        with torch.no_grad():
            target = self.teacher(x) + x0
        weight = (x0 > 0).to(dtype)
        error = (network(x) - target) ** 2 * weight
        return Loss(
            error,
            weight,
            {"round": torch.tensor(step // ROUND), "error": error.detach().sum() / weight.sum()},
        )

    def networks(self) -> dict[str, nn.Module]:
        return {}

    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def turn(self, step: int) -> str:
        return STUDENT

    def prepare(self, step: int, student: nn.Module) -> None:
        self.prepared.append(step)
        if step % ROUND == 0:
            self.teacher.load_state_dict(student.state_dict())


def batch_at(step: int) -> Tensor:
    """Ids [8, 6] of a step."""
    return torch.randint(0, TOKENS, (8, 6), generator=torch.Generator().manual_seed(step))


def begin(
    objective: Chase | None = None, student: nn.Module | None = None, **settings: float
) -> State:
    return State.begin(
        objective or Chase(), student or Net(), AdamW(lr=0.01, warmup_steps=3, **settings), CPU
    )


def updates(state: State, objective: Chase, steps: int, **options: object) -> Iterator[Update]:
    return fit(objective, state, batch_at, steps=steps, seed=1, engine=CPU, **options)


def run(path: Path, steps: int, every: int = 3, **options: object) -> tuple[State, list[Update]]:
    """Train to `steps` in a run directory, from wherever it stands."""
    objective = Chase()
    state = begin(objective)
    with RunDir.open(path, RECIPE) as directory:
        directory.restore(state)
        return state, list(
            with_checkpoints(
                updates(state, objective, steps, **options), directory, state, every=every
            )
        )


def contents(state: State) -> dict[str, Tensor]:
    """Every tensor of a state, by a name."""
    tensors = {"step": torch.tensor(state.step)}
    for name, trained in state.trained.items():
        tensors |= {f"{name} {key}": value for key, value in trained.network.state_dict().items()}
        for index, moments in trained.optimizer.state_dict()["state"].items():
            tensors |= {f"{name} {index} {key}": value for key, value in moments.items()}
        if trained.ema is not None:
            tensors |= {f"{name} ema {key}": value for key, value in trained.ema.shadow.items()}
            tensors[f"{name} ema updates"] = torch.tensor(trained.ema.updates)
    for name, network in state.frozen.items():
        tensors |= {f"{name} {key}": value for key, value in network.state_dict().items()}
    return tensors


def differing(one: State, two: State) -> list[str]:
    """Names of the tensors of two states that are not the same bit for bit."""
    first, second = contents(one), contents(two)
    return sorted(first.keys() ^ second.keys()) + [
        name for name in first if name in second and not torch.equal(first[name], second[name])
    ]
