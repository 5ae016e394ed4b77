"""The training loop, as a generator: it yields one `Update` a step.

    engine = launch()
    state = State.begin(objective, student, AdamW(lr=3e-4, warmup_steps=500), engine)
    with RunDir.open(path, recipe, engine=engine) as run, stop_signals() as stop:
        run.restore(state)
        updates = fit(objective, state, batch_at, steps=1000, seed=1, engine=engine, stop=stop)
        for update in with_checkpoints(updates, run, state, every=100):
            print(update.step, update.loss)

All random numbers of a step are a function of (seed, step, micro-batch), and micro-batches are
numbered over all processes. This holds for the generator that the objective gets, and for the
global generator that dropout uses. The batch is a function of the step too. So a resume from any
saved state is equal bit for bit, without a saved generator. Two processes with one micro-batch each
learn the same as one process with two. The global generators of the caller are restored.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.limits import check_range, seed_number
from unmask.objectives.base import STUDENT, Loss
from unmask.rng import generator, global_generators
from unmask.training.distributed import Engine, launch
from unmask.training.loss_guard import LossGuard, TrainingError
from unmask.training.state import State
from unmask.types import Tokens

if TYPE_CHECKING:
    from unmask.models.model import CausalModel, Model
    from unmask.objectives.base import Objective
    from unmask.training.run_directory import RunDir

# Signals that end a training after its step. SIGHUP, which Windows lacks, is sent when a terminal
# closes.
STOPPING = tuple(
    number for number in signal.Signals if number.name in ("SIGTERM", "SIGINT", "SIGHUP")
)
_CORRUPTION, _DROPOUT = 0, 1  # random streams of one step
# Prefixes of sums of an objective's metrics, with the weights of the loss and without them.
_WEIGHTED, _PLAIN = "weighted ", "plain "


@dataclass(frozen=True)
class Update:
    """One completed step of a training.

    Attributes:
        step: number of completed steps, 1 after the first
        loss: nats: sum(per_token) / sum(weight) over micro-batches and ranks
        grad_norm: L2 norm of the gradient before clipping
        lr: learning rate of this update
        metrics: means of the objective's metrics, weighted as the loss; plain means if all weights
            are 0
        tokens: tokens of the batches of all ranks
        seconds: wall time of the step
        turn: the network that was trained
        student: the model of the averaged weights, at the end of a round or of a run
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    metrics: Mapping[str, float]
    tokens: int
    seconds: float
    turn: str = STUDENT
    student: Model | CausalModel | None = None

    def record(self) -> dict[str, float | int | str | None]:
        """The line of metrics.jsonl, a flat dict; numbers that are not finite become None."""
        own: dict[str, float | int | str | None] = {
            "step": self.step,
            "turn": self.turn,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 6),
        }
        if taken := sorted(own.keys() & self.metrics.keys()):
            raise ValueError(
                f"metrics of an objective have reserved names: got {taken}, which are fields of an "
                "update"
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
    guard: LossGuard | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Update]:
    """Train from `state.step` to `steps`, one update a step; `state` changes in place.

    The gradient is that of sum(per_token) / sum(weight) over all micro-batches of all ranks. One
    rank with 2 micro-batches and two ranks with 1 differ only by rounding.

    The learning rate of each trained network follows the number of its own updates. Before step k
    this is the number of earlier steps with its turn, a pure function of k.

    If all weights of a step are 0, as in a batch without MASK, its loss is 0. The step leaves the
    network, the moments and the EMA unchanged.

    Args:
        objective: the loss to minimise.
        state: the state to continue from.
        batch_at: maps a step to the ids [B, L] of this rank. It is a pure function, so no data
            cursor is saved.
        steps: number of steps of the whole training.
        accumulation: micro-batches in a step on this rank. The gradient is the same, with
            1 / accumulation of the memory for activations.
        seed: seed of noise and dropout.
        engine: the process; by default `launch()`.
        guard: limits of loss and gradient norm; by default `LossGuard()`.
        stop: called once a step. If it returns True on any rank, all ranks end after that update.

    Yields:
        An `Update` for each step.

    Raises:
        TrainingError: `guard` refuses the loss or the gradient norm, before the step changes
            anything. A loss other than 0 has no gradient, or another process was lost.
    """
    check_range("steps", steps, steps >= 1, "steps >= 1")
    seed_number("seed", seed)
    engine = launch() if engine is None else engine
    guard = LossGuard() if guard is None else replace(guard)  # a copy without recent losses
    turns = Counter(map(objective.turn, range(state.step)))
    while state.step < steps:
        started, step = time.perf_counter(), state.step
        turn = objective.turn(step)
        objective.prepare(step, state.student)
        trained = state.select(turn)
        gradients = trained.clear_gradients()
        batch = batch_at(step).to(engine.device, non_blocking=True)
        with engine.report_lost_process(step):
            tally = _backward(objective, state, batch, step, seed, engine, accumulation)
            tally["stop"] = torch.tensor(float(stop()), dtype=torch.float64, device=engine.device)
            sums = torch.stack(list(tally.values()))
            parts = engine.sum_gradients(gradients, sums)
            torch._foreach_div_(parts, sums[1].where(sums[1] != 0, 1.0).to(parts[0].dtype))
            norm = trained.clip()
        *values, grad_norm = torch.cat([sums, norm.double()[None]]).tolist()
        totals = dict(zip(tally, values, strict=True))
        weight, metrics = totals["weight"], _means(totals)
        loss, lr = totals["loss"] / (weight or 1), trained.settings.learning_rate(turns[turn])
        if guard.accept(step, turn, weight, {"loss": loss, "grad_norm": grad_norm}, metrics):
            trained.advance(lr)
        state.step += 1
        turns[turn] += 1
        seconds = time.perf_counter() - started
        yield Update(state.step, loss, grad_norm, lr, metrics, int(totals["tokens"]), seconds, turn)
        if totals["stop"]:
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
    """Add the gradient of sum(per_token), and return float64 sums over micro-batches.

    A metric is a mean over its micro-batch. If the weight of the micro-batch is 0, the metric may
    be 0 / 0, and its weighted sum omits it.
    """
    want = f"1 to {len(batch)}, the rows of the batch of this rank"
    check_range("accumulation", accumulation, 1 <= accumulation <= len(batch), want)
    tally: dict[str, Tensor] = {}
    for number, x0 in enumerate(batch.tensor_split(accumulation), start=engine.rank * accumulation):
        # Dropout reads the global generators, which are restored after the block.
        with global_generators(seed, step, number, _DROPOUT, device=engine.device):
            noise = generator(seed, step, number, _CORRUPTION, device=engine.device)
            loss = objective(state.student, x0, step=step, generator=noise)
            if not isinstance(loss, Loss):
                raise TypeError(
                    f"objective returned a value of type {type(loss).__name__}, want a "
                    "Loss(per_token [B, L], weight [B, L])"
                )
            total = loss.per_token.sum()
            if total.requires_grad:  # False if no token has a loss; `guard` refuses other causes
                total.backward()
        weight = loss.weight.expand_as(loss.per_token).sum(dtype=torch.float64)
        terms = {
            "loss": loss.per_token.detach().sum(dtype=torch.float64),
            "weight": weight,
            "tokens": torch.full_like(weight, x0.numel()),
            "micro-batches": torch.ones_like(weight),
        }
        for name, value in loss.metrics.items():
            mean = torch.as_tensor(value, dtype=torch.float64, device=weight.device).detach()
            terms[_WEIGHTED + name] = (weight * mean).where(weight != 0, 0.0)
            terms[_PLAIN + name] = mean.where(mean.isfinite(), 0.0)
        if tally and tally.keys() != terms.keys():
            raise ValueError(
                f"metrics of an objective changed between micro-batches: got {[*terms]} after "
                f"{[*tally]}"
            )
        tally = {name: tally[name] + value for name, value in terms.items()} if tally else terms
    return tally


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step: means weighted as the loss, or plain means if all weights are 0."""
    kind, count = (_WEIGHTED, sums["weight"]) if sums["weight"] else (_PLAIN, sums["micro-batches"])
    return {
        name.removeprefix(kind): value / count
        for name, value in sums.items()
        if name.startswith(kind)
    }


def with_checkpoints(
    updates: Iterator[Update], run: RunDir, state: State, *, every: int
) -> Iterator[Update]:
    """Log each update, and save the state every `every` steps and at the end.

    A TrainingError also names the last good state in the run directory.

    Args:
        updates: the updates of `fit`.
        run: the run directory.
        state: the state that `fit` changes.
        every: steps between two saves.

    Yields:
        The same updates.
    """
    check_range("every", every, every >= 1, "every >= 1 step between saves")
    try:
        for update in updates:
            run.log(update.record())
            try:
                yield update
            finally:  # If the caller's code is killed before, a resume repeats the update.
                if update.step % every == 0:
                    run.save(state)
    except TrainingError as error:
        raise TrainingError(f"{error} {run.kept()}") from error
    run.save(state)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM, SIGINT and SIGHUP; yield a function for `fit(stop=...)`.

    After a signal the function returns True, so `fit` ends after its step and the state is saved.
    A second signal interrupts at once (KeyboardInterrupt). An ignored signal, such as SIGHUP under
    `nohup`, stays ignored. The old handlers return at the end. Outside the main thread, which alone
    can set handlers, the function always returns False.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return

    def handle(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    caught = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
