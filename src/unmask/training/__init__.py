"""The training loop, its optimizer settings, the run directory, devices and processes."""

from unmask.objectives.base import STUDENT
from unmask.training.distributed import Engine, launch
from unmask.training.loop import Update, fit, stop_signals, with_checkpoints
from unmask.training.loss_guard import LossGuard, TrainingError
from unmask.training.optim import AdamW
from unmask.training.run_directory import RunDir
from unmask.training.run_files import RunError
from unmask.training.state import State, TrainedNetwork

__all__ = [
    "STUDENT",
    "AdamW",
    "Engine",
    "LossGuard",
    "RunDir",
    "RunError",
    "State",
    "TrainedNetwork",
    "TrainingError",
    "Update",
    "fit",
    "launch",
    "stop_signals",
    "with_checkpoints",
]
