import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

import unmask
from unmask.evaluation import judges
from unmask.evaluation.huggingface import huggingface_judge, sdtt_judge
from unmask.evaluation.judges import LanguageModelJudge, Scores, eos_weight, generative_perplexity
from unmask.evaluation.measure import EvaluationProtocol, JudgeId, Row, Setting, protocol_words
from unmask.evaluation.sample_metrics import measure_row, not_drawn
from unmask.prediction import Prediction

EOS = 0
SETTING = Setting("model", "reveal", 1, 1.0)


def stub(context=100, prefixed=False, eos_rule="first", ids=True, batch_size=3):
    """A judge for which token v costs v nats, plus 100 a token of context that it was given."""
    return LanguageModelJudge(
        JudgeId("stub", "0", "float32", context, not ids, prefixed, eos_rule),
        vocab_size=50,
        next_nats=lambda rows: rows[:, 1:] + 100.0 * torch.arange(1, rows.shape[1]),
        encode=lambda text: [int(word) for word in text.split()],
        eos_id=EOS,
        start_id=7,
        batch_size=batch_size,
    )


def by_rule(rows):
    """MDLM's weights, written as its authors describe them."""
    return (((rows == EOS).cumsum(-1) == 1) | (rows != EOS))[:, 1:]


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        ([5, 6, 7], [1, 1, 1]),
        (
            [5, 0, 7, 0, 0, 8],
            [1, 1, 1, 0, 0, 1],
        ),  # the first EOS, none of the others, text after them
        (
            [0, 6, 0, 7],
            [1, 1, 0, 1],
        ),  # the row's own first token is never scored, so no EOS counts here
        ([0], [1]),
    ],
)
def test_the_eos_rule_by_hand(row, counted):
    assert eos_weight(torch.tensor(row), EOS).tolist() == [bool(c) for c in counted]


def test_the_eos_rule_in_scores():
    rows = torch.tensor([[5, 0, 7, 0], [0, 6, 0, 7], [5, 6, 7, 8], [0, 0, 0, 0]])
    nats = rows[:, 1:] + 100.0 * torch.arange(1, 4)
    first = stub()(rows)
    assert first.tokens.tolist() == by_rule(rows).sum(1).tolist() == [2, 2, 3, 0]
    assert first.nats.tolist() == (nats * by_rule(rows)).sum(1).tolist()
    everything = stub(eos_rule="all")(rows)
    assert (
        everything.nats.tolist() == nats.sum(1).tolist() and everything.tokens.tolist() == [3] * 4
    )


def test_a_start_token_makes_the_first_token_count_and_is_not_an_eos():
    rows = torch.tensor([[5, 6], [0, 6]])
    scores = stub(prefixed=True)(rows)
    assert scores.tokens.tolist() == [2, 2]
    assert scores.nats.tolist() == [5 + 6 + 300, 0 + 6 + 300]


def test_a_long_text_is_scored_whole_and_its_last_window_is_full():
    row = torch.arange(10, 20)[None]  # nine targets
    scores = stub(context=4)(row)
    assert scores.tokens.tolist() == [9]
    contexts = [
        1,
        2,
        3,
        4,
        1,
        2,
        3,
        4,
        4,
    ]  # a third window would give the last token a context of one
    assert scores.nats.tolist() == [sum(range(11, 20)) + 100 * sum(contexts)]
    late = torch.tensor([[5, 6, 0, 8, 9, 0, 8, 9]])  # one EOS a text, not a window
    assert stub(context=3)(late).tokens.tolist() == [6]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_no_text_is_dropped_and_none_sees_its_neighbours(batch_size):
    texts = ["5 6 7", "", "9", "8 9 10 11 12 13", "5 0 6 0 7"]
    scores = stub(ids=False, batch_size=batch_size)(texts)
    assert scores.tokens.tolist() == [2, 0, 0, 5, 3]
    assert scores.nats.tolist() == [313, 0, 0, 9 + 10 + 11 + 12 + 13 + 1500, 13 + 700]
    assert scores.bytes.tolist() == [len(text) for text in texts]


def test_what_a_judge_cannot_read_is_refused():
    with pytest.raises(ValueError, match=r"samples.texts"):
        stub(ids=False)(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="ids"):
        stub()(["5 6"])
    with pytest.raises(ValueError, match=r"0 \.\. 49, got 1 \.\. 50"):
        stub()(torch.tensor([[1, 50]]))
    with pytest.raises(ValueError, match=r"judge ours .*tokenizer"):
        judges.causal_judge(lambda ids: None, 5, None, {}, name="ours", context=8)


def test_perplexity_pools_and_bits_per_byte_count_bytes():
    scores = Scores(
        torch.tensor([2.0, 30.0]).double(), torch.tensor([1, 10]), torch.tensor([4, 12])
    )
    assert judges.perplexity(scores).value == pytest.approx(math.exp(32 / 11))
    assert judges.bits_per_byte(scores).value == pytest.approx(32 / 16 / math.log(2))
    with pytest.raises(ValueError, match="needs texts"):
        judges.bits_per_byte(Scores(scores.nats, scores.tokens))
    measure = generative_perplexity(["5 0 6", "7 8"], stub(ids=False))
    assert measure.n == 2 and "stub" in measure.unit
    with pytest.raises(ValueError, match=r"0 samples|at least one"):
        generative_perplexity(["5"], stub(ids=False))


class Letters:
    eos_id, bos_id = 0, None

    def encode(self, text, specials=False):
        assert specials  # else the EOS of a decoded sample would be spelt out and scored as text
        return [ord(letter) - ord("a") for letter in text]


def test_a_model_of_this_library_scores_ids_and_texts_equally():
    torch.manual_seed(0)
    law = torch.randn(5, 5).double().log_softmax(-1)
    predictor = lambda ids: Prediction.from_log_p(law[ids])  # noqa: E731
    make = lambda ids: judges.causal_judge(  # noqa: E731
        predictor, 5, Letters(), {"w": law}, name="ours", context=8, ids=ids, batch_size=2
    )
    ids, texts = torch.tensor([[1, 2, 0, 3], [2, 0, 1, 0], [4, 4, 3, 1]]), ["bcad", "caba", "eedb"]
    by_ids, by_texts = make(True)(ids), make(False)(texts)
    expected = -(law[ids[:, :-1], ids[:, 1:]] * by_rule(ids)).sum(1)
    torch.testing.assert_close(by_ids.nats, expected)
    torch.testing.assert_close(by_texts.nats, expected)
    assert (
        make(True).identity.revision == make(False).identity.revision
        and make(False).identity.dtype == "float64"
    )
    assert make(True).identity != make(False).identity


def test_the_digest_is_of_names_and_bits():
    weights = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    digest = judges.weights_digest(weights)
    assert digest == judges.weights_digest(dict(reversed(weights.items()))) and len(digest) == 16
    assert digest != judges.weights_digest(weights | {"a": torch.tensor([1.0, 1.0, 1.0000001])})
    assert judges.weights_dtype(weights) == "bfloat16+float32"


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<|endoftext|>", "the", "cat", "sat", "on", "mat", "[UNK]"]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=7,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = GPT2LMHeadModel(config).eval()
    directory = tmp_path_factory.mktemp("judges") / "tiny-gpt2"
    network.half().save_pretrained(directory)  # a judge works in float32, whatever the file holds
    tokenizer.save_pretrained(directory)
    return str(directory), network.float()


def test_a_hugging_face_model_is_a_judge(tiny_gpt2):
    directory, network = tiny_gpt2
    texts = [
        "the cat sat <|endoftext|> on the <|endoftext|> mat",
        "on the mat",
        "cat",
        "the dog sat on the mat",
    ]
    rows = [[1, 2, 3, 0, 4, 1, 0, 5], [4, 1, 5], [2], [1, 6, 3, 4, 1, 5]]
    judge = huggingface_judge(directory, batch_size=3)
    scores = judge(texts)
    for row, nats, tokens in zip(rows, scores.nats, scores.tokens, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            log_p = network(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        assert nats == pytest.approx(float(-(log_p * by_rule(ids)).sum()), abs=1e-4)
        assert tokens == by_rule(ids).sum()
    assert scores.tokens.tolist() == [6, 2, 0, 5]
    stamp = judge.identity
    assert (stamp.name, stamp.dtype, stamp.context, stamp.retokenised) == (
        "tiny-gpt2",
        "float32",
        12,
        True,
    )
    with torch.no_grad():
        states = [network.transformer(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    torch.testing.assert_close(judge.features(texts), torch.stack(states), atol=1e-4, rtol=1e-4)
    by_ids = huggingface_judge(directory, ids=True)
    assert by_ids(torch.tensor([rows[1]])).nats[0] == pytest.approx(float(scores.nats[1]), abs=1e-5)
    assert by_ids.identity.revision == stamp.revision
    for context in (0, 1, 13):
        with pytest.raises(ValueError, match=rf"^context .*got {context}, want 2 \.\. 12"):
            huggingface_judge(directory, context=context)


def test_a_text_longer_than_the_judge_reads_is_scored_whole(tiny_gpt2):
    judge = huggingface_judge(tiny_gpt2[0])
    scores = judge(["the cat sat on the mat " * 6])
    assert scores.tokens.tolist() == [35] and torch.isfinite(scores.nats).all()


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory):
    """A directory like Meta's: the tokenizer adds BOS and does not know <|endoftext|>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<|begin_of_text|>", "<|end_of_text|>", "the", "cat", "sat", "on", "mat", "[UNK]"]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", None, [("<|begin_of_text|>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        unk_token="[UNK]",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    network = LlamaForCausalLM(config).eval()
    directory = tmp_path_factory.mktemp("judges") / "tiny-llama"
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory), network, tokenizer


def test_the_rule_of_sdtt(tiny_llama):
    """As its released code for Llama 3: EOS removed, stripped, BOS first, mean over texts."""
    directory, network, tokenizer = tiny_llama
    texts = [
        "<|endoftext|> the cat sat <|endoftext|> on",
        "mat",
        "the dog sat on the mat the cat sat\n",
    ]
    means = []
    for text in texts:
        ids = tokenizer(text.replace("<|endoftext|>", "").strip(), return_tensors="pt")["input_ids"]
        assert ids[0, 0] == 0
        with torch.no_grad():
            log_p = network(ids).logits.log_softmax(-1)
        means.append(-log_p[0, :-1].gather(-1, ids[0, 1:, None]).mean())
    judge = sdtt_judge(directory, batch_size=2)
    measured = generative_perplexity(texts, judge)
    assert measured.value == pytest.approx(float(torch.stack(means).mean().exp()), rel=1e-5)
    assert judge(texts).tokens.tolist() == [4, 1, 9]
    assert judge(texts).bytes.tolist() == [
        len("the cat sat  on"),
        3,
        len("the dog sat on the mat the cat sat"),
    ]
    usual = huggingface_judge(directory, batch_size=2)
    assert usual.identity != judge.identity and generative_perplexity(
        texts, usual
    ).value != pytest.approx(measured.value, 0.01)
    assert (judge.identity.prefixed, judge.identity.eos_rule, judge.identity.average) == (
        True,
        "removed",
        "texts",
    )
    assert judge.identity.context == 2048 and usual.identity.context == 1024, (
        "SDTT reads a text in one piece"
    )
    assert unmask.judge(f"sdtt:{directory}", None, length=16).identity == judge.identity
    empty = generative_perplexity([*texts, "<|endoftext|>"], judge)
    assert empty.value == pytest.approx(measured.value), "a text without a token has no mean"


@pytest.mark.parametrize("rule", [sdtt_judge, huggingface_judge])
def test_a_length_of_zero_is_not_a_missing_length(tiny_llama, tmp_path, rule):
    directory = shutil.copytree(tiny_llama[0], tmp_path / "zero")
    config = json.loads((directory / "config.json").read_text()) | {"max_position_embeddings": 0}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"context .*got 0"):
        rule(str(directory))


def test_the_rule_of_sdtt_needs_bos(tiny_gpt2, tmp_path):
    directory = shutil.copytree(tiny_gpt2[0], tmp_path / "no-bos")
    with pytest.raises(ValueError, match="judge no-bos has no BOS"):
        sdtt_judge(str(directory))


def test_a_row_by_the_rule_of_sdtt_says_so_and_its_interval_is_over_texts(tiny_llama):
    judge = sdtt_judge(tiny_llama[0])
    protocol = EvaluationProtocol(judge.identity, 4, 2, "float64", "data", "0")
    texts = ["the cat sat on the mat", "on"]
    measured = measure_row(
        "row",
        not_drawn(torch.tensor([[0] * 4, [1] * 4]), lambda ids: texts[ids[0]]),
        judge,
        protocol,
        SETTING,
    )
    assert measured.samples["tokens"] == [1, 1]
    assert measured.measures["gen_ppl"].value == pytest.approx(
        math.exp(sum(measured.samples["nats"]) / 2)
    )
    assert measured.measures["bits_per_byte"].value == pytest.approx(
        float(judge(texts).nats.sum()) / math.log(2) / len("".join(texts))
    )
    words = protocol_words(protocol, [0])
    assert "start token before the text, EOS removed, mean over texts" in words
    assert Row.from_json(measured.to_json()) == measured


def test_a_judge_of_ours_reads_no_more_than_it_was_trained_on():
    """A text of four trained lengths scores as its four windows do, each behind the start token."""
    judge = unmask.judge("unmask:judge", unmask.load("unmask:teacher").tokenizer, length=512)
    assert judge.identity.context == 128
    rows = torch.randint(1, 900, (2, 512), generator=torch.Generator().manual_seed(0))
    inside = unmask.judge("unmask:judge", unmask.load("unmask:teacher").tokenizer, length=128)
    parts = inside(rows[:, :128])
    whole = judge(rows)
    assert whole.tokens.tolist() == [512, 512]
    torch.testing.assert_close(judge(rows[:, :128]).nats, parts.nats)
    with pytest.raises(ValueError, match=r"^context .*got 2049, want 2 \.\. 2048"):
        judges.check_context(2049, 2048, "SmolLM2")


def test_no_code_of_a_judges_directory_is_run(tiny_gpt2, tmp_path):
    """Not even where somebody says yes on the standard input."""
    directory, mark = tmp_path / "judge", tmp_path / "was-here"
    shutil.copytree(tiny_gpt2[0], directory)
    code = f"open({str(mark)!r}, 'w').close()\n"
    code += "from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer\n"
    code += (
        "class C(GPT2Config): model_type = 'strange'\nclass M(GPT2LMHeadModel): config_class = C\n"
    )
    code += "class T(GPT2Tokenizer): pass\n"
    (directory / "strange.py").write_text(code)
    config = json.loads((directory / "config.json").read_text())
    maps = {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}
    (directory / "config.json").write_text(
        json.dumps(config | {"model_type": "strange", "auto_map": maps})
    )
    tokenizer_config = json.loads((directory / "tokenizer_config.json").read_text())
    tokenizer_config |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["strange.T", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (directory / "tokenizer.json").rename(directory / "elsewhere.json")
    script = (
        "import sys, unmask; unmask.generative_perplexity(['the cat'], unmask.judge(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(directory)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, input="y\ny\ny\n", capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode != 0 and "trust_remote_code" in done.stderr
    assert not mark.exists()
