"""Slow, obvious oracles: each says what a fast function of the library must equal, by another road."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import chi2
from torch import Tensor, nn

from unmask.models.dit import DiT, Shape


def duality_keep(root: float, size: int) -> float:
    """P(eps_j < root + eps_k for all j != k) of `size` Gaussians: a plain sum over eps_k on one fixed fine grid."""
    return _duality_sum(root, 0.0, size - 1)


def duality_density(root: float, size: int) -> float:
    """The density at `root` of max_{j != k} eps_j - eps_k: one rival ties with x0, the others lie below."""
    return _duality_sum(root, math.log(size - 1) - 0.5 * math.log(2 * math.pi), size - 2, rival=1)


def _duality_sum(root: float, log_factor: float, below: int, rival: int = 0) -> float:
    step = 0.01
    terms = []
    for i in range(-3900, 3901):
        eps = i * step
        level = root + eps
        tail = 0.5 * math.erfc(abs(level) / math.sqrt(2))
        if level < 0 and tail == 0:
            continue
        log_cdf = math.log(tail) if level < 0 else math.log1p(-tail)
        terms.append(math.exp(log_factor - eps**2 / 2 - rival * level**2 / 2 + below * log_cdf))
    return step * math.fsum(terms) / math.sqrt(2 * math.pi)


def network_golden(folder: str) -> tuple[DiT, dict[str, Tensor]]:
    """(network, expected tensors) of a Hugging Face directory of the golden data."""
    directory = Path(__file__).parent / "golden" / folder
    weights = {name.removeprefix("backbone."): w for name, w in load_file(directory / "model.safetensors").items()}
    vocab_size, width = weights["vocab_embed.embedding"].shape
    heads = width // (2 * len(weights["rotary_emb.inv_freq"]))
    causal = "sigma_map.mlp.0.weight" not in weights
    cond_dim = 1 if causal else len(weights["sigma_map.mlp.0.weight"])
    network = DiT(Shape(vocab_size, 24, width, blocks=2, heads=heads, cond_dim=cond_dim, causal=causal))
    network.load_state_dict(weights)
    return network.eval(), load_file(directory / "expected.safetensors")


def network_random(shape: Shape, seed: int = 0) -> DiT:
    """A network as after training: nothing that starts as zero is zero."""
    network = DiT(shape)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        nn.init.normal_(weight, mean=float("norm" in name), std=0.2, generator=generator)
    return network.eval()


# Samplers: the exact law of a sampler by walking through everything that can happen. A law of texts is a dict.
# `law(z, alpha)` is the model's p(x0_i | z), an array [L, V]; for `sampler_autoregressive` `law(prefix)` is [V].

Text = tuple[int, ...]
Law = Callable[[Text, float], np.ndarray]
Way = list[tuple[int, float]]  # (token, probability) of one position


def sampler_reveal(start: Text, alphas: list[float], law: Law, mask_id: int) -> dict[Text, float]:
    """Masked diffusion from `start`: in each step every MASK stays or becomes a token, independently."""
    texts = {start: 1.0}
    for a, b in pairwise(alphas):
        rate = (b - a) / (1 - a)

        def ways(z: Text, a: float = a, rate: float = rate) -> list[Way]:
            p = law(z, a)
            shown = [[(token, 1.0)] for token in z]
            moves = [[(mask_id, 1 - rate), *((v, rate * q) for v, q in enumerate(row))] for row in p]
            return [move if token == mask_id else stay for token, stay, move in zip(z, shown, moves, strict=True)]

        texts = _sampler_step(texts, ways)
    return texts


def sampler_uniform(pins: Text, alphas: list[float], law: Law, size: int) -> dict[Text, float]:
    """Uniform diffusion by Bayes' rule with matrices, q(b | a) = alpha [a = b] + (1 - alpha) / size; -1 is free."""

    def forward(keep: float) -> np.ndarray:
        return keep * np.eye(size) + (1 - keep) / size

    starts = list(product(*(range(size) if token < 0 else [token] for token in pins)))
    texts = {z: 1 / len(starts) for z in starts}
    for a, b in pairwise(alphas):

        def ways(z: Text, a: float = a, b: float = b) -> list[Way]:
            moves = []
            for token, pinned, p in zip(z, pins, law(z, a), strict=True):
                joint = (p @ forward(b)) * forward(a / b)[:, token]  # P(z_s) P(z_t | z_s)
                moves.append(list(enumerate(joint / joint.sum())) if pinned < 0 else [(token, 1.0)])
            return moves

        texts = _sampler_step(texts, ways)
    return texts


def sampler_confidence(start: Text, alphas: list[float], law: Law, score: Law, mask_id: int) -> dict[Text, float]:
    """Masked diffusion in the model's order: draw from `law` at each MASK, keep those with the greatest `score`."""
    free = sum(token == mask_id for token in start)
    shown = [int(free * (a - alphas[0]) / (1 - alphas[0]) + 0.5 + 1e-9) for a in alphas]
    texts = {start: 1.0}
    for a, before, after in zip(alphas, shown, shown[1:], strict=False):
        moved = defaultdict(float)
        for z, mass in texts.items():
            p, s = law(z, a), score(z, a)
            masks = [i for i, token in enumerate(z) if token == mask_id]
            for guess in product(*(range(p.shape[1]) for _ in masks)):
                weight = math.prod(p[i, v] for i, v in zip(masks, guess, strict=True))
                ranked = sorted(zip(masks, guess, strict=True), key=lambda iv: (-s[iv], iv[0]))
                text = list(z)
                for i, v in ranked[: after - before]:
                    text[i] = v
                moved[tuple(text)] += mass * weight
        texts = dict(moved)
    return texts


def sampler_autoregressive(pins: Text, law: Callable[[Text], np.ndarray]) -> dict[Text, float]:
    """One token after another; a pin (not -1) is taken as it is."""
    texts: dict[Text, float] = {(): 1.0}
    for pin in pins:
        texts = {
            (*prefix, v): mass * (q if pin < 0 else 1.0)
            for prefix, mass in texts.items()
            for v, q in enumerate(law(prefix))
            if pin in (-1, v)
        }
    return texts


def sampler_filtered(
    p: np.ndarray, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> np.ndarray:
    """Rows of probabilities [L, V] after temperature, top-k and top-p: token by token, ties to the smaller id."""
    out = np.zeros_like(p)
    for row, kept in zip(p ** (1 / temperature), out, strict=True):
        order = sorted(range(len(row)), key=lambda v: (-row[v], v))[:top_k]
        total = sum(row[v] for v in order)
        for v in order:
            if kept.sum() < (top_p - 1e-6) * total:
                kept[v] = row[v]
    return out / out.sum(-1, keepdims=True)


def sampler_p_value(tokens: Tensor, texts: dict[Text, float]) -> float:
    """Chi-square p-value of drawn texts [n, L] under an exact law; 0 where a text was drawn that cannot be."""
    drawn = Counter(map(tuple, tokens.tolist()))
    possible = {text: mass for text, mass in texts.items() if mass > 1e-14}
    if drawn.keys() - possible.keys():
        return 0.0
    expected = {text: mass * len(tokens) for text, mass in possible.items()}
    rare = [text for text in expected if expected[text] < 5]
    common = [text for text in expected if expected[text] >= 5]
    bins = [(drawn[text], expected[text]) for text in common]
    if rare:
        bins.append((sum(drawn[text] for text in rare), sum(expected[text] for text in rare)))
    statistic = sum((seen - due) ** 2 / due for seen, due in bins)
    return float(chi2.sf(statistic, len(bins) - 1)) if len(bins) > 1 else 1.0


def _sampler_step(texts: dict[Text, float], ways: Callable[[Text], list[Way]]) -> dict[Text, float]:
    """Every position moves on its own: ways(z) lists (token, probability) for each."""
    moved = defaultdict(float)
    for z, mass in texts.items():
        for way in product(*ways(z)):
            if weight := math.prod(q for _, q in way):
                moved[tuple(v for v, _ in way)] += mass * weight
    return dict(moved)


# Losses over the vocabulary: whole tables [B, L, V] and the formulae as the papers print them.


def loss_table(logits: Tensor, mask_id: int | None = None, shown: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """log p as the code of MDLM makes it (SUBS): MASK at -1e6 before the softmax, point masses at shown tokens."""
    if mask_id is not None:
        logits = torch.where(torch.arange(logits.shape[-1]) == mask_id, -1e6, logits)
    log_p = torch.log_softmax(logits / tau, dim=-1)
    if mask_id is None or shown is None:
        return log_p
    point = torch.where(torch.nn.functional.one_hot(shown, logits.shape[-1]) == 1, 0.0, -1e6).to(log_p)
    return torch.where((shown == mask_id)[..., None], log_p, point)


def loss_cross_entropy(log_p: Tensor, x0: Tensor) -> Tensor:
    return -torch.gather(log_p, -1, x0[..., None])[..., 0]


def loss_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) over the last axis."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def loss_eq14(log_p: Tensor, log_q: Tensor, x0: Tensor, mask_t: Tensor, mask_s: Tensor) -> Tensor:
    """Latent Shadows, Eq. 14, token by token; log_p the student's law, log_q the teacher's at its temperature."""
    loss = torch.zeros(x0.shape, dtype=log_p.dtype)
    for b, i in product(range(x0.shape[0]), range(x0.shape[1])):
        p, q = log_p[b, i].exp().tolist(), log_q[b, i].exp().tolist()
        m_t, m_s = int(mask_t[b, i]), int(mask_s[b, i])
        if m_s:
            loss[b, i] += sum(a * math.log(a / c) for a, c in zip(p, q, strict=True) if a > 0)
        if m_t - m_s:
            loss[b, i] += -math.log(p[int(x0[b, i])])
    return loss


# Noise processes on V tokens as matrices; `noise` [V] is the law of the token that replaces one that is lost.
# `joint` [V, .., V] (L axes) is the law of texts; `Table` gives log p(x0_i | z without i) [n, L, V] for all z [n, L].

Table = Callable[[Tensor, float], Tensor]


def process_channel(noise: Tensor, alpha: float) -> Tensor:
    """q(z | x): row x, column z."""
    return alpha * torch.eye(len(noise), dtype=torch.float64) + (1 - alpha) * noise.double()


def process_posterior(noise: Tensor, p_x0: Tensor, z: int, alpha_t: float, alpha_s: float) -> Tensor:
    """p(z_s | z_t = z) by Bayes' rule, x0 ~ p_x0 before z was seen."""
    joint = (p_x0 @ process_channel(noise, alpha_s)) * process_channel(noise, alpha_t / alpha_s)[:, z]
    return joint / joint.sum()


def process_texts(size: int, length: int) -> Tensor:
    """All texts [size^length, length]."""
    return torch.tensor(list(product(range(size), repeat=length)))


def process_leave_one_out(joint: Tensor, noise: Tensor, z: Tensor, alpha: float) -> Tensor:
    """The law of x0_i given the other noisy tokens: [n, L, V], by summing over all texts."""
    channel = process_channel(noise, alpha)
    texts = process_texts(len(noise), joint.dim())
    weight = joint[tuple(texts.T)]
    laws = []
    for row in z:
        likelihood = channel[texts, row]  # [texts, L]
        for i in range(joint.dim()):
            others = weight * likelihood[:, [j for j in range(joint.dim()) if j != i]].prod(-1)
            law = torch.zeros(len(noise), dtype=torch.float64).index_add(0, texts[:, i], others)
            laws.append(law / law.sum())
    return torch.stack(laws).view(*z.shape, len(noise))


def process_bound_by_orders(joint: Tensor, table: Table, mask_id: int) -> float:
    """Masked diffusion's bound, nats: -log p of a text spelt out in an order, averaged over texts and orders."""
    orders = list(permutations(range(joint.dim())))
    total = 0.0
    for text in joint.nonzero():
        for order in orders:
            z = torch.full_like(text, mask_id)
            for i in order:
                total -= float(joint[tuple(text)] * table(z[None], 0.5)[0, i, text[i]]) / len(orders)
                z[i] = text[i]
    return total


def process_bound_in_steps(joint: Tensor, noise: Tensor, table: Table, alphas: list[float]) -> float:
    """The bound of `len(alphas) - 1` steps from alpha = 0 to 1, nats: sum of KL(q(z_s | z_t, x0) || p(z_s | z_t))."""
    texts, x0 = process_texts(len(noise), joint.dim()), joint.nonzero()
    total = 0.0
    for a_t, a_s in pairwise(alphas):
        step, to_s, to_t = (process_channel(noise, a) for a in (a_t / a_s, a_s, a_t))
        true = to_s[:, None, :] * step.T[None, :, :] / to_t[:, :, None]  # q(s | z, x): [x, z, s], nan if z is not of x
        p = table(texts, a_t).exp() @ to_s * step.T[texts]
        p = p / p.sum(-1, keepdim=True)  # [text z, L, s]
        kl = (torch.xlogy(true, true)[:, texts] - torch.xlogy(true[:, texts], p)).nan_to_num().sum(-1)  # [x, text z, L]
        seen = to_t[x0[:, None], texts[None]].prod(-1)  # q(z | x): [text x, text z]
        price = kl[x0[:, None], torch.arange(len(texts))[None, :, None], torch.arange(joint.dim())].sum(-1)
        total += float((joint[tuple(x0.T)][:, None] * seen * price).sum())
    return total
