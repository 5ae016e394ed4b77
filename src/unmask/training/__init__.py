"""Floor 4: a generator loop, the run directory, and the engine that knows devices and processes."""

from unmask.training.engine import Engine, launch
from unmask.training.guard import Guard, TrainingError
from unmask.training.loop import Update, fit, recorded, stop_signals
from unmask.training.rundir import Restored, RunDir, RunError
from unmask.training.schedule import AdamW
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
