"""The baselines of `benchmarks/` compute the same values or distributions as the library."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import unmask
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import GaussianArgmax, LogLinear
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import DiT, Shape
from unmask.models.model import Model
from unmask.objectives.base import Loss, Objective
from unmask.objectives.consistency import Consistency
from unmask.objectives.nelbo import Nelbo
from unmask.objectives.rounds import Rounds
from unmask.objectives.sdtt import Sdtt

V, L, MASK = 7, 5, 6
ROUNDS = Rounds(round_steps=10, delta0=1 / 4, temperatures=(0.8,))
PLAIN = Rounds(round_steps=10, delta0=1 / 4, temperatures=(1.0,))
X0 = torch.randint(MASK, (64, L), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield
    for name in ("baseline_masked", "baseline_uniform", "speed"):
        sys.modules.pop(name, None)


def denoiser(seed: int, uniform: bool = False) -> NetworkDenoiser:
    network = DiT(Shape(V, L, width=8, blocks=1, heads=2, cond_dim=4, dropout=0.0))
    dice = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.3, generator=dice)
    for name, bias in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(bias)
    return NetworkDenoiser(network, None if uniform else MASK, sees_alpha=uniform).eval()


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mcd_is_the_same_loss_and_gradient_term_by_term() -> None:
    from baseline_masked import FullMcd

    student, teacher = denoiser(0), denoiser(1)
    ours = Consistency(MaskedProcess(V, MASK), LogLinear(), teacher, ROUNDS)
    equal(ours, FullMcd(teacher, ROUNDS), student)


def test_the_bound_is_the_same_loss_and_gradient_term_by_term() -> None:
    from baseline_masked import FullBound

    equal(Nelbo(MaskedProcess(V, MASK), LogLinear()), FullBound(), denoiser(0))


def equal(ours: Objective, baseline: Objective, student: NetworkDenoiser) -> None:
    found: list[tuple[Tensor, list[Tensor]]] = []
    for objective in (ours, baseline):
        loss: Loss = objective(student, X0, step=0, generator=dice(2))
        found.append(
            (
                loss.per_token,
                list(torch.autograd.grad(loss.per_token.sum(), list(student.parameters()))),
            )
        )
    (mine, my_slopes), (theirs, their_slopes) = found
    assert bool((mine > 0).any()) and bool((mine == 0).any())
    assert_close(mine, theirs, atol=2e-6, rtol=1e-5)
    for a, b in zip(my_slopes, their_slopes, strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-4)


def agree(ours: list[float], theirs: list[float]) -> None:
    a, b = torch.tensor(ours), torch.tensor(theirs)
    error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
    assert abs(float(a.mean() - b.mean())) < 4 * error, (float(a.mean()), float(b.mean()), error)
    assert error < 0.05 * float(a.mean())


def test_sdtt_and_dcd_have_the_same_mean() -> None:
    """Their randomness is another one, so the means over 150 batches of 64 rows are compared."""
    from baseline_masked import FullSdtt
    from baseline_uniform import FullDcd

    def means(objective: object, student: NetworkDenoiser) -> list[float]:
        losses = (objective(student, X0, step=0, generator=dice(seed)) for seed in range(150))  # type: ignore[operator]
        return [float(loss.per_token.sum() / loss.weight.sum()) for loss in losses]

    student, teacher = denoiser(0), denoiser(1)
    with torch.no_grad():
        process = MaskedProcess(V, MASK)
        agree(
            means(Sdtt(process, LogLinear(), teacher, PLAIN), student),
            means(FullSdtt(teacher, PLAIN), student),
        )
        student, teacher, path = (
            denoiser(0, uniform=True),
            denoiser(1, uniform=True),
            GaussianArgmax(V, -3.0, 1.0),
        )
        ours = Consistency(UniformProcess(V), path, teacher, PLAIN)
        agree(means(ours, student), means(FullDcd(path, teacher, PLAIN), student))


def test_the_sampler_has_the_same_law() -> None:
    """Pairs of neighbouring tokens after 3 steps, 4000 texts each way."""
    from baseline_masked import sample

    role = denoiser(3)
    model = Model(role, MaskedProcess(V, MASK), LogLinear(), None)
    mine, theirs = (
        unmask.sample(model, 4000, L, 3).tokens,
        sample(role.network, MASK, 4000, L, 3, dice(0)),
    )
    assert (
        not (theirs == MASK).any() and int(mine.flatten().bincount(minlength=V)[:MASK].min()) > 100
    )
    same_pairs(mine, theirs)


def test_the_sampler_of_uniform_noise_has_the_same_law() -> None:
    from baseline_uniform import sample

    role = denoiser(3, uniform=True)
    model = Model(role, UniformProcess(V), LogLinear(), None)
    same_pairs(unmask.sample(model, 4000, L, 3).tokens, sample(role.network, 4000, L, 3, dice(0)))
    with pytest.raises(AssertionError):
        same_pairs(
            unmask.sample(model, 4000, L, 1).tokens, sample(role.network, 4000, L, 3, dice(0))
        )


def same_pairs(mine: Tensor, theirs: Tensor) -> None:
    for i in range(L - 1):
        a, b = (
            (tokens[:, i] * V + tokens[:, i + 1]).bincount(minlength=V * V).double()
            for tokens in (mine, theirs)
        )
        seen = a + b > 0
        chi2 = ((a - b) ** 2 / (a + b).clamp(min=1))[seen].sum()
        freedom = float(seen.sum() - 1)
        assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_the_driver_times_and_weighs_every_case() -> None:
    import speed

    tiny = speed.Size(
        Shape(speed.V, 8, width=8, blocks=1, heads=2, cond_dim=4, dropout=0.0),
        2,
        2,
        checkpointing=True,
    )
    for case in speed.CASES:
        ((ours, baseline),) = speed.pairs(case, tiny, "cpu", repeats=1, warmup=0)
        assert ours > 0 and baseline > 0 and speed.floor_flops(case, tiny) > 0
    with pytest.raises(ValueError, match=r"case.*'ctc'"):
        speed.ways("ctc", tiny, "cpu")
