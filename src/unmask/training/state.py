"""What a training changes and cannot compute again from the step: weights, averages, moments, teachers, the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unmask.models.ema import Ema
from unmask.training.distributed import Engine
from unmask.training.optim import AdamW
from unmask.training.sharding import entire

if TYPE_CHECKING:
    from unmask.objectives.base import Objective

STUDENT = "student"  # the network that every objective trains; others have the names of `Objective.networks()`


@dataclass
class Learner:
    """One trained network with its own optimizer and moving average (None: no average is kept)."""

    network: nn.Module
    settings: AdamW
    optimizer: torch.optim.AdamW
    ema: Ema | None

    @staticmethod
    def begin(network: nn.Module, settings: AdamW) -> Learner:
        """A network at the start of its training; its weights must be on their device already."""
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError(
                "a trained network needs a parameter with requires_grad; this one has none"
            )
        optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for parameter in (
            parameters
        ):  # AdamW's own first values, here so that a state can be read before any step
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        ema = None if settings.ema_decay is None else Ema(network, settings.ema_decay)
        return Learner(network, settings, optimizer, ema)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained parameters with their names, in the optimizer's order."""
        return (
            (name, value) for name, value in self.network.named_parameters() if value.requires_grad
        )

    def clear_gradients(self) -> list[Tensor]:
        """Zero and return the gradient of every trained parameter: zeros, not None, so that all ranks agree."""
        gradients = []
        for _, parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        torch._foreach_zero_(gradients)
        return gradients

    def clip(self) -> Tensor:
        """L2 norm of the gradient; beyond `clip_norm` the gradient is scaled down to it."""
        limit = float("inf") if self.settings.clip_norm is None else self.settings.clip_norm
        return entire(
            torch.nn.utils.clip_grad_norm_([parameter for _, parameter in self.parameters()], limit)
        )

    def advance(self, learning_rate: float) -> None:
        """One AdamW step with this learning rate; the moving average follows."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network)


@dataclass
class State:
    """A training between two steps; `step` counts the updates done. `RunDir` saves it and brings it back.

    learners  name -> trained network; "student" is always there
    frozen    name -> network that is read but not trained; an objective may replace its weights at a round's start
    """

    learners: dict[str, Learner]
    frozen: dict[str, nn.Module]
    step: int = 0

    @staticmethod
    def begin(
        objective: Objective,
        student: nn.Module,
        settings: AdamW | Mapping[str, AdamW],
        engine: Engine,
    ) -> State:
        """The state before the first step: networks on the device, equal on all ranks or sharded, frozen ones in eval.

        `settings` is one for all networks, or one for each by name. Raises ValueError where a name has no settings,
        or a frozen network shares a parameter with a trained one (copy it: freezing it would freeze both).
        """
        networks = {STUDENT: student, **objective.networks()}
        frozen = objective.frozen()
        if not isinstance(settings, AdamW) and set(settings) != set(networks):
            raise ValueError(
                f"settings name the networks {sorted(settings)}, the objective trains {sorted(networks)}"
            )
        trained = {
            p.data_ptr(): name for name, network in networks.items() for p in network.parameters()
        }
        for name, network in frozen.items():
            shared = next(
                (trained[p.data_ptr()] for p in network.parameters() if p.data_ptr() in trained),
                None,
            )
            if shared is not None:
                raise ValueError(
                    f"the frozen {name!r} shares weights with {shared!r}, which is trained: copy it"
                )
            network.eval().requires_grad_(False)
        engine.agree([*networks.values(), *frozen.values()])
        learners = {
            name: Learner.begin(
                network, settings if isinstance(settings, AdamW) else settings[name]
            )
            for name, network in networks.items()
        }
        return State(learners, frozen)

    @property
    def student(self) -> nn.Module:
        """The network that the objective trains in most steps."""
        return self.learners[STUDENT].network

    def only(self, turn: str) -> Learner:
        """The learner whose turn it is, in train mode with zero gradients; the others in eval mode with none."""
        if turn not in self.learners:
            raise ValueError(
                f"turn({self.step}) is {turn!r}, which is not a trained network: {sorted(self.learners)}"
            )
        for name, learner in self.learners.items():
            learner.network.train(name == turn)
            if name != turn:
                learner.network.zero_grad(set_to_none=True)
        return self.learners[turn]
