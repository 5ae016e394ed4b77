"""Foreign networks as models.

A network is wrapped as a `DenoiserModule` or `PredictorModule`, and the wrapper makes a model:

    denoiser = BertDenoiser(network, mask_id).eval()
    model = Model(denoiser, MaskedProcess(V, mask_id), LogLinear(), None)

Such a model is sampled, distilled, evaluated and saved like any other. `load` cannot build a
foreign network, because no file may name code to run. So `load_into` takes the network as an
argument.
"""

from __future__ import annotations

from pathlib import Path
from typing import overload

from unmask.data.tokenizers import find_tokenizer
from unmask.diffusion.processes import noise_process
from unmask.diffusion.schedules import LogLinear
from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.config import card_of, own_config
from unmask.models.checkpoints.model_files import check_weights_set, locate, open_files
from unmask.models.checkpoints.weights import fill_network
from unmask.models.denoiser import DenoiserModule, PredictorModule
from unmask.models.model import CausalModel, Model


@overload
def load_into(module: DenoiserModule, directory: str | Path, weights: str = "ema") -> Model: ...


@overload
def load_into(
    module: PredictorModule, directory: str | Path, weights: str = "ema"
) -> CausalModel: ...


def load_into(
    module: DenoiserModule | PredictorModule, directory: str | Path, weights: str = "ema"
) -> Model | CausalModel:
    """Read a saved model with a foreign network into a module of the same kind.

    Args:
        module: Its network gets the weights, in place and in its own precision. The module is put
            into evaluation mode.
        directory: The model, as `save` wrote it.
        weights: "ema" or "raw".

    Raises:
        CheckpointError: A ValueError. The saved model is of another kind, has another MASK or use
            of the noise level, or its weights do not fit name by name.
    """
    check_weights_set(weights)
    path = locate(directory, None)
    with open_files(path, weights) as source:
        use = own_config(source.config_json, source.where)
        want = module.kind, module.mask_id, module.sees_alpha
        got = use.kind, use.mask_id, use.sees_alpha
        if got != want:
            raise CheckpointError(
                f"{source.where} does not fit the module: got (kind, mask_id, sees_alpha) = {got}, "
                f"want {want}"
            )
        fill_network(module.network, source.weights, source.where)
        card = card_of(source.config_json)
    module.eval()
    tokenizer = find_tokenizer(path)
    if isinstance(module, PredictorModule):
        return CausalModel(module, tokenizer, card=card)
    process = noise_process(module.vocab_size, module.mask_id)
    return Model(module, process, use.schedule or LogLinear(), tokenizer, card=card)
