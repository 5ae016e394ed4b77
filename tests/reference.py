"""Slow and simple oracles: each computes the values of a fast function in another way."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import chi2
from torch import Tensor, nn

from unmask.diffusion.duality import ddim_path
from unmask.models.dit import DiT, Shape


def dense_input(
    x0: Tensor, eps: Tensor, snr_root: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Duo's soft input by its definition (arXiv 2506.10892, Eq. 2), from K Gaussians a token.

    x0 is [B, L], eps [B, L, K] ~ N(0, 1), snr_root [B] = alpha~/sigma~. Returns z = arg max w
    [B, L] and the logits w / tau [B, L, K].
    """
    roots = snr_root[:, None].expand(x0.shape).flatten()
    w = ddim_path(x0.flatten(), eps.flatten(0, 1), roots).view(eps.shape)
    return w.argmax(-1), w / temperature


def duality_keep(root: float, size: int) -> float:
    """P(eps_j < root + eps_k for all j != k) of `size` Gaussians: a sum over a grid of eps_k."""
    return _duality_sum(root, 0.0, size - 1)


def duality_density(root: float, size: int) -> float:
    """Density at `root` of max_{j != k} eps_j - eps_k: one coordinate ties, others are below."""
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
    weights = {
        name.removeprefix("backbone."): w
        for name, w in load_file(directory / "model.safetensors").items()
    }
    vocab_size, width = weights["vocab_embed.embedding"].shape
    heads = width // (2 * len(weights["rotary_emb.inv_freq"]))
    causal = "sigma_map.mlp.0.weight" not in weights
    cond_dim = 1 if causal else len(weights["sigma_map.mlp.0.weight"])
    network = DiT(
        Shape(vocab_size, 24, width, blocks=2, heads=heads, cond_dim=cond_dim, causal=causal)
    )
    network.load_state_dict(weights)
    return network.eval(), load_file(directory / "expected.safetensors")


def network_random(shape: Shape, seed: int = 0) -> DiT:
    """A network as after training: no weight is zero."""
    network = DiT(shape)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        nn.init.normal_(weight, mean=float("norm" in name), std=0.2, generator=generator)
    return network.eval()


def in_float64(network: DiT) -> DiT:
    """The network in float64, where rounding that depends on shapes (1e-15) changes no draw."""
    network.compute_dtype = torch.float64
    return network.double()


# Samplers: the exact law of a sampler, by enumeration of all its paths. A law of texts is a dict.
# `law(z, alpha)` is the model's p(x0_i | z), [L, V]. `sampler_autoregressive` takes `law(prefix)`.

Text = tuple[int, ...]
Law = Callable[[Text, float], np.ndarray]
Way = list[tuple[int, float]]  # (token, probability) of one position


def sampler_reveal(start: Text, alphas: list[float], law: Law, mask_id: int) -> dict[Text, float]:
    """Masked diffusion from `start`: in each step every MASK stays or becomes a token."""
    texts = {start: 1.0}
    for a, b in pairwise(alphas):
        rate = (b - a) / (1 - a)

        def ways(z: Text, a: float = a, rate: float = rate) -> list[Way]:
            p = law(z, a)
            shown = [[(token, 1.0)] for token in z]
            moves = [
                [(mask_id, 1 - rate), *((v, rate * q) for v, q in enumerate(row))] for row in p
            ]
            return [
                move if token == mask_id else stay
                for token, stay, move in zip(z, shown, moves, strict=True)
            ]

        texts = _sampler_step(texts, ways)
    return texts


def sampler_uniform(
    pins: Text,
    alphas: list[float],
    law: Law,
    size: int,
    late: Callable[[np.ndarray], np.ndarray] = lambda p: p,
) -> dict[Text, float]:
    """Uniform diffusion by Bayes' rule with matrices; -1 is free.

    q(b | a) = alpha [a = b] + (1 - alpha) / size. `late` changes the laws of z_s [1, V], which a
    correct sampler must not do.
    """

    def forward(keep: float) -> np.ndarray:
        return keep * np.eye(size) + (1 - keep) / size

    starts = list(product(*(range(size) if token < 0 else [token] for token in pins)))
    texts = {z: 1 / len(starts) for z in starts}
    for a, b in pairwise(alphas):

        def ways(z: Text, a: float = a, b: float = b) -> list[Way]:
            moves = []
            for token, pinned, p in zip(z, pins, law(z, a), strict=True):
                joint = (p @ forward(b)) * forward(a / b)[:, token]  # P(z_s) P(z_t | z_s)
                posterior = late(joint[None] / joint.sum())[0]
                moves.append(list(enumerate(posterior)) if pinned < 0 else [(token, 1.0)])
            return moves

        texts = _sampler_step(texts, ways)
    return texts


def sampler_confidence(
    start: Text, alphas: list[float], law: Law, score: Law, mask_id: int
) -> dict[Text, float]:
    """Confidence order: draw from `law` at each MASK, keep the tokens with the greatest `score`."""
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


def sampler_renoised(
    pins: Text,
    alphas: list[float],
    law: Law,
    noise: np.ndarray,
    kappa: Callable[[float, float], float],
) -> dict[Text, float]:
    """psi by its definition; -1 is free.

    Draw each x0 given z_t, then step back from z_t (weight kappa) or noise x0 again.
    """

    @cache
    def channel(keep: float) -> np.ndarray:
        return keep * np.eye(len(noise)) + (1 - keep) * noise

    texts: dict[Text, float] = {(): 1.0}
    for pin in pins:
        start = enumerate(noise) if pin < 0 else [(pin, 1.0)]
        texts = {
            (*z, v): mass * q for (z, mass), (v, q) in product(texts.items(), list(start)) if q
        }
    for a, b in pairwise(alphas):
        weight = 1.0 if b == 1 else kappa(a, b)

        def move(
            token: int, p: np.ndarray, a: float = a, b: float = b, weight: float = weight
        ) -> Way:
            # No noise: the text itself.
            seen = p * channel(a)[:, token] if noise[token] else np.eye(len(noise))[token]
            out = np.zeros(len(noise))
            for x, share in enumerate(seen / seen.sum()):
                if share:
                    back = channel(b)[x] * channel(a / b)[:, token] / channel(a)[x, token]
                    out += share * (weight * back + (1 - weight) * channel(b)[x])
            return list(enumerate(out))

        def ways(z: Text, a: float = a, move: Callable[..., Way] = move) -> list[Way]:
            rows = zip(z, pins, law(z, a), strict=True)
            return [move(token, p) if pin < 0 else [(token, 1.0)] for token, pin, p in rows]

        texts = _sampler_step(texts, ways)
    return texts


def sampler_remdm(
    pins: Text, alphas: list[float], law: Law, mask_id: int, sigma: Callable[[float, float], float]
) -> dict[Text, float]:
    """ReMDM as printed, with s = sigma(a, b).

    A token x: x (1 - s) + s m. A MASK: ((b - (1 - s) a) x + (1 - b - s a) m) / (1 - a).
    """
    texts = {tuple(mask_id if pin < 0 else pin for pin in pins): 1.0}
    for a, b in pairwise(alphas):
        s = sigma(a, b)

        def ways(z: Text, a: float = a, b: float = b, s: float = s) -> list[Way]:
            moves: list[Way] = []
            for token, pin, p in zip(z, pins, law(z, a), strict=True):
                if pin >= 0 or token != mask_id:
                    moves.append([(token, 1.0)] if pin >= 0 else [(token, 1 - s), (mask_id, s)])
                else:
                    shown = [
                        (v, q * (b - (1 - s) * a) / (1 - a))
                        for v, q in enumerate(p)
                        if v != mask_id
                    ]
                    moves.append([*shown, (mask_id, (1 - b - s * a) / (1 - a))])
            return moves

        texts = _sampler_step(texts, ways)
    return texts


def sampler_arg_max(
    texts: dict[Text, float], alpha: float, law: Law, free: Callable[[int, int], bool]
) -> dict:
    """The greedy tail: where free(position, token), the first of the most probable tokens."""
    moved: dict[Text, float] = defaultdict(float)
    for z, mass in texts.items():
        best = [max(range(len(p)), key=lambda v, p=p: (p[v], -v)) for p in law(z, alpha)]
        moved[tuple(best[i] if free(i, v) else v for i, v in enumerate(z))] += mass
    return dict(moved)


def sampler_entropy_bounded(
    start: Text, first: float, law: Law, score: Law, bound: float, mask_id: int
) -> dict:
    """Entropy-bounded unmasking.

    Order the MASKs by the entropy of `score`. Unmask the longest prefix whose sum without its
    greatest entropy is within the bound, and repeat. The network gets the level at which that share
    of the tokens that are free at `start` is visible.
    """
    free = [i for i, token in enumerate(start) if token == mask_id]
    done: dict[Text, float] = defaultdict(float)
    queue = [(start, 1.0)]
    while queue:
        z, mass = queue.pop()
        masks = [i for i in free if z[i] == mask_id]
        if not masks:
            done[z] += mass
            continue
        alpha = first + (1 - first) * (len(free) - len(masks)) / len(free)
        h = {i: -sum(q * math.log(q) for q in score(z, alpha)[i] if q) for i in masks}
        ranked = sorted(masks, key=lambda i: (h[i], i))
        sizes = [
            m
            for m in range(1, len(ranked) + 1)
            if m == 1 or sum(h[i] for i in ranked[: m - 1]) <= bound
        ]
        chosen = ranked[: max(sizes)]
        p = law(z, alpha)
        for guess in product(
            *([(v, p[i, v]) for v in range(p.shape[1]) if p[i, v]] for i in chosen)
        ):
            text = list(z)
            for i, (v, _) in zip(chosen, guess, strict=True):
                text[i] = v
            queue.append((tuple(text), mass * math.prod(q for _, q in guess)))
    return dict(done)


def sampler_autoregressive(pins: Text, law: Callable[[Text], np.ndarray]) -> dict[Text, float]:
    """One token after another. A pin (not -1) is kept."""
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
    """Probabilities [L, V] after temperature, top-k and top-p; ties go to the smaller id."""
    out = np.zeros_like(p)
    for row, kept in zip(p ** (1 / temperature), out, strict=True):
        order = sorted(range(len(row)), key=lambda v: (-row[v], v))[:top_k]
        total = sum(row[v] for v in order)
        for v in order:
            if kept.sum() < (top_p - 1e-6) * total:
                kept[v] = row[v]
    return out / out.sum(-1, keepdims=True)


def sampler_p_value(tokens: Tensor, texts: dict[Text, float]) -> float:
    """Chi-square p-value of drawn texts [n, L] under an exact law; 0 for an impossible text."""
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
    """Every position changes independently: ways(z) lists (token, probability) for each."""
    moved = defaultdict(float)
    for z, mass in texts.items():
        for way in product(*([(v, q) for v, q in way if q] for way in ways(z))):
            moved[tuple(v for v, _ in way)] += mass * math.prod(q for _, q in way)
    return dict(moved)


# Losses over the vocabulary: whole tables [B, L, V] and the formulae as the papers print them.


def loss_table(
    logits: Tensor, mask_id: int | None = None, shown: Tensor | None = None, tau: float = 1.0
) -> Tensor:
    """log p as in MDLM's code (SUBS):

    MASK at -1e6 before the softmax, point masses at visible tokens.
    """
    if mask_id is not None:
        logits = torch.where(torch.arange(logits.shape[-1]) == mask_id, -1e6, logits)
    log_p = torch.log_softmax(logits / tau, dim=-1)
    if mask_id is None or shown is None:
        return log_p
    point = torch.where(torch.nn.functional.one_hot(shown, logits.shape[-1]) == 1, 0.0, -1e6).to(
        log_p
    )
    return torch.where((shown == mask_id)[..., None], log_p, point)


def loss_cross_entropy(log_p: Tensor, x0: Tensor) -> Tensor:
    return -torch.gather(log_p, -1, x0[..., None])[..., 0]


def loss_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) over the last axis."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def loss_eq14(log_p: Tensor, log_q: Tensor, x0: Tensor, mask_t: Tensor, mask_s: Tensor) -> Tensor:
    """Latent Shadows, Eq.

    14, token by token, from the student's log_p and the tempered teacher's log_q.
    """
    loss = torch.zeros(x0.shape, dtype=log_p.dtype)
    for b, i in product(range(x0.shape[0]), range(x0.shape[1])):
        p, q = log_p[b, i].exp().tolist(), log_q[b, i].exp().tolist()
        m_t, m_s = int(mask_t[b, i]), int(mask_s[b, i])
        if m_s:
            loss[b, i] += sum(a * math.log(a / c) for a, c in zip(p, q, strict=True) if a > 0)
        if m_t - m_s:
            loss[b, i] += -math.log(p[int(x0[b, i])])
    return loss


# Noise processes on V tokens as matrices. `noise` [V] is the law of a noise token.
# `joint` [V, .., V] (L axes) is the law of texts. `Table` gives log p(x0_i | z without i) for all
# z [n, L]: [n, L, V].

Table = Callable[[Tensor, float], Tensor]


def process_channel(noise: Tensor, alpha: float) -> Tensor:
    """q(z | x): row x, column z."""
    return alpha * torch.eye(len(noise), dtype=torch.float64) + (1 - alpha) * noise.double()


def process_posterior(
    noise: Tensor, p_x0: Tensor, z: int, alpha_t: float, alpha_s: float
) -> Tensor:
    """p(z_s | z_t = z) by Bayes' rule with prior x0 ~ p_x0."""
    joint = (p_x0 @ process_channel(noise, alpha_s)) * process_channel(noise, alpha_t / alpha_s)[
        :, z
    ]
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
    """The masked bound in nats:

    -log p of a text in a random order, averaged over texts and orders.
    """
    orders = list(permutations(range(joint.dim())))
    total = 0.0
    for text in joint.nonzero():
        for order in orders:
            z = torch.full_like(text, mask_id)
            for i in order:
                total -= float(joint[tuple(text)] * table(z[None], 0.5)[0, i, text[i]]) / len(
                    orders
                )
                z[i] = text[i]
    return total


def process_bound_in_steps(
    joint: Tensor, noise: Tensor, table: Table, alphas: list[float]
) -> float:
    """The bound of len(alphas) - 1 steps from alpha = 0 to 1, nats.

    The sum of KL(q(z_s | z_t, x0) || p(z_s | z_t)).
    """
    texts, x0 = process_texts(len(noise), joint.dim()), joint.nonzero()
    total = 0.0
    for a_t, a_s in pairwise(alphas):
        step, to_s, to_t = (process_channel(noise, a) for a in (a_t / a_s, a_s, a_t))
        # q(s | z, x): [x, z, s], nan if z is impossible given x.
        true = to_s[:, None, :] * step.T[None, :, :] / to_t[:, :, None]
        p = table(texts, a_t).exp() @ to_s * step.T[texts]
        p = p / p.sum(-1, keepdim=True)  # [text z, L, s]
        # [x, text z, L].
        kl = (
            (torch.xlogy(true, true)[:, texts] - torch.xlogy(true[:, texts], p))
            .nan_to_num()
            .sum(-1)
        )
        seen = to_t[x0[:, None], texts[None]].prod(-1)  # q(z | x): [text x, text z]
        price = kl[
            x0[:, None], torch.arange(len(texts))[None, :, None], torch.arange(joint.dim())
        ].sum(-1)
        total += float((joint[tuple(x0.T)][:, None] * seen * price).sum())
    return total


def loss_distance(name: str, p: Tensor, q: Tensor) -> float:
    """The distance of two laws [V], student's p and teacher's q, token by token."""
    pairs = list(zip(p.tolist(), q.tolist(), strict=True))
    return {
        "reverse": lambda: sum(a * math.log(a / b) for a, b in pairs if a > 0),
        "forward": lambda: sum(b * math.log(b / a) for a, b in pairs if b > 0),
        "mse": lambda: sum((a - b) ** 2 for a, b in pairs),
        "tvd": lambda: 1 - sum(min(a, b) for a, b in pairs),
    }[name]()


def sdtt_step(u: float, alpha: float, shares: list[float]) -> int:
    """The step of a walk that unmasks a token with u >= alpha.

    Each step takes a share of the remaining MASKs, the last step all. Given that a token is still
    masked, its rescaled u is uniform after every step.
    """
    left = (u - alpha) / (1 - alpha)
    for j, share in enumerate(shares[:-1]):
        if left < share:
            return j
        left = (left - share) / (1 - share)
    return len(shares) - 1


def sdtt_shares_released(t: float, delta: float, k: int) -> list[float]:
    """The shares delta / ts of SDTT's published code (multi_round_sdtt.py:268).

    ts = t * space + (1 - t) * t_end.
    """
    space = np.linspace(1, 0, k)
    return [min(1.0, delta / ts) if ts > 0 else 1.0 for ts in t * space + (1 - t) * (t - k * delta)]


def loss_uniform_rate(log_p: Tensor, x0: Tensor, z: Tensor, alpha: float) -> Tensor:
    """Duo's bound at -alpha' = 1 of rows log_p [N, K], as its code computes it: float64 [N]."""
    size, p, same = log_p.shape[-1], log_p.double().exp(), (x0 == z).double()
    y = size * alpha * p + 1 - alpha
    y_z, y_x = (y.gather(-1, token[:, None])[:, 0] for token in (z, x0))
    kappa = (1 - alpha) / (size * alpha + 1 - alpha)
    first = size * (1 / (1 - alpha + size * alpha * same) - 1 / y_z)
    second = -(kappa * same + 1 - same) * (y.log().sum(-1) - size * y_z.log())
    second = second - size * alpha / (1 - alpha) * (y_x.log() - y_z.log()) * (1 - same)
    second = second + ((size - 1) * kappa * same - (1 - same) / kappa) * math.log(kappa)
    return (second - first) / (size * alpha)


def float32_log_softmax_error(log_p: Tensor) -> Tensor:
    """The maximal error of a float32 log softmax of V logits, for exact log p [..., V] in nats.

    With u = 2^-24, d = x - max has an error of u |d| <= u |log p|. Each exponential adds 2 u and
    the error of d, whose mean over p is at most u log V. The sum of V terms adds (V - 1) u in any
    order. Its logarithm, at most log V, adds 2 u of itself. The last difference adds u |log p|. The
    sum is u (V + 1 + 3 log V + 2 |log p|).
    """
    size = log_p.shape[-1]
    return 2.0**-24 * (size + 1 + 3 * math.log(size) + 2 * log_p.abs())
