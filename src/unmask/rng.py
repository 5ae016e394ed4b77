"""Counter-based random numbers: each number is a function of its address, without a state.

An address is a hash of integer keys, such as seed, sample and position; `uniform(address(*keys))`
is a random number. So sample i is the same in any batch, on any device and in any order. The hash
applies the output function of SplitMix64 once for each key (Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators").

`generator(*keys)` is a `torch.Generator` for functions that draw with torch.
`global_generators(*keys)` seeds torch's global generators, for dropout and initial weights.
No other module seeds a generator, because on a CPU `torch.Generator.manual_seed` keeps only 32 bits
of a seed. Of 100,000 random seeds, two would probably give the same numbers.
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
_WORDS = 624  # the state of the Mersenne twister MT19937: 624 words of 32 bits
_HEADER = 3  # 64-bit numbers before the words in torch's CPU state: seed, two flags, position


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift. (torch's `>>` copies the sign bit.)"""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix_(state: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of 64-bit integers, to int64 of any shape.

    It works in place, because sampling hashes L V numbers for each text.
    """
    state ^= _shift(state, 30)
    state *= _MIX_1
    state ^= _shift(state, 27)
    state *= _MIX_2
    state ^= _shift(state, 31)
    return state


def address(*keys: Tensor | int) -> Tensor:
    """Hash integer keys, in their order, to one int64; tensors broadcast.

    ValueError for a key that does not fit in 64 bits.
    """
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        if not isinstance(key, Tensor):
            seed_number("seed, or a key of an address,", key)
        key = torch.as_tensor(key, dtype=torch.int64)
        state = state.to(key.device) if state.dim() == 0 else state
        state = mix_(state * 3 + (key + 1) * _GOLDEN)
    return state


def uniform(state: Tensor) -> Tensor:
    """Turn hashed states into uniform numbers in the open interval (0, 1), float64.

    They are (k + 1/2) 2^-52 with k of 52 bits. With 53 bits the largest number would round to 1.
    """
    return _shift(state, 12).double().add_(0.5).mul_(2.0**-52)


def gumbel(state: Tensor) -> Tensor:
    """Turn hashed states into standard Gumbel noise -log(-log u), float64."""
    return uniform(state).log_().neg_().log_().neg_()


def stratified(
    n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw n stratified numbers in [0, 1): one in each of n equal strata, in random order.

    The result is float64 [n]. The marginal law of each number is uniform.
    """
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    order = torch.randperm(n, generator=generator, device=device)
    return (order + u) / n


def generator(*keys: Tensor | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by an address: each of the 2^64 addresses has its own stream.

    Let s = address(*keys). On a CPU, s determines all 624 words of the Mersenne twister (Matsumoto,
    Nishimura 1998). Words 2i and 2i + 1 are the low and the high half of address(s, i). On other
    devices s is the seed, because their generators keep all 64 bits.
    """
    return _seed(torch.Generator(device), int(address(*keys)))


@contextmanager
def global_generators(*keys: Tensor | int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators by an address, as `generator` does, within the block.

    Dropout and the initialisation of modules draw from these generators. The block seeds that of
    the CPU and, if `device` is a GPU, that of the GPU. The end of the block restores their states.
    """
    seed, device = int(address(*keys)), torch.device(device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed, which would also queue a call for each unused GPU.
        _seed(torch.default_generator, seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed % 2**64)
        yield


def _seed(target: torch.Generator, seed: int) -> torch.Generator:
    """Set a generator to the start of the stream of a hashed seed, and return it."""
    if target.device.type != "cpu":
        # Modulo 2^64, because torch maps -1 and -2 to the seeds of 2^64 - 2 and 2^64 - 3.
        return target.manual_seed(seed % 2**64)
    state = _new_state().clone()
    numbers = state.view(torch.int64)
    numbers[0] = seed
    hashed = address(seed, torch.arange(_WORDS // 2, device="cpu"))
    halves = torch.stack([hashed.bitwise_and(0xFFFFFFFF), _shift(hashed, 32)], dim=1)
    numbers[_HEADER : _HEADER + _WORDS] = halves.flatten()
    return target.set_state(state)


@cache
def _new_state() -> Tensor:
    """torch's state of a new CPU generator, uint8.

    The state begins with the seed (64 bits), left = 1 and seeded = 1 (32 bits each), and next = 0
    (64 bits). The words follow (64 bits each, the upper half empty). The end is the second number
    of a normal pair, which a new generator does not have. RuntimeError if this version of torch
    uses another layout.
    """
    seed, words = 5489, [5489]
    for i in range(1, _WORDS):  # Matsumoto and Nishimura's initialisation, init_genrand
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + i) % 2**32)
    state = torch.Generator().manual_seed(seed).get_state()
    expected = torch.tensor([seed, 2**32 + 1, 0, *words], device="cpu")
    if state.numel() % 8 or not torch.equal(state.view(torch.int64)[: len(expected)], expected):
        raise RuntimeError(
            f"torch {torch.__version__} has an unknown layout of the state of a CPU generator: "
            "install a version that unmask is tested with (constraints.txt)"
        )
    return state
