"""From a recipe to objects: every setting arrives, and settings that do not fit are refused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers as hf
import torch
from torch import nn

from toy_recipes import LENGTH, VOCABULARY, shrink
from unmask.data.tokenizers import Tokenizer, train_bpe
from unmask.diffusion.levels import random_order, spread_order
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import Cosine, GaussianArgmax, LogLinear, Polynomial
from unmask.models.denoiser import CausalPredictor, NetworkDenoiser
from unmask.models.model import CausalModel, Model, load
from unmask.objectives.autoregressive import NextToken
from unmask.objectives.consistency import Consistency
from unmask.objectives.curriculum import Curriculum
from unmask.objectives.nelbo import Nelbo
from unmask.objectives.rounds import Rounds
from unmask.objectives.sdtt import Sdtt
from unmask.recipes.build import Parts, build, decided, load_start
from unmask.recipes.catalog import recipe
from unmask.recipes.data import documents, tokenizer_of, training_data
from unmask.recipes.objective_settings import (
    AutoregressiveSettings,
    ConsistencySettings,
    CurriculumSettings,
    DistillationSettings,
    NelboSettings,
    SdttSettings,
)
from unmask.recipes.schema import DataSettings, Recipe, Schedule
from unmask.recipes.unused_settings import unused_lines

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def small(text: Path) -> Recipe:
    return shrink(recipe("demo-teacher"), text)


@pytest.fixture(scope="module")
def teacher(small: Recipe) -> Model:
    """A masked model with a tokenizer, whose head is not zero as it is at the start."""
    parts = build(small, tokenizer_of(small.data, documents(small.data).train))
    with torch.no_grad():
        nn.init.normal_(
            parts.student.network.head.weight, generator=torch.Generator().manual_seed(0)
        )
    return parts.model(copy.deepcopy(parts.student))


def wordlevel(*words: str) -> Tokenizer:
    """A tokenizer without MASK, as GPT-2's is; <|endoftext|> comes last."""
    vocabulary = {word: i for i, word in enumerate([*words, "<|endoftext|>"])}
    return Tokenizer(
        hf.Tokenizer(hf.models.WordLevel(vocabulary, unk_token=words[0])), {"eos": "<|endoftext|>"}
    )


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


# --- text


def test_schedules_by_name() -> None:
    assert Schedule("log-linear", 0.1).build() == LogLinear(0.1)
    assert Schedule("cosine", 0.2).build() == Cosine(0.2)
    assert Schedule("polynomial", 0.3, power=3.0).build() == Polynomial(3.0, 0.3)
    assert Schedule().build() == LogLinear(1e-3), "MDLM's"


# --- networks and objectives


@pytest.mark.processor
def test_a_masked_teacher(small: Recipe) -> None:
    plan = replace(small, schedule=Schedule("cosine"), objective=NelboSettings(t_min=0.01))
    tokenizer = training_data(plan).tokenizer
    parts = build(plan, tokenizer)
    process = MaskedProcess(VOCABULARY, mask_id=VOCABULARY - 1)
    assert parts.objective == Nelbo(process, Cosine(1e-3), 0.01) and parts.tokenizer is tokenizer
    assert isinstance(parts.student, NetworkDenoiser) and parts.student.mask_id == tokenizer.mask_id
    shape = parts.student.network.shape
    sizes = plan.network
    assert (shape.vocab_size, shape.length, shape.width) == (VOCABULARY, sizes.length, sizes.width)
    assert (shape.blocks, shape.heads, shape.cond_dim, shape.dropout) == (
        1,
        2,
        4,
        sizes.dropout,
    ) and not shape.causal
    assert parts.student.sees_alpha is sizes.sees_alpha is False
    method = build(replace(plan, network=replace(sizes, sees_alpha=True)), tokenizer).student
    assert method.sees_alpha


@pytest.mark.processor
@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_precision_is_the_recipes_or_the_faster_one(faster: str, small: Recipe) -> None:
    """The faster precision is given here. A loaded model computes in float32."""
    for downloads, expected in (
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("fastest", faster),
    ):
        plan = decided(replace(small, precision=downloads), lambda: faster == "bfloat16")
        parts = build(plan, None, vocab_size=9)
        assert parts.student.network.precision == parts.recipe.precision == expected
        assert parts.model(copy.deepcopy(parts.student)).network.precision == "float32"


def test_mask_is_a_separate_token(small: Recipe) -> None:
    """A tokenizer without MASK (GPT-2's) gets one more token, MASK, the last (MDLM: V = 50258)."""
    tokenizer = wordlevel("a", "b")
    parts = build(small, tokenizer)
    assert tokenizer.mask_id is None and tokenizer.eos_id == 2
    assert (parts.student.vocab_size, parts.student.mask_id) == (4, 3)
    assert parts.objective.process == MaskedProcess(4, 3)
    without = build(small, None, vocab_size=9)
    assert (without.student.vocab_size, without.student.mask_id, without.tokenizer) == (9, 8, None)
    with pytest.raises(ValueError, match="vocab_size is missing"):
        build(small, None)


def test_an_autoregressive_judge(small: Recipe) -> None:
    plan = replace(small, objective=AutoregressiveSettings())
    parts = build(plan, wordlevel("a", "b"))
    assert parts.objective == NextToken(start_id=2), "a text begins after <|endoftext|>"
    assert isinstance(parts.student, CausalPredictor) and parts.student.network.shape.causal
    assert parts.student.vocab_size == 3 and isinstance(
        parts.model(copy.deepcopy(parts.student)), CausalModel
    )
    assert build(plan, None, vocab_size=5).objective.start_id == 4


def test_weights_come_from_the_seed_alone(small: Recipe) -> None:
    before = torch.get_rng_state()
    one, same, other = (build(replace(small, seed=seed), None, 9).student for seed in (1, 1, -5))
    assert same_weights(one, same) and not same_weights(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_of_a_student_is_as_load_would_give_it(small: Recipe) -> None:
    parts = build(small, None, 9)
    model = parts.model(copy.deepcopy(parts.student.train()))
    assert same_weights(model.network, parts.student.network) and not model.network.training
    assert model.denoiser.network is model.network and model.process == MaskedProcess(9, 8)
    assert model.schedule == LogLinear() and model.network.compute_dtype == torch.float32
    assert not any(p.requires_grad for p in model.network.parameters())


# --- distillation


def settings(**changes: object) -> ConsistencySettings:
    return ConsistencySettings(round_steps=7, delta0=1 / 8, temperatures=(0.9, 0.7), **changes)


def distilled(small: Recipe, teacher: Model, method: DistillationSettings) -> Parts:
    return build(replace(small, objective=method), None, start=teacher)


def test_every_switch_reaches_the_objective(small: Recipe, teacher: Model) -> None:
    method = settings(
        direction="forward", revealed="none", coupling="independent", reduction="masked"
    )
    objective = distilled(small, teacher, method).objective
    assert isinstance(objective, Consistency)
    assert objective.rounds == Rounds(7, 1 / 8, (0.9, 0.7))
    assert (objective.direction, objective.revealed) == ("forward", "none")
    assert (objective.coupling, objective.reduction) == ("independent", "masked")
    assert objective.process == teacher.process and objective.schedule == teacher.schedule


def test_student_and_old_student_start_as_copies_of_the_teacher(
    small: Recipe, teacher: Model
) -> None:
    """Algorithm 1: theta- <- theta <- theta_init. The model that was given stays as it is."""
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    parts = distilled(small, teacher, settings())
    student, old = parts.student, parts.objective.teacher
    assert same_weights(student.network, teacher.network) and same_weights(old, student)
    places = [
        {p.data_ptr() for p in network.parameters()} for network in (student, old, teacher.network)
    ]
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]
    assert all(p.requires_grad for p in student.parameters()) and not any(
        p.requires_grad for p in old.parameters()
    )
    assert not old.training and not old.network.training
    assert parts.tokenizer is teacher.tokenizer and parts.schedule == teacher.schedule
    with torch.no_grad():
        student.network.head.bias.add_(1)
    assert all(
        torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items()
    )


def test_a_teacher_by_its_directory(small: Recipe, teacher: Model, tmp_path: Path) -> None:
    teacher.save(tmp_path / "model")
    plan = replace(small, objective=settings(teacher=str(tmp_path / "model")))
    retrained = tokenizer_of(small.data, documents(small.data).train)
    parts = build(plan, retrained)
    assert same_weights(parts.student.network, teacher.network), (
        "the same text gives the same tokenizer"
    )
    with pytest.raises(ValueError, match=r"give objective.teacher, a directory or hub id"):
        build(replace(small, objective=settings()), None)


def test_rows_of_another_tokenizer_are_refused(small: Recipe, teacher: Model) -> None:
    """Same size, other words: nothing else would notice, and the student would learn nonsense."""
    other = train_bpe(["zebras graze lazily, zebras doze"] * 3, VOCABULARY)
    assert other.vocab_size == teacher.tokenizer.vocab_size
    with pytest.raises(ValueError, match=r"data\.tokenizer .*demo-teacher"):
        build(replace(small, objective=settings()), other, start=teacher)


def test_a_teacher_without_a_tokenizer_takes_that_of_the_rows(small: Recipe) -> None:
    public = load(GOLDEN / "hub_mdlm")
    fitting = wordlevel(*(f"w{i}" for i in range(36)))
    plan = replace(small, objective=settings())
    parts = build(plan, fitting, start=public)
    assert parts.tokenizer is fitting and parts.student.mask_id == 37, (
        "37 tokens, and MASK behind them"
    )
    with pytest.raises(ValueError, match="the tokenizer has 36 tokens and the model 38"):
        build(plan, wordlevel(*(f"w{i}" for i in range(35))), start=public)


@pytest.mark.parametrize("name", ["long-teacher", "long-judge"])
def test_training_continues_from_a_model_on_longer_rows(
    name: str, text: Path, request: pytest.FixtureRequest
) -> None:
    start = request.getfixturevalue("causal" if name == "long-judge" else "masked")
    plan = shrink(recipe(name), text, start)
    plan = replace(
        plan,
        network=replace(plan.network, length=2 * LENGTH, width=64, dropout=0.2),
        precision="float32",
    )
    rows = training_data(replace(plan, data=replace(plan.data, tokenizer="bpe:300")))
    assert rows.train.shape[1] == 2 * LENGTH, "the recipe's length, in the model's tokens"
    assert rows.tokenizer.digest == load(start).tokenizer.digest, (
        "no tokenizer is trained where a model is given"
    )
    parts, before = build(plan, rows.tokenizer), load(start)
    assert same_weights(parts.student.network, before.network)
    shape = before.network.shape
    assert parts.student.network.shape == replace(shape, length=2 * LENGTH, dropout=0.2)
    causal = ["network.cond_dim = 4 has no effect: autoregressive training has no noise"] * (
        name == "long-judge"
    )
    assert unused_lines(plan, parts, before) == [
        *causal,
        f"network.width = {shape.width} of {start}, not 64",
    ]
    assert parts.model(copy.deepcopy(parts.student)).network.shape.length == 2 * LENGTH


def test_training_continues_only_from_a_model_of_the_same_kind(
    text: Path, masked: Path, causal: Path
) -> None:
    for name, start, why in (
        ("long-teacher", causal, "got .*'autoregressive', want 'masked'"),
        ("long-judge", masked, "got .*'masked', want 'autoregressive'"),
    ):
        plan = shrink(recipe(name), text, start)
        with pytest.raises(ValueError, match=why):
            build(plan, training_data(plan).tokenizer)


def test_a_run_directory_stands_for_its_model(masked: Path) -> None:
    assert same_weights(load(masked.parent).network, load(masked).network)
    assert recipe("demo-teacher").traits.start == ""


@pytest.mark.parametrize(("folder", "kind"), [("hub_ar", "autoregressive"), ("hub_duo", "uniform")])
def test_other_kinds_of_teachers_are_refused(folder: str, kind: str, small: Recipe) -> None:
    with pytest.raises(
        ValueError,
        match=f"got .*'{kind}', want 'masked'; give another",
    ):
        build(replace(small, objective=settings()), None, start=load(GOLDEN / folder))


# --- uniform noise, and walks


@pytest.fixture(scope="module")
def uniform_teacher(small: Recipe, teacher: Model) -> Model:
    """A uniform-state model in the same tokens."""
    plan = replace(
        small,
        objective=NelboSettings(process="uniform"),
        network=replace(small.network, sees_alpha=True),
    )
    parts = build(plan, teacher.tokenizer)
    with torch.no_grad():
        nn.init.normal_(
            parts.student.network.head.weight, generator=torch.Generator().manual_seed(0)
        )
    return parts.model(copy.deepcopy(parts.student))


def test_a_uniform_teacher_has_no_mask(small: Recipe) -> None:
    """V is the tokenizer's, with its MASK, if any, as an ordinary token."""
    plan = replace(
        small,
        objective=NelboSettings(process="uniform", t_min=0.02),
        schedule=Schedule("cosine"),
    )
    words = wordlevel("a", "b")
    assert words.mask_id is None
    parts = build(plan, words)
    assert parts.objective == Nelbo(UniformProcess(3), Cosine(1e-3), 0.02)
    assert (parts.student.vocab_size, parts.student.mask_id) == (3, None)
    assert parts.model(copy.deepcopy(parts.student)).process == UniformProcess(3)
    own = training_data(plan).tokenizer
    assert (
        own.mask_id is not None
        and build(plan, own).student.vocab_size == own.vocab_size == VOCABULARY
    )
    assert build(plan, None, vocab_size=9).student.vocab_size == 9
    with pytest.raises(ValueError, match="vocab_size is missing"):
        build(plan, None)


def test_a_curriculum(small: Recipe) -> None:
    method = CurriculumSettings(
        soft_steps=5, gamma=(-3.0, -1.0), temperature=0.02, top_k=4, t_min=0.01
    )
    plan = replace(small, objective=method, network=replace(small.network, sees_alpha=True))
    parts = build(plan, None, vocab_size=50)
    path = GaussianArgmax(50, -3.0, -1.0)
    assert parts.objective == Curriculum(UniformProcess(50), LogLinear(), path, 5, 0.02, 4, 0.01)
    assert (
        parts.student.mask_id is None and parts.student.sees_alpha and parts.schedule == LogLinear()
    )
    assert parts.model(copy.deepcopy(parts.student)).schedule == LogLinear(), (
        "the path is of the training, not of the model"
    )
    wrong = {
        "gamma .*gamma_min = -9.0 .*want -4.47 <= gamma_min < gamma_max <= 21.47": {
            "gamma": (-9.0, -1.0)
        },
        "top_k .*got 50, want 1 <= top_k < 50": {"top_k": 50},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            build(replace(plan, objective=replace(method, **change)), None, vocab_size=50)


def test_every_switch_of_sdtt_reaches_the_objective(small: Recipe, teacher: Model) -> None:
    method = SdttSettings(
        round_steps=7, delta0=1 / 64, count=3, teacher_steps=4, divergence="forward",
        time_grid="released",
    )  # fmt: skip
    parts = distilled(small, teacher, method)
    objective = parts.objective
    assert isinstance(objective, Sdtt)
    assert (
        objective.process == teacher.process
        and objective.schedule == teacher.schedule == parts.schedule
    )
    assert objective.rounds == Rounds(7, 1 / 64, (1.0, 1.0, 1.0))
    assert (objective.teacher_steps, objective.divergence, objective.time_grid) == (
        4,
        "forward",
        "released",
    )
    assert same_weights(objective.teacher, parts.student) and objective.teacher is not parts.student
    assert not objective.teacher.training and not any(
        p.requires_grad for p in objective.teacher.parameters()
    )


def test_every_switch_of_dcd_reaches_the_objective(small: Recipe, uniform_teacher: Model) -> None:
    method = settings(process="uniform", gamma=(-3.9, 1.0), order="spread", coupling="independent")
    objective = distilled(small, uniform_teacher, method).objective
    assert isinstance(objective, Consistency) and objective.process == UniformProcess(VOCABULARY)
    assert objective.schedule == GaussianArgmax(VOCABULARY, -3.9, 1.0)
    assert (objective.order, objective.coupling) == (spread_order, "independent")
    parts = distilled(small, uniform_teacher, replace(method, gamma=None, order="random"))
    assert parts.objective.schedule == uniform_teacher.schedule
    assert parts.objective.order is random_order
    assert parts.schedule == uniform_teacher.schedule, "that of sampling stays the teacher's"
    assert parts.student.sees_alpha and parts.student.mask_id is None
    with pytest.raises(ValueError, match=r"gamma .*got gamma_min = -9\.0"):
        distilled(small, uniform_teacher, replace(method, gamma=(-9.0, 1.0)))


def test_noise_of_another_kind_is_refused_and_both_are_named(
    small: Recipe, teacher: Model, uniform_teacher: Model, masked: Path, uniform: Path
) -> None:
    for model, method, want, got in (
        (uniform_teacher, settings(), "masked", "uniform"),
        (uniform_teacher, SdttSettings(), "masked", "uniform"),
        (teacher, settings(process="uniform"), "uniform", "masked"),
    ):
        with pytest.raises(ValueError, match=f"got .*'{got}', want '{want}'"):
            distilled(small, model, method)
    for objective, want, got in (
        (NelboSettings(init=str(uniform)), "masked", "uniform"),
        (NelboSettings(init=str(masked), process="uniform"), "uniform", "masked"),
        (CurriculumSettings(init=str(masked)), "uniform", "masked"),
    ):
        message = rf"'demo-teacher' \({objective.kind}\) .*got .*'{got}', want '{want}'"
        with pytest.raises(ValueError, match=message):
            build(replace(small, objective=objective), None)
    init = CurriculumSettings(init=str(uniform), soft_steps=0)
    assert same_weights(
        build(replace(small, objective=init), None).student.network, load(uniform).network
    )


@pytest.mark.parametrize("process", ["masked", "uniform"])
def test_a_deeper_network_begins_as_the_one_it_grows_from(
    small: Recipe, tmp_path: Path, process: str
) -> None:
    """New blocks are the identity at first, and learn from the first update on."""
    parts = build(replace(small, objective=NelboSettings(process=process)), None, vocab_size=9)
    for tensor in parts.student.network.parameters():
        nn.init.normal_(tensor, 0.0, 0.3, generator=torch.Generator().manual_seed(tensor.numel()))
    parts.model(copy.deepcopy(parts.student)).save(tmp_path)
    sizes = replace(small.network, blocks=3 * small.network.blocks)
    method = replace(
        small,
        objective=NelboSettings(process=process, init=str(tmp_path), deeper=3),
        network=sizes,
    )
    parts = build(replace(method, precision="float32"), None)
    grown = parts.student.eval()
    old = load(tmp_path).network
    assert grown.network.shape.blocks == 3 * old.shape.blocks and not unused_lines(
        method, parts, load_start(method)
    )
    tokens, sigma = torch.randint(9, (2, small.network.length)), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        assert torch.equal(grown.network(tokens, sigma), old(tokens, sigma))
    grown.network(tokens, sigma).square().mean().backward()
    gates = [block.adaLN_modulation.weight.grad for block in grown.network.blocks]
    assert all(grad is not None and bool(grad.any()) for grad in gates)
    assert same_weights(build(method, None).student.network, grown.network), "by the seed"
    for wrong in ({"deeper": 0, "init": "x"}, {"deeper": 2}):
        with pytest.raises(ValueError, match=r"deeper .*init"):
            NelboSettings(**wrong)


def test_steps_that_leave_time_are_refused(small: Recipe, teacher: Model) -> None:
    with pytest.raises(ValueError, match=r"teacher_steps x delta .*got 1 in the last round"):
        distilled(small, teacher, SdttSettings(delta0=1 / 8, count=3))
    distilled(small, teacher, SdttSettings(delta0=1 / 8, count=2))
    with pytest.raises(
        ValueError,
        match=r"temperatures .*got 3 rounds, want 1 .. 2, .* delta0 = 0.25",
    ):
        distilled(small, teacher, replace(settings(), delta0=1 / 4, temperatures=(1.0,) * 3))


def test_a_tokenizer_of_the_hub_is_fetched_by_its_name(tmp_path, monkeypatch):
    import huggingface_hub

    downloads = []
    train_bpe(["the people of the United States " * 9], 270).save(tmp_path)

    def download(name, revision, allow_patterns):
        downloads.append((name, "tokenizer*" in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = tokenizer_of(DataSettings(tokenizer="someone/tokens"), documents(DataSettings()).train)
    assert downloads == [("someone/tokens", True)]
    assert loaded.digest == Tokenizer.load(tmp_path).digest


def test_without_a_network_the_tokenizer_of_the_hub_is_named():
    with pytest.raises(ValueError, match=r"bert-base-uncased.*hub"):
        tokenizer_of(
            DataSettings(tokenizer="bert-base-uncased"),
            documents(DataSettings()).train,
        )
