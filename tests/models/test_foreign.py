"""Foreign networks as models: transformers' BERT (with distillation) and GPT-2, by two adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, DynamicCache, GPT2Config, GPT2LMHeadModel

import unmask
from unmask.evaluation.likelihood import nelbo_batches, summed
from unmask.evaluation.scoring_rules import bound_rule, exact_rule
from unmask.models.checkpoints import CheckpointError
from unmask.models.denoiser import DenoiserModule, PredictorModule
from unmask.models.foreign import load_into
from unmask.models.kv_cache import Cache
from unmask.models.model import CausalModel, Model
from unmask.prediction import Prediction
from unmask.recipes.schema import Recipe
from unmask.rng import generator
from unmask.types import PerSequence, Tokens

V, MASK, LENGTH = 40, 3, 24


class BertDenoiser(DenoiserModule):
    """BERT as a time-agnostic denoiser; its head is not applied before rows are requested."""

    network: BertForMaskedLM

    def __init__(self, network: BertForMaskedLM, mask_id: int) -> None:
        super().__init__()
        self.network = network
        self.vocab_size = network.config.vocab_size
        self.length = network.config.max_position_embeddings
        self.mask_id = mask_id
        self.sees_alpha = False

    def forward(self, z: Tokens, alpha: PerSequence) -> Prediction:
        hidden = self.network.bert(input_ids=z).last_hidden_state
        return Prediction(hidden, self.network.cls, self.vocab_size, self.mask_id, z)


def bert(seed: int = 0) -> BertDenoiser:
    """A small BERT with random weights."""
    torch.manual_seed(seed)
    network = BertForMaskedLM(
        BertConfig(
            vocab_size=V,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
            initializer_range=0.3,
        )
    )
    return BertDenoiser(network, MASK)


def foreign(seed: int = 0) -> Model:
    """A model with BERT in evaluation mode."""
    process = unmask.MaskedProcess(vocab_size=V, mask_id=MASK)
    return Model(bert(seed).eval(), process, unmask.LogLinear(), None, card={"source": "random"})


def rows(n: int = 8) -> Tensor:
    """Rows of tokens [n, LENGTH] without MASK."""
    ids = torch.randint(V - 1, (n, LENGTH), generator=torch.Generator().manual_seed(5))
    return ids + (ids >= MASK)


def recipe(name: str = "demo-mcd", **settings: object) -> Recipe:
    """Two steps of a distillation, each a round."""
    plan = unmask.recipe(name)
    objective = replace(plan.objective, round_steps=1)  # type: ignore[call-arg]
    optim = replace(plan.optim, warmup_steps=1)
    small: dict[str, object] = {"steps": 2, "batch_size": 4, "accumulation": 1}
    changes: Any = small | settings
    return replace(plan, objective=objective, optim=optim, **changes)


def test_the_face_of_a_foreign_model() -> None:
    model = foreign()
    assert (model.kind, model.length, model.vocab_size, model.mask_id) == ("masked", 24, V, MASK)
    assert model.parameters == sum(weight.numel() for weight in model.network.parameters())
    assert (model.precision, model.device) == ("float32", torch.device("cpu"))
    assert foreign().digest == model.digest != foreign(seed=1).digest
    lines = repr(model).splitlines()
    assert len(lines) == 3 and f"{model.parameters:,}" in lines[0] and "random" in lines[2]


def test_texts_of_a_foreign_model() -> None:
    """Samples do not depend on batch or mode, MASK is never drawn, and given tokens stay."""
    model = foreign()
    samples = unmask.sample(model, n=3, length=LENGTH, steps=4, seed=2)
    alone = unmask.sample(model, n=3, length=LENGTH, steps=4, seed=2, batch_size=1)
    assert samples.tokens.shape == (3, LENGTH) and samples.calls <= 4
    assert torch.equal(samples.tokens, alone.tokens) and not (samples.tokens == MASK).any()
    model.denoiser.train()
    drawn = unmask.sample(model, n=3, length=LENGTH, steps=4, seed=2)
    assert torch.equal(samples.tokens, drawn.tokens) and model.denoiser.training, "no dropout"
    pinned = torch.full((3, LENGTH), -1)
    pinned[:, ::3] = rows(3)[:, ::3]
    filled = unmask.sample(model, n=3, length=LENGTH, steps=4, pinned=pinned).tokens
    assert torch.equal(filled[:, ::3], pinned[:, ::3])


def test_likelihood_of_a_foreign_model() -> None:
    """The scoring rule's bound is that of the full table of log-probabilities."""
    model = foreign()

    class Table:
        """A `Denoiser` without a lazy head."""

        vocab_size, sees_alpha = V, False

        def __call__(self, z: Tokens, alpha: PerSequence) -> Prediction:
            return Prediction.from_log_p(model.denoiser(z, alpha).log_p())

    scores = bound_rule(model, passes=2, seed=1).scores(rows())
    want = nelbo_batches(Table(), model.process, rows(), passes=2, generator=generator(1))
    torch.testing.assert_close(scores.nats, summed(want, LENGTH).nats)


@pytest.mark.parametrize("name", ["demo-mcd", "demo-sdtt"])
def test_distillation_of_a_foreign_model(name: str) -> None:
    """Two steps change the student only, and give a model for every use."""
    teacher = foreign()
    before = teacher.digest
    updates = list(unmask.distill(teacher, rows(), recipe(name)))
    student = updates[-1].student
    assert isinstance(student, Model) and isinstance(student.denoiser, BertDenoiser)
    assert len(updates) == 2 and all(update.loss > 0 for update in updates)
    assert teacher.digest == before != student.digest
    assert student.schedule == teacher.schedule and student.process == teacher.process
    network = student.network
    assert isinstance(network, BertForMaskedLM) and not network.training
    tied = network.cls.predictions.decoder.weight
    assert tied is network.bert.embeddings.word_embeddings.weight
    assert unmask.sample(student, n=2, length=LENGTH, steps=4).tokens.shape == (2, LENGTH)
    assert bound_rule(student).scores(rows(2)).nats.isfinite().all()


def test_the_student_holds_the_average_of_tied_weights() -> None:
    """With a decay near 1 the EMA stays close to the first weights, the tied ones too."""
    teacher = foreign()
    plan = recipe()
    optim = replace(plan.optim, lr=0.1, ema_decay=0.0)
    raw = list(unmask.distill(teacher, rows(), replace(plan, optim=optim)))[-1].student
    optim = replace(optim, ema_decay=0.999)
    mean = list(unmask.distill(teacher, rows(), replace(plan, optim=optim)))[-1].student
    name = "bert.embeddings.word_embeddings.weight"
    first = teacher.network.state_dict()[name]
    far, near = (m.network.state_dict()[name] - first for m in (raw, mean))
    assert 0 < near.abs().max() < 0.9 * far.abs().max()


def test_what_a_foreign_network_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision .* BertDenoiser: got torch.bfloat16"):
        next(iter(unmask.distill(foreign(), rows(), recipe(precision="bfloat16"))))
    with pytest.raises(ValueError, match=r"checkpointing=True"):
        next(iter(unmask.distill(foreign(), rows(), recipe(checkpointing=True))))


def test_a_foreign_model_is_saved_and_loaded(tmp_path: Path) -> None:
    """`load_into` fills another BERT with weights, schedule, process and card; `load` names it."""
    model, raw = foreign(), foreign(seed=1).network
    model.save(tmp_path / "model", raw=raw, steps=2)
    back = load_into(bert(seed=7), tmp_path / "model")
    assert back.digest == model.digest and back.card == {"source": "random", "steps": 2}
    assert (back.process, back.schedule) == (model.process, model.schedule)
    assert not back.denoiser.training
    assert load_into(bert(), tmp_path / "model", weights="raw").digest == foreign(seed=1).digest
    left, right = (unmask.sample(m, n=2, length=LENGTH, steps=4) for m in (model, back))
    assert torch.equal(left.tokens, right.tokens)
    with pytest.raises(CheckpointError, match=r"BertForMaskedLM.*load_into"):
        unmask.load(tmp_path / "model")


def test_a_denoiser_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    foreign().save(tmp_path)
    other = bert()
    other.mask_id = 4
    with pytest.raises(CheckpointError, match=r"3, False\), want \('masked', 4, False\)"):
        load_into(other, tmp_path)
    small = BertForMaskedLM(BertConfig(vocab_size=V, hidden_size=8, num_attention_heads=2))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_into(BertDenoiser(small, MASK), tmp_path)


def test_weights_outside_of_the_network_are_not_lost(tmp_path: Path) -> None:
    model = foreign()
    model.denoiser.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match=r"network .* scale"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class GPT2Predictor(PredictorModule):
    """GPT-2 as a next-token predictor; keys and values stay in the cache between calls."""

    network: GPT2LMHeadModel

    def __init__(self, network: GPT2LMHeadModel) -> None:
        super().__init__()
        self.network = network
        self.vocab_size = network.config.vocab_size
        self.length = network.config.n_positions
        self.mask_id = None

    def forward(self, ids: Tokens, cache: Cache | None = None) -> Prediction:
        past = DynamicCache()
        for layer, (keys, values) in enumerate([] if cache is None else cache.pairs):
            past.update(keys, values, layer)
        hidden = self.network.transformer(ids, past_key_values=past).last_hidden_state
        if cache is not None:
            cache.pairs = [(layer.keys, layer.values) for layer in past.layers]
            cache.length += ids.shape[1]
        return Prediction(hidden, self.network.lm_head, self.vocab_size, self.mask_id)


def gpt2(seed: int = 0) -> GPT2Predictor:
    """A small GPT-2 with random weights."""
    torch.manual_seed(seed)
    sizes = GPT2Config(vocab_size=V, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2)
    return GPT2Predictor(GPT2LMHeadModel(sizes))


def test_a_foreign_autoregressive_model(tmp_path: Path) -> None:
    """It is drawn from with its cache, scored exactly, and saved."""
    model = CausalModel(gpt2().eval(), None)
    assert (model.kind, model.length, model.vocab_size) == ("autoregressive", LENGTH, V)
    drawn = unmask.sample(model, n=2, length=8, seed=3)
    assert drawn.tokens.shape == (2, 8) and drawn.calls == 8
    ids = rows(2)
    law = model.predictor(ids).log_p()
    cache, parts = Cache(), ids.split([5, 1, 18], dim=1)
    in_parts = torch.cat([model.predictor(part, cache).log_p() for part in parts], dim=1)
    torch.testing.assert_close(in_parts, law)
    nats = -law[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1).sum(1)
    torch.testing.assert_close(exact_rule(model).scores(ids).nats.float(), nats)
    model.save(tmp_path / "model")
    assert load_into(gpt2(seed=4), tmp_path / "model").digest == model.digest
    with pytest.raises(
        CheckpointError, match=r"\('autoregressive', None, False\), want \('masked'"
    ):
        load_into(bert(), tmp_path / "model")
