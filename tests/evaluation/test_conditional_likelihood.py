"""The likelihood of a continuation, against sources of known distribution and as laws."""

import math

import pytest
import torch
from torch import Tensor

import unmask
from unmask.diffusion.processes import MaskedProcess
from unmask.evaluation.conditional_likelihood import conditional_nats, conditional_nelbo
from unmask.experiments.exact.oracle import ExactModel, evidence, masked_model, uniform_model
from unmask.experiments.exact.synthetic_sources import markov_chain, random_chain
from unmask.models.denoiser import CausalPredictor
from unmask.models.dit import DiT, Shape

LENGTH = 7
TARGETS = [[6], [0], [4, 5, 6], [1, 3], list(range(LENGTH))]


def target_mask(places: list[int]) -> Tensor:
    target = torch.zeros(LENGTH, dtype=torch.bool)
    target[places] = True
    return target


def surprise(model: ExactModel, x0: Tensor, target: Tensor) -> float:
    """-log p(x0[target] | the rest), exactly."""
    process = MaskedProcess(model.source.vocab_size + 1, model.source.vocab_size)
    laws = [
        evidence(process, x[None], torch.ones(1))
        for x in (x0, x0.masked_fill(target, process.mask_id))
    ]
    whole, given = (float(model.source.log_likelihood(law)) for law in laws)
    return given - whole


@pytest.mark.parametrize("places", TARGETS)
def test_a_perfect_masked_denoiser_knows_the_law_of_a_continuation(places: list[int]) -> None:
    model = masked_model(random_chain(4, order=2, seed=3))
    x0 = model.source.sample(1, LENGTH, torch.Generator().manual_seed(0))[0]
    estimates = conditional_nelbo(
        model.denoiser, model.process, x0, target_mask(places), draws=4096, batch_size=512,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    want, error = surprise(model, x0, target_mask(places)), float(estimates.std()) / 64
    assert want > 0.05 and abs(float(estimates.mean()) - want) < 4 * error + 1e-9
    if len(places) == 1:
        assert float(estimates.std()) < 1e-9, "one token: every draw is the answer"


def test_counting_hides_less_noise_than_hiding_by_itself() -> None:
    """The spread against that of the integrand at alpha ~ U(0, 1), which has the same mean."""
    model = masked_model(random_chain(4, order=2, seed=3))
    x0 = model.source.sample(1, LENGTH, torch.Generator().manual_seed(0))[0]
    target = target_mask([3, 4, 5, 6])
    generator = torch.Generator().manual_seed(1)
    ours = conditional_nelbo(
        model.denoiser, model.process, x0, target, draws=4000, generator=generator
    )
    alpha = torch.rand(4000, dtype=torch.float64, generator=generator)
    rows = x0.expand(4000, -1)
    hide = (torch.rand(rows.shape, generator=generator) >= alpha[:, None]) & target
    z = rows.masked_fill(hide, 4)
    theirs = model.process.nelbo(
        model.denoiser(z, alpha), rows, z, alpha, -torch.ones_like(alpha)
    ).sum(1)
    assert (
        abs(float(theirs.mean() - ours.mean())) < 4 * float(theirs.std()) / math.sqrt(4000) + 0.02
    )
    assert ours.std() < 0.6 * theirs.std()


@pytest.mark.parametrize("places", TARGETS)
def test_uniform_noise_where_tokens_tell_nothing_of_each_other(places: list[int]) -> None:
    law = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    model = uniform_model(markov_chain(law.expand(4, -1), law))
    x0 = torch.tensor([0, 1, 2, 3, 1, 0, 2])
    estimates = conditional_nelbo(
        model.denoiser, model.process, x0, target_mask(places), draws=4096, batch_size=512,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    want, error = float(-law[x0[places]].log().sum()), float(estimates.std()) / 64
    assert abs(float(estimates.mean()) - want) < 4 * error


def test_uniform_noise_is_a_bound_where_they_do() -> None:
    """One alpha for context and noisy tokens makes the bound loose, never too small."""
    model = uniform_model(random_chain(4, order=1, concentration=0.2, seed=3))
    x0 = model.source.sample(1, LENGTH, torch.Generator().manual_seed(0))[0]
    target = target_mask([4, 5, 6])
    estimates = conditional_nelbo(
        model.denoiser, model.process, x0, target, draws=8192, batch_size=512,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert float(estimates.mean()) > surprise(model, x0, target) - 4 * float(estimates.std()) / 90


def test_given_tokens_are_never_noised_and_batches_do_not_matter() -> None:
    model = masked_model(random_chain(4, order=1, seed=3))
    x0, target = torch.tensor([0, 1, 2, 3, 1, 0, 2]), target_mask([2, 5])
    seen: list[Tensor] = []

    class Watching:
        vocab_size, sees_alpha = 5, True

        def __call__(self, z: Tensor, alpha: Tensor) -> object:
            assert bool(((alpha > 0) & (alpha < 1)).all())
            seen.append(z)
            return model.denoiser(z, alpha)

    conditional_nelbo(Watching(), model.process, x0, target, draws=40, batch_size=7)
    z = torch.cat(seen)
    assert z.shape == (40, LENGTH) and bool((z[:, ~target] == x0[~target]).all())
    assert sorted({int(n) for n in (z == 4).sum(1)}) == [1, 2]
    assert int((z == 4).sum()) == 60, "half of the stratified draws hide one, half two"


def test_an_autoregressive_model_is_exact() -> None:
    torch.manual_seed(0)
    network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, causal=True))
    torch.nn.init.normal_(network.head.weight)
    predictor = CausalPredictor(network).eval()
    x0 = torch.tensor([8, 1, 2, 3, 4])
    table = predictor(x0[None]).log_p()[0].detach()
    assert conditional_nats(predictor, x0, 2) == pytest.approx(
        -float(table[2, 3] + table[3, 4]), rel=1e-5
    )
    assert conditional_nats(predictor, x0, 4) == pytest.approx(
        -sum(float(table[i, x0[i + 1]]) for i in range(4)), rel=1e-5
    )


def test_wrong_targets_are_refused() -> None:
    model = unmask.load("unmask:teacher")
    x0 = torch.arange(5)
    for target in (
        torch.zeros(5, dtype=torch.bool),
        torch.ones(4, dtype=torch.bool),
        torch.ones(5),
    ):
        with pytest.raises(
            ValueError, match="want ids \\[L\\] and targets, bool \\[L\\], at least one"
        ):
            conditional_nelbo(model.denoiser, model.process, x0, target)
    with pytest.raises(ValueError, match=r"draws .*got 0"):
        conditional_nelbo(
            model.denoiser, model.process, x0, torch.ones(5, dtype=torch.bool), draws=0
        )
    with pytest.raises(ValueError, match=r"count .*got 5"):
        conditional_nats(None, x0, 5)  # type: ignore[arg-type]
