import math

import pytest
import torch

from unmask.evaluation import judges
from unmask.evaluation.judges import LanguageModelJudge, Scores, eos_weight, generative_perplexity
from unmask.evaluation.measure import Stamp
from unmask.prediction import Prediction

EOS = 0


def stub(context=100, prefixed=False, eos_rule="first", ids=True, batch_size=3):
    """A judge for which token v costs v nats, plus 100 a token of context that it was given."""
    return LanguageModelJudge(
        Stamp("stub", "0", "float32", context, not ids, prefixed, eos_rule),
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
        ([5, 0, 7, 0, 0, 8], [1, 1, 1, 0, 0, 1]),  # the first EOS, none of the others, text after them
        ([0, 6, 0, 7], [1, 1, 0, 1]),  # the row's own first token is never scored, so no EOS counts here
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
    assert everything.nats.tolist() == nats.sum(1).tolist() and everything.tokens.tolist() == [3] * 4


def test_a_start_token_makes_the_first_token_count_and_is_no_eos():
    rows = torch.tensor([[5, 6], [0, 6]])
    scores = stub(prefixed=True)(rows)
    assert scores.tokens.tolist() == [2, 2]
    assert scores.nats.tolist() == [5 + 6 + 300, 0 + 6 + 300]


def test_a_long_text_is_scored_whole_and_its_last_window_is_full():
    row = torch.arange(10, 20)[None]  # nine targets
    scores = stub(context=4)(row)
    assert scores.tokens.tolist() == [9]
    contexts = [1, 2, 3, 4, 1, 2, 3, 4, 4]  # a third window would give the last token a context of one
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
    with pytest.raises(ValueError, match="decode the samples first"):
        stub(ids=False)(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="ids"):
        stub()(["5 6"])
    with pytest.raises(ValueError, match=r"0 \.\. 49, got 1 \.\. 50"):
        stub()(torch.tensor([[1, 50]]))
    with pytest.raises(ValueError, match="no tokenizer"):
        judges.causal_judge(lambda ids: None, 5, None, {}, name="ours", context=8)


def test_perplexity_pools_and_bits_per_byte_count_bytes():
    scores = Scores(torch.tensor([2.0, 30.0]).double(), torch.tensor([1, 10]), torch.tensor([4, 12]))
    assert judges.perplexity(scores).value == pytest.approx(math.exp(32 / 11))
    assert judges.bits_per_byte(scores).value == pytest.approx(32 / 16 / math.log(2))
    with pytest.raises(ValueError, match="needs texts"):
        judges.bits_per_byte(Scores(scores.nats, scores.tokens))
    measure = generative_perplexity(["5 0 6", "7 8"], stub(ids=False))
    assert measure.n == 2 and "stub" in measure.unit
    with pytest.raises(ValueError, match="at least one"):
        generative_perplexity(["5"], stub(ids=False))


class Letters:
    eos_id, bos_id = 0, None

    def encode(self, text, specials=False):
        assert specials  # else the EOS of a decoded sample would be spelt out and scored as text
        return [ord(letter) - ord("a") for letter in text]


def test_our_own_model_scores_ids_and_texts_alike():
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
    assert make(True).stamp.revision == make(False).stamp.revision and make(False).stamp.dtype == "float64"
    assert make(True).stamp != make(False).stamp


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
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="[UNK]")
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
    texts = ["the cat sat <|endoftext|> on the <|endoftext|> mat", "on the mat", "cat", "the dog sat on the mat"]
    rows = [[1, 2, 3, 0, 4, 1, 0, 5], [4, 1, 5], [2], [1, 6, 3, 4, 1, 5]]
    judge = judges.huggingface_judge(directory, batch_size=3)
    scores = judge(texts)
    for row, nats, tokens in zip(rows, scores.nats, scores.tokens, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            log_p = network(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        assert nats == pytest.approx(float(-(log_p * by_rule(ids)).sum()), abs=1e-4)
        assert tokens == by_rule(ids).sum()
    assert scores.tokens.tolist() == [6, 2, 0, 5]
    stamp = judge.stamp
    assert (stamp.name, stamp.dtype, stamp.context, stamp.retokenised) == ("tiny-gpt2", "float32", 12, True)
    with torch.no_grad():
        states = [network.transformer(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    torch.testing.assert_close(judge.features(texts), torch.stack(states), atol=1e-4, rtol=1e-4)
    by_ids = judges.huggingface_judge(directory, ids=True)
    assert by_ids(torch.tensor([rows[1]])).nats[0] == pytest.approx(float(scores.nats[1]), abs=1e-5)
    assert by_ids.stamp.revision == stamp.revision
    with pytest.raises(ValueError, match=r"want 2 \.\. 12, got 13"):
        judges.huggingface_judge(directory, context=13)


def test_a_text_longer_than_the_judge_reads_is_scored_whole(tiny_gpt2):
    judge = judges.huggingface_judge(tiny_gpt2[0])
    scores = judge(["the cat sat on the mat " * 6])
    assert scores.tokens.tolist() == [35] and torch.isfinite(scores.nats).all()
