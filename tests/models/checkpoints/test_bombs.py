"""Small files that demand much memory or time, and damaged files: a quick, clear error."""

import io
import json
import pickle
import pickletools
import random
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints import safe_unpickle as pickles
from unmask.models.checkpoints.safe_unpickle import unpickle
from unmask.models.dit import DiT, Shape
from unmask.models.model import load

GOLDEN = Path(__file__).parents[2] / "golden"
CKPT = GOLDEN / "lightning_mdlm" / "mdlm.ckpt"


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Processor seconds, which do not depend on other processes."""
    started = time.process_time()
    yield
    assert time.process_time() - started < 20


def refuse(path: Path, match: str, **options: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        load(path, **options)


# --- tensors


def test_too_many_views_of_one_storage_are_refused(tmp_path: Path) -> None:
    """2,000 parameters of 21 MB that shared their bytes became 40 GB."""
    base = torch.ones(2**16)
    state = {f"x.{i}": base.view(256, 256) for i in range(64)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").stat().st_size < 2**19
    match = r"views of the same bytes, got 16777216 bytes of tensors in 262144 bytes"
    refuse(tmp_path / "a.ckpt", match, weights="raw")
    shadow = {"state_dict": {"x": torch.ones(1)}, "ema": {"shadow_params": list(state.values())}}
    torch.save(shadow, tmp_path / "b.ckpt")
    refuse(tmp_path / "b.ckpt", match)


def test_weights_and_ema_may_share_storages(tmp_path: Path) -> None:
    """One set of weights may be stored once; FSDP puts all tensors into one storage."""
    network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, cond_dim=4))
    flat = torch.cat([tensor.detach().flatten() for tensor in network.state_dict().values()])
    sizes = [tensor.numel() for tensor in network.state_dict().values()]
    parts = dict(zip(network.state_dict(), flat.split(sizes), strict=True))
    state = {name: parts[name].view(tensor.shape) for name, tensor in network.state_dict().items()}
    average = [state[name] for name, _ in network.named_parameters()]
    torch.save({"state_dict": state, "ema": {"shadow_params": average}}, tmp_path / "a.ckpt")
    assert torch.equal(load(tmp_path / "a.ckpt").network.head.weight, network.head.weight)


@pytest.mark.parametrize("layout", ["ckpt", "safetensors"])
def test_names_and_sizes_are_compared_before_a_network_is_built(
    layout: str, tmp_path: Path
) -> None:
    """One row of 16,384 channels and the names of 2,000 blocks: a network of 26 TB."""
    state = {
        "vocab_embed.embedding": torch.ones(1, 16384),
        "rotary_emb.inv_freq": torch.ones(32),
        "sigma_map.mlp.0.weight": torch.ones(128, 256),
        **{f"blocks.{i}.norm1.weight": torch.ones(1) for i in range(2000)},
    }
    if layout == "ckpt":
        torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    else:
        (tmp_path / "config.json").write_text("{}")
        save_file(state, tmp_path / "model.safetensors")
    refuse(
        tmp_path,
        r"do not fit.* missing: .* of the wrong shape",
        weights="raw" if layout == "ckpt" else "ema",
    )


def test_the_number_of_blocks_has_a_limit(tmp_path: Path) -> None:
    state = {"vocab_embed.embedding": torch.ones(1, 2), "rotary_emb.inv_freq": torch.ones(1)}
    (tmp_path / "config.json").write_text("{}")
    save_file(
        state | {f"blocks.{i}.x": torch.ones(1) for i in range(5000)},
        tmp_path / "model.safetensors",
    )
    refuse(tmp_path, "got 5000 .*want at most 4096")


@pytest.mark.parametrize("size", [(2**61, 0), (2**40, 0), (2**31, 0)])
def test_sizes_of_empty_tensors_are_compared_too(size: tuple[int, int], tmp_path: Path) -> None:
    """A tensor without elements may have any size in a header."""
    state: dict[str, Any] = {
        "vocab_embed.embedding": torch.ones(2, 8),
        "rotary_emb.inv_freq": torch.ones(2),
    }
    header = {
        name: {"dtype": "F32", "shape": list(t.shape), "data_offsets": [0, 0]}
        for name, t in state.items()
    }
    header["sigma_map.mlp.0.weight"] = {"dtype": "F32", "shape": list(size), "data_offsets": [0, 0]}
    header["vocab_embed.embedding"]["data_offsets"] = [0, 64]
    header["rotary_emb.inv_freq"]["data_offsets"] = [64, 72]
    header["sigma_map.mlp.0.weight"]["data_offsets"] = [72, 72]
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(72))
    refuse(tmp_path, "of another architecture|do not fit|truncated or damaged")


# --- archives


def test_overlapping_members_of_an_archive_are_refused(tmp_path: Path) -> None:
    """The second member lies inside the first, so both are valid and share their bytes."""
    content = bytearray(2**16)
    inner, outer = io.BytesIO(), tmp_path / "a.ckpt"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a/data/1", bytes(content))
    start = inner.getvalue()[: 30 + len("a/data/1") + len(content)]
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"state_dict": {}}, protocol=2))
        archive.writestr("a/data/0", start)
        for name in ("a/data/1", "a/data/2"):
            info = zipfile.ZipInfo(name)
            place = archive.getinfo("a/data/0").header_offset + 30 + len("a/data/0")
            info.header_offset, info.file_size, info.compress_size = (
                place,
                len(content),
                len(content),
            )
            info.CRC = zipfile.crc32(content)
            archive.filelist.append(info)
            archive.NameToInfo[name] = info
    assert outer.stat().st_size < 2 * len(content)
    refuse(
        outer,
        r"its members have \d+ bytes, more than the file|is damaged|truncated or damaged",
        weights="raw",
    )


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**24))
    assert (tmp_path / "a.ckpt").stat().st_size < 2**15
    refuse(tmp_path / "a.ckpt", r"data\.pkl is compressed")


# --- pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def again(program: bytes, times: int) -> bytes:
    return program * times


PAIRS = (
    b"](" + b"".join(text(f"{i:04}") + b"N\x86" for i in range(1000)) + b"e"
)  # a list of 1,000 pairs
LONG = text("numpy." + "x" * 10_000)
NUMBERS = b"".join(
    b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 1000)
)
WORDS = b"(" + b"".join(text(str(i)) for i in range(1000)) + b"t"  # a tuple of 1,000
BOMBS: dict[str, bytes] = {
    "one list as many dictionaries": PAIRS
    + b"q\x00"
    + again(b"ccollections\nOrderedDict\nh\x00\x85R", 1000),
    "one list as many sets": PAIRS + b"q\x00" + again(b"c__builtin__\nset\nh\x00\x85R", 1000),
    "one list as many frozen sets": PAIRS
    + b"q\x00"
    + again(b"c__builtin__\nfrozenset\nh\x00\x85R", 1000),
    "one text as many bytes": text("x" * 10_000)
    + b"q\x00"
    + again(b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R", 1000),
    "one name many times": LONG
    + b"q\x00"
    + text("ndarray")
    + b"q\x01"
    + again(b"h\x00h\x01\x93", 1000),
    "integers of one hash": b"}(" + NUMBERS + b"u",
    "long tuples as keys": b"}q\x00" + WORDS + b"q\x01" + again(b"h\x00h\x01Ns", 1000),
    "numbers in tuples as keys": b"}K\x01K\x02\x86Ns",
    "an integer of many digits": b"I" + b"9" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_grow_in_memory_or_time_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is not opened|is damaged"):
        unpickle(b"\x80\x02" + BOMBS[name] + b".")


@pytest.mark.parametrize("instruction", [b"]", b"}", b"\x8f", b"(", b"N\x85"])
def test_the_number_of_containers_has_a_limit(
    instruction: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MOST_CONTAINERS", 1000)
    unpickle(b"\x80\x04" + instruction * 1000 + b"N.")
    with pytest.raises(CheckpointError, match="more than 1000 containers"):
        unpickle(b"\x80\x04" + instruction * 1001 + b"N.")


def test_a_large_tokenizer_stays_within_the_limits() -> None:
    """Vocabulary and merges of a large BPE, as a Lightning checkpoint of Duo's code holds them."""
    size, large = 10_000, 130_000
    vocabulary = {f"token-{i}": i for i in range(size)}
    merges = {(f"token-{i}", f"token-{i + 1}"): i for i in range(size)}
    program = pickle.dumps(
        {"vocab": vocabulary, "ranks": merges, "set": set(vocabulary)}, protocol=2
    )
    assert unpickle(program)["ranks"].keys() >= {
        ("token-0", "token-1"),
        ("token-9998", "token-9999"),
    }
    steps = sum(1 for _ in pickletools.genops(program))
    for needed, most in (
        (len(program), pickles.LARGEST_PICKLE),
        (steps, pickles.MOST_STEPS),
        (size, 2**20),
    ):
        assert 2 * needed * large / size < most


def test_the_number_of_steps_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    unpickle(b"N" * 999 + b".")
    with pytest.raises(CheckpointError, match="more than 1000 steps"):
        unpickle(b"N" * 1000 + b".")


# --- damage


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 4, 64))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def head(content: bytes, chance: random.Random) -> bytes:
    """Changes among names and sizes, at the start or (of an archive) at the end."""
    size = min(len(content), 4096)
    return (
        flipped(content[:size], chance) + content[size:]
        if chance.random() < 0.5
        else (content[:-size] + flipped(content[-size:], chance))
    )


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def joined(content: bytes, chance: random.Random) -> bytes:
    place, size = chance.randrange(len(content)), chance.randrange(1, 5000)
    return (
        content[:place] + content[place + size :]
        if chance.random() < 0.5
        else content[:place] + content[place:] * 2
    )


def numbered(content: bytes, chance: random.Random) -> bytes:
    """Replace a number in the text: a size, an offset or a length."""
    digits = [i for i, byte in enumerate(content[:8192]) if 48 <= byte <= 57]
    if not digits:
        return flipped(content, chance)
    place = chance.choice(digits)
    number = chance.choice(
        (b"0", b"-1", b"1e999", b"18446744073709551615", b"9999999999999", b"null", b'"x"', b"[]")
    )
    return content[:place] + number + content[place + 1 :]


CHANGES: list[Callable[[bytes, random.Random], bytes]] = [flipped, head, cut, joined, numbered]


def repacked(content: bytes, chance: random.Random) -> bytes:
    """A checkpoint whose pickle is damaged, with the right checksums."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            held = old.read(name)
            new.writestr(
                name, chance.choice(CHANGES)(held, chance) if name.endswith("data.pkl") else held
            )
    return made.getvalue()


def damaged(folder: Path, file: Path, seed: int) -> str | None:
    """Load a copy of a golden model with one damaged file: None, or the error's message."""
    chance = random.Random(seed)
    target = folder / file.parent.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(file.parent, target)
    changes = [*CHANGES, *([repacked] * 4 if file.suffix == ".ckpt" else [])]
    (target / file.name).write_bytes(chance.choice(changes)(file.read_bytes(), chance))
    try:
        load(target if file.suffix != ".ckpt" else target / file.name, weights="ema")
    except ValueError as error:
        return str(error)
    return None


FILES = [
    *(
        GOLDEN / folder / name
        for folder in ("hub_mdlm", "hub_ar")
        for name in ("config.json", "model.safetensors")
    ),
    *(GOLDEN / "hub_sdtt" / "config.json", CKPT),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_damage_of_any_kind_is_an_error_of_ours_or_harmless(file: Path, tmp_path: Path) -> None:
    """No other exception, and no message of several screens."""
    messages = [damaged(tmp_path, file, seed) for seed in range(25)]
    assert any(messages) and all(
        message is None or 20 < len(message) < 3000 for message in messages
    )


def main(seeds: range) -> None:
    """A longer run in 4 GiB of memory, by `python test_bombs.py FIRST LAST`."""
    import resource
    import tempfile
    from collections import Counter

    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for file in FILES:
                started = time.process_time()
                messages = damaged(Path(folder), file, seed)
                counts[
                    f"{file.parent.name}/{file.name}: {'refused' if messages else 'loaded'}"
                ] += 1
                if time.process_time() - started > 2 or (
                    messages is not None and len(messages) > 3000
                ):
                    print(
                        "slow or long",
                        file,
                        seed,
                        time.process_time() - started,
                        (messages or "")[:200],
                    )
    print(
        *sorted(counts.items()),
        f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB",
        sep="\n",
    )


if __name__ == "__main__":
    import sys

    main(range(int(sys.argv[1]), int(sys.argv[2])))
