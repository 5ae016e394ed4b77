"""Few-step discrete-diffusion language models: train, distil, sample and evaluate.

    model = unmask.load("runs/demo/student")
    samples = unmask.sample(model, n=4, length=128, steps=16)

A public name is imported from its module on first use (PEP 562), so `import unmask` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.diffusion import duality as duality
    from unmask.diffusion.processes import MaskedProcess as MaskedProcess
    from unmask.diffusion.processes import UniformProcess as UniformProcess
    from unmask.diffusion.schedules import LogLinear as LogLinear
    from unmask.diffusion.trajectory import Trajectory as Trajectory
    from unmask.diffusion.trajectory import trajectory as trajectory
    from unmask.evaluation.judge_by_name import judge as judge
    from unmask.evaluation.judges import generative_perplexity as generative_perplexity
    from unmask.evaluation.metrics import entropy as entropy
    from unmask.evaluation.step_bound import few_step_bound as few_step_bound
    from unmask.models.denoiser import DenoiserModule as DenoiserModule
    from unmask.models.foreign import load_into as load_into
    from unmask.models.model import Model as Model
    from unmask.models.model import load as load
    from unmask.objectives.base import Loss as Loss
    from unmask.objectives.consistency import distillation_loss as distillation_loss
    from unmask.prediction import Prediction as Prediction
    from unmask.recipes.catalog import recipe as recipe
    from unmask.recipes.run import distill as distill
    from unmask.recipes.run import train as train
    from unmask.samplers.options import SampleOptions as SampleOptions
    from unmask.samplers.sample import sample as sample
else:
    # Hidden from type checkers, so that they report a name that is not imported above.
    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(
                f"module 'unmask' has no attribute {name!r}; it has {', '.join(_HOMES)}"
            )
        if name == "duality":  # the one name that is a module
            return import_module("unmask.diffusion.duality")
        value: object = vars(import_module(_HOMES[name]))[name]
        globals()[name] = value
        return value


__version__ = "0.1.0"

_HOMES = {
    "DenoiserModule": "unmask.models.denoiser",
    "LogLinear": "unmask.diffusion.schedules",
    "Loss": "unmask.objectives.base",
    "MaskedProcess": "unmask.diffusion.processes",
    "Model": "unmask.models.model",
    "Prediction": "unmask.prediction",
    "SampleOptions": "unmask.samplers.options",
    "Trajectory": "unmask.diffusion.trajectory",
    "UniformProcess": "unmask.diffusion.processes",
    "distill": "unmask.recipes.run",
    "distillation_loss": "unmask.objectives.consistency",
    "duality": "unmask.diffusion",
    "entropy": "unmask.evaluation.metrics",
    "few_step_bound": "unmask.evaluation.step_bound",
    "generative_perplexity": "unmask.evaluation.judges",
    "judge": "unmask.evaluation.judge_by_name",
    "load": "unmask.models.model",
    "load_into": "unmask.models.foreign",
    "recipe": "unmask.recipes.catalog",
    "sample": "unmask.samplers.sample",
    "train": "unmask.recipes.run",
    "trajectory": "unmask.diffusion.trajectory",
}


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]
