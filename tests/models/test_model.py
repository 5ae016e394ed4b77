"""Models as files: public layouts give the published numbers, our files come back equal."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from torch import Tensor

import unmask
from reference import float32_log_softmax_error, loss_uniform_rate
from unmask.data.tokenizers import Tokenizer, train_bpe
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial
from unmask.models.checkpoints import CheckpointError
from unmask.models.denoiser import CausalPredictor, NetworkDenoiser
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, Model, causal_model, diffusion_model, load
from unmask.prediction import Prediction
from unmask.types import SoftTokens

GOLDEN = Path(__file__).parents[1] / "golden"
LOG_LINEAR = LogLinear()
CKPT = GOLDEN / "lightning_mdlm" / "mdlm.ckpt"


def expected(folder: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / folder / "expected.safetensors")


def denoiser(path: str | Path, **options: Any) -> Model:
    model = load(path, **options)
    assert isinstance(model, Model)
    return model


def close(got: Tensor, want: Tensor) -> None:
    """Equal to rounding through two blocks of width 48 in float32: 1e-4.

    About 8 products follow one another, with sums of up to 192 terms of order 1; each is exact to
    192 x 2^-24 in any order.
    """
    assert want.abs().max() > 0.1 and got.shape == want.shape
    assert (got - want).abs().max() < 1e-4


# --- the public layouts


@pytest.mark.processor
@pytest.mark.parametrize("folder", ["hub_mdlm", "hub_sdtt"])
def test_mdlm_and_sdtt_directories(folder: str) -> None:
    model, want = denoiser(GOLDEN / folder), expected(folder)
    close(model.network(want["zt"]), want["logits"])
    close(model.network(want["zt"], want["sigma"]), want["logits_with_sigma"])
    rows = model.denoiser(want["zt"], torch.exp(-want["sigma"])).log_p(want["zt"] == 37)
    close(rows[:, :37], want["log_probs_masked"][:, :37])
    assert bool((rows[:, 37] == -1e6).all())
    assert (
        model.process == MaskedProcess(38, 37)
        and model.schedule == LogLinear(1e-3)
        and model.tokenizer is None
    )
    assert (
        not model.denoiser.sees_alpha and not model.denoiser.training and not model.network.training
    )
    assert model.network is model.denoiser.network
    assert model.network.shape == Shape(
        38, 24, width=48, blocks=2, heads=3, cond_dim=16
    )  # its config says 129


@pytest.mark.processor
def test_duo_directory() -> None:
    model, want = denoiser(GOLDEN / "hub_duo"), expected("hub_duo")
    close(model.network(want["zt"], want["sigma"]), want["logits"])
    close(model.network(want["soft_input"], want["sigma"]), want["soft_logits"])
    assert model.process == UniformProcess(37) and model.schedule == LogLinear(1e-3)
    assert model.denoiser.sees_alpha and model.denoiser.mask_id is None
    alpha = want["alpha_t"]
    prediction = model.denoiser(want["zt"], alpha)
    close(prediction.log_p(), torch.log_softmax(want["logits"], -1))
    posterior = model.process.posterior(
        prediction.log_p().exp().double(), want["zt"], alpha, want["alpha_s"]
    )
    assert (posterior - want["posterior"]).abs().max() < 1e-5


@pytest.mark.processor
def test_duos_numbers_in_float64() -> None:
    """Duo's own code gives this bound and posterior; and the bound through our network in float32.

    Theirs are float64 formulae of a law that was rounded to float32 on some other processor. Only
    the file knows its last bits, so they are read from it: each entry of the posterior names its
    probability. Of that law our posterior differs by 8 roundings at most, and it is one of float32
    numbers within the error of a float32 log softmax. Their bound reads the logarithm of these
    numbers before its exponential was rounded: by 2^-23 of each.
    """
    model, want = denoiser(GOLDEN / "hub_duo"), expected("hub_duo")
    alpha, slope, z, x0 = (
        want["alpha_t"].double(),
        want["dalpha_t"].double(),
        want["zt"],
        want["x0"],
    )
    got = duo_law(want["posterior"], z, alpha, want["alpha_s"].double())
    law = got.float().double()
    assert ((got - law).abs() <= 2.0**-40 * law).all(), "float32 numbers, not others to 2^-24"
    exact = torch.log_softmax(want["logits"].double(), dim=-1)
    assert ((law.log() - exact).abs() <= float32_log_softmax_error(exact) + 2.0**-23).all()
    assert (
        model.process.posterior(law, z, alpha, want["alpha_s"].double()) - want["posterior"]
    ).abs().max() < 1e-15
    theirs = law.log().requires_grad_()
    bound = duo_bound(theirs, x0, z, alpha, slope)
    (change,) = torch.autograd.grad(bound.sum(), theirs)
    assert ((bound - want["nll_per_token"]).abs() <= 1.01 * 2.0**-23 * change.abs().sum(-1)).all()
    ours = model.process.nelbo(Prediction.from_log_p(exact), x0, z, alpha, slope)
    assert (ours - duo_bound(exact, x0, z, alpha, slope)).abs().max() < 1e-9
    through = model.process.nelbo(model.denoiser(z, want["alpha_t"]), x0, z, alpha, slope)
    assert through.dtype == torch.float32
    close(through.double(), want["nll_per_token"])


def duo_law(posterior: Tensor, z: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """p(x0) [B, L, K] whose Eq. 3 of Duo is `posterior`, solved for p(z), then for the others."""
    size, at = posterior.shape[-1], z[..., None]
    alpha_t, alpha_s = alpha_t[:, None, None], alpha_s[:, None, None]
    stray = (1 - alpha_t / alpha_s) * (1 - alpha_s) / size
    of_z = posterior.gather(-1, at)
    p_z = (of_z * (1 - alpha_t) - (alpha_t / alpha_s - alpha_t) - stray) / (
        alpha_t * size + alpha_s - alpha_t - of_z * alpha_t * size
    )
    others = (posterior * (alpha_t * size * p_z + 1 - alpha_t) - stray) / (alpha_s - alpha_t)
    return others.scatter(-1, at, p_z)


def duo_bound(log_p: Tensor, x0: Tensor, z: Tensor, alpha: Tensor, slope: Tensor) -> Tensor:
    """Duo's Eq. 12 as in its code, one row at a time."""
    rates = [loss_uniform_rate(log_p[b], x0[b], z[b], float(alpha[b])) for b in range(len(log_p))]
    return -slope[:, None] * torch.stack(rates)


@pytest.mark.processor
def test_a_mixture_of_all_tokens_is_duos_soft_input() -> None:
    """softmax(input) as weights of all V tokens, in any order, gives equal logits and gradients."""
    network, want = denoiser(GOLDEN / "hub_duo").network, expected("hub_duo")
    soft, sigma = want["soft_input"], want["sigma"]
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    tokens = order.expand(soft.shape)
    mixture = SoftTokens(tokens, torch.softmax(soft, dim=-1).gather(-1, tokens))
    close(network(mixture, sigma), want["soft_logits"])
    factor = torch.randn(want["soft_logits"].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for given in (mixture, soft):
        network.zero_grad()
        logits = network(given, sigma)
        (logits * factor).sum().backward()
        results.append(
            (logits.detach(), {name: p.grad.clone() for name, p in network.named_parameters()})
        )
    (one, mine), (two, theirs) = results
    assert (one - two).abs().max() < 1e-5
    for name in theirs:
        assert (mine[name] - theirs[name]).abs().max() < 1e-4 * theirs[name].abs().max() + 1e-6, (
            name
        )
    assert bool(theirs["vocab_embed.embedding"].any(-1).all())


def test_a_mixture_of_one_token_is_that_token() -> None:
    """Weight 0 adds nothing. A masked denoiser and a mixture of two shapes are refused."""
    model, want = denoiser(GOLDEN / "hub_duo"), expected("hub_duo")
    z, alpha = want["zt"], want["alpha_t"]
    pair = torch.stack([(z + 5) % 37, z], dim=-1)
    weights = torch.tensor([0.0, 1.0]).expand(pair.shape)
    one, two = (model.denoiser(given, alpha).log_p() for given in (SoftTokens(pair, weights), z))
    assert (one - two).abs().max() < 1e-6
    frozen = model.denoiser.frozen()(SoftTokens(pair, weights), alpha).log_p()
    assert (frozen - two).abs().max() < 1e-6
    masked_denoiser = denoiser(GOLDEN / "hub_mdlm").denoiser
    with pytest.raises(ValueError, match="z holds soft tokens"):
        masked_denoiser(SoftTokens(pair, weights), alpha)
    with pytest.raises(
        ValueError, match=r"soft tokens have .* got .*24, 2\) and .*24\), want both \[B, L, k\]"
    ):
        model.denoiser(SoftTokens(pair, weights[..., 0]), alpha)
    with pytest.raises(ValueError, match=r"token ids .* got .* to 37, want 0 to 36"):
        model.denoiser(SoftTokens(pair.index_fill(2, torch.tensor(0), 37), weights), alpha)


def test_autoregressive_directory() -> None:
    model, want = load(GOLDEN / "hub_ar"), expected("hub_ar")
    assert isinstance(model, CausalModel) and model.network is model.predictor.network
    close(model.network(want["x0"]), want["logits"])
    law = torch.log_softmax(
        want["logits"][..., :-1], -1
    )  # Duo's code never predicts the last row, its MASK
    close(model.predictor(want["x0"]).log_p()[..., :-1], law)
    assert bool((model.predictor(want["x0"]).log_p()[..., -1] == -1e6).all())
    assert not model.predictor.training


@pytest.mark.parametrize("path", [CKPT, CKPT.parent])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_lightning_checkpoint(path: Path, weights: str) -> None:
    want = expected("lightning_mdlm")
    close(denoiser(path, weights=weights).network(want["zt"]), want[f"logits_{weights}"])
    assert (want["logits_ema"] - want["logits_raw"]).abs().max() > 1e-2


def test_a_loaded_network_can_be_trained_and_owns_its_weights(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "hub_mdlm", tmp_path / "model")
    network = denoiser(tmp_path / "model").network
    before = [weight.detach().clone() for weight in network.parameters()]
    with open(
        tmp_path / "model" / "model.safetensors", "r+b"
    ) as file:  # overwritten in place, as cp does
        file.write(b"\xff" * 300_000)
    assert all(map(torch.equal, network.parameters(), before))
    assert all(
        weight.requires_grad and weight.dtype == torch.float32 for weight in network.parameters()
    )
    network.train()(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert network.vocab_embed.embedding.grad is not None
    assert network.shape.dropout == 0.1


def test_loading_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    load(GOLDEN / "hub_mdlm")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("folder", ["hub_mdlm", "hub_duo", "hub_ar"])
def test_a_network_of_half_precision_can_be_sampled(folder: str) -> None:
    """A folded conditioning has the precision of the residual stream."""
    model = load(GOLDEN / folder)
    size = model.vocab_size
    model.network.to(torch.bfloat16)
    drawn = unmask.sample(model, n=3, length=8, steps=4, seed=0)
    assert drawn.tokens.shape == (3, 8) and bool(
        ((drawn.tokens >= 0) & (drawn.tokens < size)).all()
    )


# --- our own directories


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["to be or not to be"], 260)


def network(causal: bool = False, vocab_size: int = 260, seed: int = 0) -> DiT:
    made = DiT(
        Shape(
            vocab_size,
            length=12,
            width=16,
            blocks=2,
            heads=2,
            cond_dim=8,
            dropout=0.2,
            causal=causal,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return made.eval()


def masked(
    schedule: NoiseSchedule = LOG_LINEAR, tokenizer: Tokenizer | None = None, mask_id: int = 259
) -> Model:
    net = network()
    return Model(
        NetworkDenoiser(net, mask_id, False).eval(),
        MaskedProcess(260, mask_id),
        schedule,
        tokenizer,
    )


def uniform() -> Model:
    net = network(seed=2)
    return Model(NetworkDenoiser(net, None, True).eval(), UniformProcess(260), Cosine(0.01), None)


def same_weights(a: DiT, b: DiT) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize(
    "model",
    [masked(), masked(Polynomial(3.0, 0.0), mask_id=5), uniform()],
    ids=["masked", "cubic", "uniform"],
)
def test_a_saved_model_comes_back_equal(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "runs" / "model", steps=3, note="ä")
    back = denoiser(tmp_path / "runs" / "model")
    assert same_weights(back.network, model.network) and back.network.shape == model.network.shape
    assert (back.process, back.schedule, back.tokenizer) == (model.process, model.schedule, None)
    assert (back.denoiser.mask_id, back.denoiser.sees_alpha) == (
        model.denoiser.mask_id,
        model.denoiser.sees_alpha,
    )
    content = json.loads((tmp_path / "runs" / "model" / "config.json").read_text("utf-8"))
    assert (
        content["card"] == {"steps": 3, "note": "ä"}
        and content["unmask_version"] == unmask.__version__
    )
    assert sorted(os.listdir(tmp_path / "runs")) == ["model"]


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (masked(), "masked", ("Model: masked diffusion", "MASK 259", "no card")),
        (uniform(), "uniform", ("Model: uniform-state diffusion", "no MASK", "no card")),
        (
            CausalModel(
                CausalPredictor(network(causal=True)),
                None,
                card={"recipe": {"name": "judge"}, "steps": 20},
            ),
            "autoregressive",
            ("CausalModel: autoregressive", "260 tokens", "recipe 'judge', 20 steps"),
        ),
    ],
    ids=["masked", "uniform", "autoregressive"],
)
def test_all_models_have_one_face(
    model: Model | CausalModel, kind: str, words: tuple[str, ...]
) -> None:
    """Facts of the network, and a repr of three lines: kind and size; vocabulary; origin."""
    count = sum(weight.numel() for weight in model.network.parameters())
    assert (model.kind, model.length, model.vocab_size) == (kind, 12, 260)
    assert model.draws_in_steps == (kind != "autoregressive")
    assert model.completes_texts == (kind == "masked")
    assert (model.parameters, model.precision) == (count, "float32")
    assert model.module.network is model.network and model.device.type == "cpu"
    lines = repr(model).splitlines()
    assert f"{count:,} parameters" in lines[0] and "length: 12" in lines[1]
    assert len(lines) == 3 and all(map(str.__contains__, lines, words))


def test_a_model_of_the_wrong_kind_is_refused_in_the_words_of_the_caller() -> None:
    diffusion, causal = masked(), CausalModel(CausalPredictor(network(causal=True)), None)
    assert diffusion_model(diffusion, "") is diffusion and causal_model(causal, "") is causal
    with pytest.raises(ValueError, match="model is autoregressive"):
        diffusion_model(causal, "model is autoregressive")
    with pytest.raises(ValueError, match="judge denoises"):
        causal_model(diffusion, "judge denoises")


def test_a_model_moves_to_a_device_in_place() -> None:
    model = masked()
    assert model.to("meta") is model and model.device.type == "meta"
    with pytest.raises(ValueError, match=r"device .* got mars"):
        masked().to("mars")


@pytest.mark.parametrize("mask_id", [None, 259])
def test_a_saved_autoregressive_model_comes_back_equal(mask_id: int | None, tmp_path: Path) -> None:
    net = network(causal=True)
    CausalModel(CausalPredictor(net, mask_id), None).save(tmp_path / "judge")
    back = load(tmp_path / "judge")
    assert isinstance(back, CausalModel) and same_weights(back.network, net)
    assert back.predictor.mask_id == mask_id and back.network.shape == dataclasses.replace(
        net.shape, cond_dim=1
    )


def test_raw_weights_are_kept_beside_the_average(tmp_path: Path) -> None:
    model, raw = masked(), network(seed=1)
    model.save(tmp_path / "model", raw=raw)
    assert same_weights(denoiser(tmp_path / "model").network, model.network)
    assert same_weights(denoiser(tmp_path / "model", weights="raw").network, raw)
    with pytest.raises(ValueError, match="raw has names or shapes"):
        model.save(tmp_path / "model", raw=network(vocab_size=261))


def test_parameters_may_be_halved_but_not_the_rotary_angles(tmp_path: Path) -> None:
    model = masked()
    model.save(tmp_path / "model", raw=network(seed=1), dtype=torch.bfloat16)
    for file in ("model.safetensors", "raw.safetensors"):
        kinds = {
            name: tensor.dtype for name, tensor in load_file(tmp_path / "model" / file).items()
        }
        assert kinds.pop("rotary_emb.inv_freq") == torch.float32 and set(kinds.values()) == {
            torch.bfloat16
        }
    back = denoiser(tmp_path / "model").network
    weight = model.network.vocab_embed.embedding
    assert back.vocab_embed.embedding.dtype == torch.float32
    assert torch.equal(back.vocab_embed.embedding, weight.bfloat16().float())
    assert weight.dtype == torch.float32


def test_the_tokenizer_comes_back_and_must_fit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    masked(tokenizer=tokenizer).save(tmp_path / "model")
    back = denoiser(tmp_path / "model").tokenizer
    assert back is not None and back.digest == tokenizer.digest and back.mask_id == 259
    train_bpe(["a"], 258).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"258 tokens and the model 260"):
        load(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    change_config(tmp_path / "model", mask_id=3)
    with pytest.raises(
        CheckpointError, match=r"mask_id is 3 in the config and 259 in the tokenizer"
    ):
        load(tmp_path / "model")


def test_saving_again_replaces_the_model_and_nothing_else(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    masked(tokenizer=tokenizer).save(tmp_path / "model", raw=network(seed=1))
    (tmp_path / "model" / "README.md").write_text("mine")
    uniform().save(tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert denoiser(tmp_path / "model").process == UniformProcess(260)
    assert os.listdir(tmp_path) == ["model"]


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_leaves_the_old_model(size: int, tmp_path: Path) -> None:
    model = masked()
    model.save(tmp_path / "model")
    old = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    with (
        little_room(size),
        pytest.raises(OSError, match="could not be written; its old contents are unchanged"),
    ):
        uniform().save(tmp_path / "model")
    with little_room(size), pytest.raises(OSError, match="could not be written"):
        uniform().save(tmp_path / "new")
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == old
    assert os.listdir(tmp_path) == ["model"]


def test_remains_of_a_killed_save_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".tmp-model").mkdir()
    (tmp_path / ".tmp-model" / "raw.safetensors").write_text("half")
    masked().save(tmp_path / "model")
    assert (
        os.listdir(tmp_path) == ["model"] and not (tmp_path / "model" / "raw.safetensors").exists()
    )


def test_a_save_killed_at_any_time_leaves_a_complete_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill before any rename, weights and config belong to one save."""
    first, second = masked(), masked()
    with torch.no_grad():
        second.network.vocab_embed.embedding.add_(1)
    rename, seen = Path.rename, []

    def watched(self: Path, target: Path) -> Path:
        place = next(
            place for place in (tmp_path / "model", tmp_path / ".old-model") if place.exists()
        )
        card = json.loads((place / "config.json").read_text("utf-8"))["card"]
        seen.append((card["save"], denoiser(place).network))
        return rename(self, target)

    first.save(tmp_path / "model", save=1)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    monkeypatch.setattr(Path, "rename", watched)
    second.save(tmp_path / "model", save=2)
    assert [save for save, _ in seen] == [1, 1, 2], (
        "aside, into place, and the file that is none of ours"
    )
    assert all(same_weights(net, (first if save == 1 else second).network) for save, net in seen)
    assert (
        os.listdir(tmp_path) == ["model"]
        and (tmp_path / "model" / "notes.txt").read_text() == "mine"
    )


def test_the_error_after_a_killed_save_names_the_backup(tmp_path: Path) -> None:
    masked().save(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".old-model")
    with pytest.raises(CheckpointError, match=r"\.old-model: rename it to model"):
        load(tmp_path / "model")


def test_cards_that_are_not_json_are_refused(tmp_path: Path) -> None:
    for card in (object(), float("nan")):
        with pytest.raises(ValueError, match=r"^card .*JSON"):
            masked().save(tmp_path / "model", value=card)
    assert os.listdir(tmp_path) == []


# --- refusals


def change_config(directory: Path, **values: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    masked().save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(directory / "model.safetensors")), directory / "model.safetensors")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model: got nothing"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"got pytorch_model\.bin"):
        load(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        shutil.copy(CKPT, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"got a\.ckpt, b\.ckpt.*exactly one \.ckpt file"):
        load(tmp_path)


def test_missing_damaged_and_other_files_are_refused(saved: Path, tmp_path: Path) -> None:
    weights = (saved / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*config\.json"):
        load(saved / "model.safetensors")
    (saved / "model.safetensors").rename(saved / "weights.ckpt")
    with pytest.raises(CheckpointError, match=r"weights\.ckpt .*\.ckpt"):
        load(saved)
    (saved / "weights.ckpt").unlink()
    for share in (0.0, 0.01, 0.5, 0.999):
        (saved / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
            load(saved)
    (saved / "model.safetensors").write_bytes(weights)
    for text, why in (
        ("{", "is not valid JSON"),
        ("[]", "got list, want a JSON object"),
        ("\xff", "is not valid JSON"),
    ):
        (saved / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=why):
            load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(saved)


def test_weights_must_fit_name_by_name_and_shape_by_shape(saved: Path) -> None:
    rewrite(
        saved,
        lambda tensors: {name: tensor for name, tensor in tensors.items() if ".0." not in name},
    )
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    assert "missing" in str(caught.value) and str(saved) in str(caught.value)
    masked().save(saved)
    rewrite(saved, lambda tensors: tensors | {f"extra.{i:02}": torch.ones(1) for i in range(12)})
    with pytest.raises(CheckpointError, match=r"12 unknown: extra\.00, .*extra\.09$"):
        load(saved)
    masked().save(saved)
    rewrite(saved, lambda tensors: tensors | {"output_layer.linear.bias": torch.ones(5)})
    with pytest.raises(
        CheckpointError,
        match=r"1 of the wrong shape: output_layer\.linear\.bias \(5,\), want \(260,\)",
    ):
        load(saved)


def test_weights_that_are_not_finite_are_named(saved: Path) -> None:
    for value in (float("nan"), float("inf")):
        masked().save(saved)
        rewrite(
            saved,
            lambda t, v=value: (
                t | {"blocks.1.mlp.0.bias": torch.full_like(t["blocks.1.mlp.0.bias"], v)}
            ),
        )
        with pytest.raises(
            CheckpointError, match=r"blocks\.1\.mlp\.0\.bias holds NaN or infinity"
        ) as caught:
            load(saved)
        assert str(caught.value).startswith(str(saved))


def test_missing_sets_of_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    for path in (saved, GOLDEN / "hub_mdlm"):
        with pytest.raises(ValueError, match="load with weights='ema'"):
            load(path, weights="raw")
    with pytest.raises(ValueError, match=r"weights .* got 'best', want 'ema' or 'raw'"):
        load(saved, weights="best")
    torch.save({"state_dict": network().state_dict()}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="load with weights='raw'"):
        load(tmp_path / "plain.ckpt")
    assert same_weights(denoiser(tmp_path / "plain.ckpt", weights="raw").network, network())
    torch.save(
        {"state_dict": network().state_dict(), "ema": {"shadow_params": [torch.ones(1)]}},
        tmp_path / "short.ckpt",
    )
    with pytest.raises(CheckpointError, match="EMA weights: got 1, want 30"):
        load(tmp_path / "short.ckpt")


def test_ema_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    net = network()
    shadow = [weight.detach() for weight in net.parameters()]
    shadow[0], shadow[1] = shadow[1], shadow[0]
    torch.save(
        {"state_dict": net.state_dict(), "ema": {"shadow_params": shadow}}, tmp_path / "a.ckpt"
    )
    with pytest.raises(CheckpointError, match=r"EMA in .* 2 of the wrong shape"):
        load(tmp_path / "a.ckpt")


def test_an_unavailable_device_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"device .* got"):
        load(saved, device="nonsense")
    assert denoiser(saved, device="meta").network.head.weight.is_meta


# --- the hub


def test_an_existing_path_wins_over_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    Path("org").mkdir()
    saved.rename("org/model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert isinstance(load("org/model"), Model)
    with pytest.raises(CheckpointError, match=r"revision 'main' .*org/model"):
        load("org/model", revision="main")
    with pytest.raises(CheckpointError, match=r"revision 'main' .*unmask:judge"):
        load("unmask:judge", revision="main")


def test_a_name_that_is_not_a_path_is_loaded_from_the_hub(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision))
        assert not any(".py" in pattern or ".bin" in pattern for pattern in allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert isinstance(load("someone/some-model", revision="v1"), Model)
    assert calls == [("someone/some-model", "v1")]


@pytest.mark.parametrize(
    "name", ["/no/such/model", "runs/demo/model", "./model", "mdlm.ckpt", "a b"]
)
def test_a_missing_path_is_not_looked_up_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load(name)


def test_without_a_network_the_error_says_so() -> None:
    """The client of the hub raises, because HF_HUB_OFFLINE is set for all tests."""
    with pytest.raises(CheckpointError, match=r"kuleshov-group/mdlm-owt.* hub .*cache"):
        load("kuleshov-group/mdlm-owt")


def test_errors_of_the_hub_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, words in (
        (errors.GatedRepoError, "accept its conditions"),
        (errors.RepositoryNotFoundError, "no repository has this name"),
        (errors.RevisionNotFoundError, "it has no revision 'v9'"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (ConnectionError, "the download failed"),
    ):
        error = kind.__new__(kind)  # their constructors differ between versions of the client

        def download(*args: object, error: Exception = error, **options: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(CheckpointError, match=words):
            load("someone/some-model", revision="v9")
