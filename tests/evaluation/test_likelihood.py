import itertools
import math

import numpy as np
import pytest
import torch

from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.evaluation.judges import perplexity
from unmask.evaluation.likelihood import levels, nelbo_batches, next_token_batches, summed
from unmask.prediction import LOG_ZERO, Prediction

V, L, MASK = 3, 2, 3
SOURCE = torch.tensor(
    [[0.30, 0.05, 0.02], [0.01, 0.22, 0.10], [0.15, 0.05, 0.10]], dtype=torch.float64
)  # p(x_0, x_1)
ENTROPY = float(-(SOURCE * SOURCE.log()).sum())
PROCESS = MaskedProcess(V + 1, MASK)


def nelbo(denoiser, process, x0, **how):
    return summed(nelbo_batches(denoiser, process, x0, **how), x0.shape[-1])


def next_token(predictor, x0, start=None, **how):
    return summed(
        next_token_batches(predictor, x0, start=start, **how), x0.shape[-1] - (start is None)
    )


class Exact:
    """The exact conditionals of SOURCE."""

    vocab_size, sees_alpha = V + 1, False

    def __call__(self, z, alpha):
        log_p = torch.full((*z.shape, V + 1), LOG_ZERO, dtype=torch.float64)
        for b, row in enumerate(z.tolist()):
            for i in range(L):
                other = row[1 - i]
                joint = SOURCE if i == 0 else SOURCE.T
                law = joint.sum(1) if other == MASK else joint[:, other] / joint[:, other].sum()
                log_p[b, i, :V] = law.log()
        return Prediction.from_log_p(log_p)


def integral(convention):
    """E of the integrand by quadrature over u and enumeration of x0 and z."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    u = torch.tensor((nodes + 1) / 2)
    alpha, slope = levels(u, convention)
    total = torch.zeros_like(u)
    for x in itertools.product(range(V), repeat=L):
        for hidden in itertools.product([False, True], repeat=L):
            x0 = torch.tensor([x]).expand(len(u), -1)
            z = torch.where(torch.tensor([hidden]), MASK, x0)
            p_z = torch.ones_like(u)
            for covered in hidden:
                p_z = p_z * (1 - alpha if covered else alpha)
            price = PROCESS.nelbo(Exact()(z, alpha), x0, z, alpha, slope).sum(1)
            total += SOURCE[x] * p_z * price
    return float((total * torch.tensor(weights) / 2).sum())


def test_the_bound_of_a_perfect_denoiser_is_the_entropy_and_the_convention_of_mdlm_is_below_it():
    assert integral("bound") == pytest.approx(ENTROPY, abs=1e-10)
    assert integral("mdlm") < ENTROPY - 1e-3  # what a true bound can never be


def test_the_estimate_is_the_integral_within_its_error():
    cells = torch.multinomial(
        SOURCE.flatten(), 4000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    x0 = torch.stack([cells // V, cells % V], dim=1)
    surprise = float(-SOURCE[x0[:, 0], x0[:, 1]].log().mean())  # the entropy of these very rows
    for convention in ("bound", "mdlm"):
        scores = nelbo(
            Exact(),
            PROCESS,
            x0,
            convention=convention,
            batch_size=512,
            generator=torch.Generator().manual_seed(1),
        )
        error = float(scores.nats.std() / math.sqrt(len(x0)))
        assert abs(float(scores.nats.mean()) - surprise) < 4 * error
        assert scores.tokens.tolist() == [L] * len(x0)


def test_passes_average_and_the_error_shrinks():
    x0 = torch.tensor([[0, 1]]).expand(200, -1)
    once, often = (
        perplexity(
            nelbo(Exact(), PROCESS, x0, passes=passes, generator=torch.Generator().manual_seed(2))
        )
        for passes in (1, 16)
    )
    assert often.sem < 0.4 * once.sem


@pytest.mark.parametrize("process", [PROCESS, UniformProcess(V + 1)])
def test_the_noise_of_a_row_does_not_depend_on_the_batch_size(process):
    class Even:
        vocab_size, sees_alpha = V + 1, True

        def __call__(self, z, alpha):
            return Prediction.from_log_p(
                torch.full((*z.shape, V + 1), -math.log(V + 1), dtype=torch.float64)
            )

    x0 = torch.arange(40).view(10, 4) % V
    scores = [
        nelbo(
            Even(),
            process,
            x0,
            passes=2,
            batch_size=size,
            generator=torch.Generator().manual_seed(3),
        ).nats
        for size in (1, 3, 10)
    ]
    torch.testing.assert_close(scores, [scores[0]] * 3)


def test_levels_are_levels():
    u = torch.tensor([0.0, 0.25, 1.0])
    alpha, slope = levels(u, "bound")
    assert alpha.tolist() == [0, 0.25, 1] and slope.tolist() == [-1] * 3
    alpha, slope = levels(u, "mdlm")
    assert (
        alpha.tolist() == pytest.approx([1 - 0.999 * t for t in (1e-3, 0.25075, 1)])
        and slope[0] == -0.999
    )
    with pytest.raises(ValueError, match="'bound' or 'mdlm'"):
        levels(u, "duo")


def test_wrong_rows_are_refused():
    for broken in (torch.zeros(0, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"\[n, L\]"):
            nelbo(Exact(), PROCESS, broken)
        with pytest.raises(ValueError, match=r"\[n, L\]"):
            next_token(lambda ids: Prediction.from_log_p(torch.zeros(1, 1, 3)), broken)


def test_the_autoregressive_likelihood_is_exact():
    law = (SOURCE / SOURCE.sum(1, keepdim=True)).log()
    predictor = lambda ids: Prediction.from_log_p(law[ids])  # noqa: E731
    x0 = torch.tensor(list(itertools.product(range(V), repeat=3)))
    scores = next_token(predictor, x0, batch_size=4)
    torch.testing.assert_close(scores.nats, -(law[x0[:, 0], x0[:, 1]] + law[x0[:, 1], x0[:, 2]]))
    assert scores.tokens.tolist() == [2] * len(x0)


def test_a_start_token_makes_the_first_token_count():
    """-log p(x_1 .. x_L | start), as in training: L tokens, one more than without it."""
    law = (SOURCE / SOURCE.sum(1, keepdim=True)).log()
    predictor = lambda ids: Prediction.from_log_p(law[ids])  # noqa: E731
    x0 = torch.tensor(list(itertools.product(range(V), repeat=3)))
    scores = next_token(predictor, x0, start=1, batch_size=4)
    torch.testing.assert_close(scores.nats, next_token(predictor, x0).nats - law[1, x0[:, 0]])
    assert scores.tokens.tolist() == [3] * len(x0)
    assert float((-scores.nats).exp().sum()) == pytest.approx(1), (
        "the law of all rows behind one start token"
    )
    assert next_token(predictor, x0[:, :1], start=1).tokens.tolist() == [1] * len(x0)


def test_a_mask_in_the_text_is_refused():
    with pytest.raises(ValueError, match=r"MASK \(id 3\) 1 times"):
        nelbo(Exact(), PROCESS, torch.tensor([[0, MASK], [1, 2]]))
    with pytest.raises(ValueError, match="got 0 to 4, want 0 <= id < vocab_size = 4"):
        nelbo(Exact(), PROCESS, torch.tensor([[0, 4]]))
