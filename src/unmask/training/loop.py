"""The training loop, as a generator: one `Update` a step, and the caller's `for` body says what a step is for.

    engine = launch()
    state = State.begin(objective, student, AdamW(lr=3e-4, warmup_steps=500), engine)
    with RunDir.open(path, recipe, engine=engine) as run, stop_signals() as stop:
        run.restore(state)
        updates = fit(objective, state, batch_at, steps=1000, seed=1, engine=engine, stop=stop)
        for update in recorded(updates, run, state, every=100):
            print(update.step, update.loss)

Everything random in a step is a function of (seed, step, micro-batch), and micro-batches are numbered over all
processes: the generator that the objective receives, and the global generator that dropout reads. So is the batch. A
state saved after any step therefore continues bit for bit, with no generator in it; two processes of one micro-batch
learn what one of two would; and the caller's own random numbers are left alone.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.limits import seed_number
from unmask.rng import generator, global_generators
from unmask.training.distributed import Engine, launch
from unmask.training.loss_guard import Guard, TrainingError, Watch
from unmask.training.state import State
from unmask.types import Tokens

if TYPE_CHECKING:
    from unmask.models.model import CausalModel, Model
    from unmask.objectives.base import Objective
    from unmask.training.run_directory import RunDir

# What ends a training after its step; SIGHUP, which Windows does not have, comes when a terminal closes.
STOPPING = tuple(
    number for number in signal.Signals if number.name in ("SIGTERM", "SIGINT", "SIGHUP")
)
_CORRUPTION, _DROPOUT = 0, 1  # streams of one step
_WEIGHTED, _PLAIN = (
    "weighted ",
    "plain ",
)  # sums of an objective's metrics, with the weights of the loss and without


@dataclass(frozen=True)
class Update:
    """One step of a training, after it was taken.

    step       updates done, this one included: 1 after the first
    loss       nats: sum(per_token) / sum(weight) over micro-batches and ranks
    grad_norm  L2 norm of the gradient before the clip
    lr         learning rate of this update
    metrics    the objective's means, averaged with the weights of the loss; plain means where all weights are 0
    tokens     tokens read in this step by all ranks; seconds: wall time of the step
    turn       the network that was trained
    student    the model of the averaged weights, where a recipe's round or run ends
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    metrics: Mapping[str, float]
    tokens: int
    seconds: float
    turn: str = "student"
    student: Model | CausalModel | None = None

    def record(self) -> dict[str, float | int | str | None]:
        """One flat line for metrics.jsonl; numbers that are not finite become null."""
        own: dict[str, float | int | str | None] = {
            "step": self.step, "turn": self.turn, "loss": self.loss, "grad_norm": self.grad_norm, "lr": self.lr,
            "tokens": self.tokens, "seconds": round(self.seconds, 6),
        }  # fmt: skip
        taken = sorted(set(own) & set(self.metrics))
        if taken:
            raise ValueError(
                f"metrics of an objective may not be called {taken}: an update has fields of that name"
            )
        line = {**own, **self.metrics}
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()
        }


def fit(
    objective: Objective,
    state: State,
    batch_at: Callable[[int], Tokens],
    *,
    steps: int,
    accumulation: int = 1,
    seed: int = 0,
    engine: Engine | None = None,
    guard: Guard | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Update]:
    """Train from `state.step` to `steps`, one update a step; `state` is changed in place.

    batch_at      step -> this rank's ids [B, L]: a pure function, so that the data cursor is the step
    accumulation  micro-batches a step on this rank: the same gradient, 1 / accumulation of the memory
    stop          asked once a step; when it is true on any rank, all ranks end after that update

    The gradient is that of sum(per_token) / sum(weight) over all micro-batches of all ranks: one rank of 2 and two
    ranks of 1 differ by rounding only. TrainingError before a bad step is taken, or where another process was lost.

    A step whose weights are all 0, such as a batch without a MASK, has loss 0 and leaves weights, moments and moving
    average as they are.
    """
    if steps < 1:
        raise ValueError(f"steps is the length of the whole training: want steps >= 1, got {steps}")
    seed_number("seed", seed)
    engine = launch() if engine is None else engine
    watch = Watch(Guard() if guard is None else guard)
    while state.step < steps:
        started, step = time.perf_counter(), state.step
        turn = objective.turn(step)
        objective.prepare(step, state.student)
        learner = state.only(turn)
        gradients = learner.clear_gradients()
        batch = batch_at(step).to(engine.device, non_blocking=True)
        with engine.together(step):
            tally = _backward(objective, state, batch, step, seed, engine, accumulation)
            tally["stop"] = torch.tensor(float(stop()), dtype=torch.float64, device=engine.device)
            sums = torch.stack(list(tally.values()))
            here = engine.gather(gradients, sums)
            torch._foreach_div_(here, sums[1].where(sums[1] != 0, 1.0).to(here[0].dtype))
            norm = learner.clip()
        *values, grad_norm = torch.cat([sums, norm.double()[None]]).tolist()
        found = dict(zip(tally, values, strict=True))
        weight, metrics = found["weight"], _means(found)
        loss, lr = found["loss"] / (weight or 1), learner.settings.learning_rate(step)
        if watch.learns(step, turn, weight, {"loss": loss, "grad_norm": grad_norm}, metrics):
            learner.advance(lr)
        state.step += 1
        seconds = time.perf_counter() - started
        yield Update(state.step, loss, grad_norm, lr, metrics, int(found["tokens"]), seconds, turn)
        if found["stop"]:
            return


def _backward(
    objective: Objective,
    state: State,
    batch: Tokens,
    step: int,
    seed: int,
    engine: Engine,
    accumulation: int,
) -> dict[str, Tensor]:
    """Add the gradient of sum(per_token); returns float64 sums over micro-batches, for `_means` too.

    A metric is a mean over the weight of its micro-batch: it may be 0 / 0 where that is 0, and is left out there.
    """
    if not 1 <= accumulation <= len(batch):
        raise ValueError(
            f"accumulation splits a rank's batch of {len(batch)} sequences: want 1 to {len(batch)}, got {accumulation}"
        )
    tally: dict[str, Tensor] = {}
    for number, x0 in enumerate(batch.tensor_split(accumulation), start=engine.rank * accumulation):
        with _randomness(engine.device, seed, step, number) as noise:
            loss = objective(state.student, x0, step=step, generator=noise)
            total = loss.per_token.sum()
            if total.requires_grad:  # not where no token of this micro-batch is trained on
                total.backward()
        weight = loss.weight.expand_as(loss.per_token).sum(dtype=torch.float64)
        terms = {"loss": loss.per_token.detach().sum(dtype=torch.float64), "weight": weight,
                 "tokens": torch.full_like(weight, x0.numel()), "micro-batches": torch.ones_like(weight)}  # fmt: skip
        for name, value in loss.metrics.items():
            mean = torch.as_tensor(value, dtype=torch.float64, device=weight.device).detach()
            terms[_WEIGHTED + name] = (weight * mean).where(weight != 0, 0.0)
            terms[_PLAIN + name] = mean.where(mean.isfinite(), 0.0)
        if tally and tally.keys() != terms.keys():
            raise ValueError(
                f"an objective returns the same metrics each time: got {[*terms]} after {[*tally]}"
            )
        tally = {name: tally[name] + value for name, value in terms.items()} if tally else terms
    return tally


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step: means with the weights of the loss, or plain ones where all weights are 0."""
    kind, count = (_WEIGHTED, sums["weight"]) if sums["weight"] else (_PLAIN, sums["micro-batches"])
    return {
        name.removeprefix(kind): value / count
        for name, value in sums.items()
        if name.startswith(kind)
    }


@contextmanager
def _randomness(
    device: torch.device, seed: int, step: int, number: int
) -> Iterator[torch.Generator]:
    """The randomness of one micro-batch of a step; the global generators are given back as they were."""
    with global_generators(seed, step, number, _DROPOUT, device=device):
        yield generator(seed, step, number, _CORRUPTION, device=device)


def recorded(
    updates: Iterator[Update], run: RunDir, state: State, *, every: int
) -> Iterator[Update]:
    """Log each update, save the state every `every` steps and after the last one, and hand the update on.

    A TrainingError says which good state the run directory keeps.
    """
    if every < 1:
        raise ValueError(f"every counts the steps between two saves: want >= 1, got {every}")
    try:
        for update in updates:
            run.log(update.record())
            try:
                yield update
            finally:  # after the caller's turn: who is killed in the middle of it is given this update again
                if update.step % every == 0:
                    run.save(state)
    except TrainingError as error:
        raise TrainingError(f"{error} {run.kept()}") from error
    run.save(state)


@contextmanager
def stop_signals(*signals: int) -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGINT and SIGHUP into an answer for `fit(stop=...)`: finish the step, save, end.

    A second signal interrupts at once (KeyboardInterrupt). A signal that is ignored, as SIGHUP is under `nohup`, stays
    ignored. The old handlers come back at the end. Outside the main thread, where no handler can be set, the answer is
    always False.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    heard = [
        number for number in signals or STOPPING if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
