"""Floor 4: a generator loop, the run directory, and the engine that knows devices and processes."""

from unmask.training.distributed import Engine, launch
from unmask.training.loop import Update, fit, recorded, stop_signals
from unmask.training.loss_guard import Guard, TrainingError
from unmask.training.optim import AdamW
from unmask.training.run_directory import Restored, RunDir, RunError
from unmask.training.state import STUDENT, Learner, State

__all__ = [
    "STUDENT",
    "AdamW",
    "Engine",
    "Guard",
    "Learner",
    "Restored",
    "RunDir",
    "RunError",
    "State",
    "TrainingError",
    "Update",
    "fit",
    "launch",
    "recorded",
    "stop_signals",
]
