"""Randomness that is a value: numbers addressed by what they are for, not by when they are drawn.

`uniform(address(*keys))` is a counter-based generator: each number is a hash of its address (seed, sample, position,
...), so sample i is the same in any batch, on any device, in any order. The hash is the output function of SplitMix64
(Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") applied once a key.

`generator(*keys)` is a `torch.Generator` at an address, for functions that draw with torch. `global_generators(*keys)`
sets torch's own generators, for dropout and first weights. No other module seeds a generator: on a CPU,
`torch.Generator.manual_seed` keeps 32 bits of a seed, and two of 100,000 addresses then share all their numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from unmask.limits import seed_number

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number: 2^64 / golden ratio
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_WORDS = 624  # of 32 bits: the state of a Mersenne twister, MT19937
_HEADER = 3  # numbers of 64 bits before them in torch's state of a CPU generator: the seed, two flags, the place


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's `>>` copies the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix_(state: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit integers: int64 of any shape, in place (L V numbers a text)."""
    state ^= _shift(state, 30)
    state *= _MIX_1
    state ^= _shift(state, 27)
    state *= _MIX_2
    state ^= _shift(state, 31)
    return state


def address(*keys: Tensor | int) -> Tensor:
    """Hash integer keys, left to right, into one int64 a combination; tensors broadcast.

    ValueError for a key that has more than 64 bits.
    """
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        if not isinstance(key, Tensor):
            seed_number("seed, or a key of an address,", key)
        key = torch.as_tensor(key, dtype=torch.int64)
        state = mix_(
            (state.to(key.device) if state.dim() == 0 else state) * 3 + (key + 1) * _GOLDEN
        )
    return state


def uniform(state: Tensor) -> Tensor:
    """Hashed states -> float64 in the open interval (0, 1): (k + 1/2) 2^-52, 52 bits; with 53 the last rounds to 1."""
    return _shift(state, 12).double().add_(0.5).mul_(2.0**-52)


def gumbel(state: Tensor) -> Tensor:
    """Hashed states -> standard Gumbel noise, float64: -log(-log u)."""
    return uniform(state).log_().neg_().log_().neg_()


def stratified(
    n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """n numbers in [0, 1), one in each of n equal strata, in random order: float64 [n], each marginally uniform."""
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    order = torch.randperm(n, generator=generator, device=device)
    return (order + u) / n


def generator(*keys: Tensor | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at an address: another stream for each of the 2^64 addresses, on any device.

    On a CPU all 624 words of the Mersenne twister (Matsumoto, Nishimura 1998) are filled: words 2i and 2i + 1 are the
    low and the high half of address(s, i), s = address(*keys). Elsewhere s is the seed, which keeps its 64 bits there.
    """
    return _set(torch.Generator(device), int(address(*keys)))


@contextmanager
def global_generators(*keys: Tensor | int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within the block, torch's generators of the CPU and of the GPU `device` are at an address, as in `generator`.

    Dropout and the first weights of a module read them. After the block they are as they were before.
    """
    seed, place = int(address(*keys)), torch.device(device)
    on_gpu = place.type == "cuda"
    with torch.random.fork_rng(devices=[place] if on_gpu else []):
        _set(
            torch.default_generator, seed
        )  # torch.manual_seed would queue a call for each unused GPU
        if on_gpu:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed % 2**64)
        yield


def _set(made: torch.Generator, seed: int) -> torch.Generator:
    """The generator, at the start of the stream of a hashed seed."""
    if made.device.type != "cpu":
        return made.manual_seed(
            seed % 2**64
        )  # torch maps -1 and -2 to the seeds of 2^64 - 2 and 2^64 - 3
    state = _new_state().clone()
    numbers = state.view(torch.int64)
    numbers[0] = seed
    hashed = address(seed, torch.arange(_WORDS // 2, device="cpu"))
    halves = torch.stack([hashed.bitwise_and(0xFFFFFFFF), _shift(hashed, 32)], dim=1)
    numbers[_HEADER : _HEADER + _WORDS] = halves.flatten()
    return made.set_state(state)


@cache
def _new_state() -> Tensor:
    """torch's state of a new CPU generator, uint8; RuntimeError where its parts do not lie where `_set` puts them.

    They are the seed (64 bits), left = 1 and seeded = 1 (32 bits each), next = 0 (64 bits) and the words (64 bits each,
    the upper half empty). A second normal number of a pair follows, which a new generator does not have.
    """
    seed, words = 5489, [5489]
    for i in range(1, _WORDS):  # Matsumoto and Nishimura's initialisation, init_genrand
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + i) % 2**32)
    state = torch.Generator().manual_seed(seed).get_state()
    known = torch.tensor([seed, 2**32 + 1, 0, *words], device="cpu")
    if state.numel() % 8 or not torch.equal(state.view(torch.int64)[: len(known)], known):
        raise RuntimeError(
            f"the state of a CPU generator has an unknown layout in torch {torch.__version__}: use a version of torch "
            "that unmask is tested with (constraints.txt)"
        )
    return state
