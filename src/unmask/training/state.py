"""The state of a training: weights, EMA and moments of its networks, and frozen networks.

All else in a training is a function of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unmask.models.ema import Ema
from unmask.objectives.base import STUDENT
from unmask.training.distributed import Engine, whole
from unmask.training.optim import AdamW

if TYPE_CHECKING:
    from unmask.objectives.base import Objective


@dataclass
class TrainedNetwork:
    """A trained network with its own optimizer and EMA (None: no EMA is kept)."""

    network: nn.Module
    settings: AdamW
    optimizer: torch.optim.AdamW
    ema: Ema | None

    @staticmethod
    def begin(network: nn.Module, settings: AdamW) -> TrainedNetwork:
        """The network before its first update. Its weights must be on their device already."""
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError(
                "network has no parameter to train: got requires_grad = False for all parameters; "
                "set it to True for at least one"
            )
        optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        # AdamW sets these values in its first step. A saved state is read before that step.
        for parameter in parameters:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        ema = None if settings.ema_decay is None else Ema(network, settings.ema_decay)
        return TrainedNetwork(network, settings, optimizer, ema)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained parameters with their names, in the optimizer's order."""
        return (
            (name, value) for name, value in self.network.named_parameters() if value.requires_grad
        )

    def clear_gradients(self) -> list[Tensor]:
        """Zero and return the gradient of every trained parameter.

        No gradient is None, so all ranks sum the same tensors.
        """
        gradients = []
        for _, parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        torch._foreach_zero_(gradients)
        return gradients

    def clip(self) -> Tensor:
        """Scale the gradient down to `clip_norm`, and return its L2 norm before scaling."""
        limit = float("inf") if self.settings.clip_norm is None else self.settings.clip_norm
        parameters = [parameter for _, parameter in self.parameters()]
        return whole(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def advance(self, learning_rate: float) -> None:
        """Update the weights by AdamW with this learning rate, then the EMA."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network)


@dataclass
class State:
    """A training between two steps. `RunDir` saves and restores it.

    Attributes:
        trained: name -> trained network; "student" is always present
        frozen: name -> network that is used but not trained. An objective may replace its weights
            at the start of a round
        step: number of completed steps
    """

    trained: dict[str, TrainedNetwork]
    frozen: dict[str, nn.Module]
    step: int = 0

    @staticmethod
    def begin(
        objective: Objective,
        student: nn.Module,
        settings: AdamW | Mapping[str, AdamW],
        engine: Engine,
    ) -> State:
        """The state before the first step.

        Networks are moved to the device, equal on all ranks or sharded. Frozen networks are set to
        eval mode.

        Args:
            objective: has the other networks, trained and frozen.
            student: the student.
            settings: one value for all trained networks, or one for each by its name.
            engine: the process.

        Raises:
            ValueError: `settings` names other networks than `objective`, or a frozen network
                shares a parameter with a trained one. Freezing it would freeze both.
        """
        networks = {STUDENT: student, **objective.networks()}
        frozen = objective.frozen()
        if isinstance(settings, AdamW):
            settings = dict.fromkeys(networks, settings)
        if set(settings) != set(networks):
            raise ValueError(
                f"settings names other networks than the objective trains: got {sorted(settings)}, "
                f"want {sorted(networks)}; give these names, or one AdamW for all networks"
            )
        owners = {
            p.data_ptr(): name for name, network in networks.items() for p in network.parameters()
        }
        for name, network in frozen.items():
            shared = [owners[p.data_ptr()] for p in network.parameters() if p.data_ptr() in owners]
            if shared:
                raise ValueError(
                    f"the frozen network {name!r} shares weights with the trained network "
                    f"{shared[0]!r}: copy it"
                )
            network.eval().requires_grad_(False)
        engine.broadcast_weights([*networks.values(), *frozen.values()])
        trained = {
            name: TrainedNetwork.begin(network, settings[name])
            for name, network in networks.items()
        }
        return State(trained, frozen)

    @property
    def student(self) -> nn.Module:
        """The student, which every objective trains."""
        return self.trained[STUDENT].network

    def select(self, turn: str) -> TrainedNetwork:
        """Set `turn` to train mode and the others to eval mode, without gradients of the others."""
        if turn not in self.trained:
            raise ValueError(
                f"turn({self.step}) is not a trained network: got {turn!r}, want one of "
                f"{sorted(self.trained)}; correct `turn` or `networks` of the objective"
            )
        for name, trained in self.trained.items():
            trained.network.train(name == turn)
            if name != turn:
                trained.network.zero_grad(set_to_none=True)
        return self.trained[turn]
