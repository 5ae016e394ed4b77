"""Long texts in pieces: the ids of the whole text for any tokenizer, one piece in memory."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

import unmask
import unmask.data.long_texts
from unmask.data.long_texts import encode_in_pieces
from unmask.data.tokenizers import Tokenizer, train_bpe

WORDS = [
    "the",
    "rain",
    "in",
    "Spain",
    "it's",
    "falls",
    "3.14159",
    "1000000",
    "naïve",
    "東京は",
    "「日本語」",
    "don't!!",
    "CamelCase_x",
]
GAPS = [" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n ", "", ", ", "-", "   "]
TEXTS = [
    "".join(f"{word}{GAPS[(i * 7 + j) % len(GAPS)]}" for j, word in enumerate(WORDS))
    for i in range(12)
]


def bytes_of(**options: object) -> Tokenizer:
    """A byte-level BPE with other rules for words."""
    backend = hf.Tokenizer.from_str(train_bpe(TEXTS, 330)._plain.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    return Tokenizer(backend, {})


def llama3() -> Tokenizer:
    """Its pattern for words before bytes."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    pattern = words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = hf.Tokenizer.from_str(train_bpe(TEXTS, 330)._plain.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(hf.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    return Tokenizer(backend, {})


def trained(
    model: object, trainer: object, normaliser: object = None, words: object = None
) -> Tokenizer:
    backend = hf.Tokenizer(model)
    if normaliser is not None:
        backend.normalizer = normaliser
    if words is not None:
        backend.pre_tokenizer = words
    backend.train_from_iterator(TEXTS, trainer)
    return Tokenizer(backend, {})


def bert() -> Tokenizer:
    trainer = hf.trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]"], show_progress=False
    )
    return trained(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )


def t5(scheme: str) -> Tokenizer:
    trainer = hf.trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    return trained(
        models.Unigram(),
        trainer,
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(prepend_scheme=scheme),
    )


def llama2() -> Tokenizer:
    """No words: merges cross spaces, and a space is put before a text."""
    normaliser = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = hf.trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>"], show_progress=False)
    return trained(models.BPE(unk_token="<unk>"), trainer, normaliser)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "our own": lambda: train_bpe(TEXTS, 330),
    "a blank before": lambda: bytes_of(add_prefix_space=True),
    "no pattern": lambda: bytes_of(add_prefix_space=False, use_regex=False),
    "llama 3": llama3,
    "bert": bert,
    "t5": lambda: t5("always"),
    "t5, first": lambda: t5("first"),
    "llama 2": llama2,
}
texts = st.lists(
    st.sampled_from([*WORDS, *GAPS, "a", "\u0301", "ß", "\r\n"]) | st.text(max_size=3), max_size=120
).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


@given(texts.filter(lambda text: not re.search("[\ud800-\udfff]", text)), st.integers(8, 40))
@settings(max_examples=60)
def test_pieces_are_the_text_and_their_ids_its_ids(
    tokenizer: Tokenizer, text: str, size: int
) -> None:
    pieces = list(
        encode_in_pieces(text, lambda some: tokenizer._ids([some], False)[0], size, context=16)
    )
    assert "".join(piece for piece, _ in pieces) == text
    assert [token for _, ids in pieces for token in ids] == tokenizer.encode(text)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("llama 2", "no pattern")])
def test_a_text_of_words_is_cut(kind: str) -> None:
    """The property above is not trivial."""
    tokenizer, text = KINDS[kind](), " ".join(TEXTS)
    sizes = [
        len(piece)
        for piece, _ in encode_in_pieces(
            text, lambda some: tokenizer._ids([some], False)[0], 64, context=16
        )
    ]
    assert sum(sizes) == len(text) and max(sizes) <= 2 * 64 + 16 and len(sizes) > len(text) / 100


def test_a_text_that_cannot_be_cut_is_refused_beyond_a_size() -> None:
    def encode(text: str) -> list[int]:
        """Changes with every character."""
        return [len(text)]

    assert [*encode_in_pieces("a b " * 10, encode, 8, 4, longest=64)] == [("a b " * 10, [40])]
    with pytest.raises(
        ValueError,
        match=r"^a document .* got 128 characters .* from character 0 on, want at most 64",
    ):
        list(encode_in_pieces("a b " * 100, encode, 8, 4, longest=64))


def test_long_and_short_texts_of_a_batch_are_encoded_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bpe = train_bpe(TEXTS, 330)
    batch = [*TEXTS[:3], " ".join(TEXTS), "", TEXTS[4], " ".join(TEXTS[::-1]), *TEXTS]
    expected = [bpe.encode(text) for text in batch]
    monkeypatch.setattr(unmask.data.tokenizers, "PIECE", 200)
    monkeypatch.setattr(unmask.data.long_texts.encode_in_pieces, "__defaults__", (200, 32, 10**6))
    assert bpe.encode_batch(batch) == expected


def test_a_tokenizer_is_trained_on_pieces_as_on_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_bpe([" ".join(TEXTS)], 330)
    monkeypatch.setattr(unmask.data.tokenizers, "PIECE", 200)
    monkeypatch.setattr(unmask.data.long_texts.encode_in_pieces, "__defaults__", (200, 32, 10**6))
    assert train_bpe([" ".join(TEXTS)], 330).digest == whole.digest


@pytest.mark.slow
def test_the_memory_of_a_long_text_is_that_of_its_ids() -> None:
    """6 million characters, whose encoding in one piece takes 700 MB."""
    code = """
from unmask.recipes.data import encode_documents
from unmask.data.tokenizers import train_bpe
from unmask.evaluation.timing import peak_memory
words = " ".join(f"{n * 7919 % 99991:x}" for n in range(40_000))
tokenizer = train_bpe([words], 400)
before = peak_memory()
(ids,) = encode_documents([words * (6_000_000 // len(words))], tokenizer)
print(len(ids), peak_memory() - before)
"""
    env = {
        "PYTHONPATH": str(Path(unmask.__file__).parents[1]),
        "PATH": "",
        "RAYON_NUM_THREADS": "1",
    }
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    tokens, extra_bytes = map(int, ran.stdout.split())
    assert tokens > 10**6 and extra_bytes < 20 * tokens + 100_000 * 1024
