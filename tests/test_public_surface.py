"""The stable surface: names, signatures and fields in user code, which a change breaks."""

import ast
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import unmask

SIGNATURES = {
    "LogLinear": "eps=0.001",
    "MaskedProcess": "vocab_size, mask_id",
    "UniformProcess": "vocab_size",
    "MaskedProcess.posterior": "self, p_x0, z_t, alpha_t, alpha_s",
    "MaskedProcess.nelbo": "self, prediction, x0, z_t, alpha_t, dalpha_t",
    "UniformProcess.posterior": "self, p_x0, z_t, alpha_t, alpha_s",
    "UniformProcess.nelbo": "self, prediction, x0, z_t, alpha_t, dalpha_t",
    "trajectory": "process, x0, generator=None",
    "Trajectory.at": "self, alpha",
    "duality.keep_probability": "snr_root, vocab_size",
    "duality.snr_root": "keep, vocab_size",
    "duality.project": "w, x0, mask_id",
    "Prediction.from_log_p": "log_p",
    "Prediction.log_p": "self, where=None, temperature=1.0",
    "Prediction.sample": "self, where, n, generator",
    "distillation_loss": "student, teacher, x0, mask_t, mask_s, *, temperature=1.0, "
    "direction='reverse', "
    "revealed='cross_entropy'",
    "judge": "name",
    "load": "path_or_hub_id, revision=None, weights='ema', device='cpu'",
    "sample": "model, n=4, length=None, steps=16, seed=0, temperature=1.0, top_p=1.0, "
    "prompt=None, pinned=None, "
    "device='cpu'",
    "recipe": "name",
    "distill": "model, ids, recipe",
    "train": "recipe, ids",
    "SampleOptions": "n=4, length=None, steps=16, seed=0, temperature=1.0, top_p=1.0, "
    "prompt=None, pinned=None, "
    "device='cpu'",
    "Loss": "per_token, weight",
    "load_into": "module, directory, weights='ema'",
    "entropy": "tokens",
    "generative_perplexity": "tokens_or_texts, judge",
    "Model.save": "self, directory",
}
GOLDEN = Path(__file__).parent / "golden"


def find(name: str) -> Callable[..., object]:
    found: object = unmask
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    return found


def described(function: Callable[..., object]) -> list[tuple[str, bool, object]]:
    """(name, by keyword only, default) of each parameter."""
    return [
        (p.name, p.kind is p.KEYWORD_ONLY, p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]


def promised(signature: str) -> list[tuple[str, bool, object]]:
    namespace: dict[str, Callable[..., object]] = {}
    exec(f"def promise({signature}): ...", namespace)
    return described(namespace["promise"])


@pytest.mark.parametrize(("name", "signature"), SIGNATURES.items())
def test_signatures_are_kept(name: str, signature: str) -> None:
    """In this order, with these defaults. New parameters are optional and come last."""
    promise, found = promised(signature), described(find(name))
    kept, more = found[: len(promise)], found[len(promise) :]
    for wanted, got in zip(promise, kept, strict=True):
        assert got[:2] == wanted[:2]
        assert wanted[2] in (got[2], inspect.Parameter.empty)
    assert all(default is not inspect.Parameter.empty for _, _, default in more)


def test_editors_and_python_find_the_same_names() -> None:
    """The imports for type checkers, the table of modules and `dir` name the same things."""
    [branch] = [
        node
        for node in ast.parse(Path(unmask.__file__).read_text("utf-8")).body
        if isinstance(node, ast.If)
    ]
    seen = {alias.asname or alias.name: node.module for node in branch.body for alias in node.names}
    homes = unmask._HOMES
    assert seen == homes and set(dir(unmask)) == {*homes, "__version__"}
    assert {name.split(".")[0] for name in SIGNATURES} <= homes.keys()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = unmask.no_such_name


def test_a_trajectory_leads_from_the_text_to_the_noise() -> None:
    """Alpha is a number for each row: at 1 the row is its text, at 0 its noise."""
    process = unmask.MaskedProcess(vocab_size=5, mask_id=4)
    text = torch.tensor([[0, 1, 2], [3, 2, 1]])
    path = unmask.trajectory(process, text, generator=torch.Generator().manual_seed(1))
    assert torch.equal(path.x0, text) and torch.equal(path.noise, torch.full((2, 3), 4))
    assert path.u.shape == (2, 3) and bool(((path.u >= 0) & (path.u <= 1)).all())
    ends = path.at(torch.tensor([1.0, 0.0]))
    assert torch.equal(ends, torch.stack([text[0], path.noise[1]]))


def test_fields_of_a_model_and_its_samples(tmp_path: Path) -> None:
    """load, sample, save, load: the fields are there, and the copy draws the same text."""
    model = unmask.load(GOLDEN / "hub_mdlm")
    assert model.tokenizer is None
    assert isinstance(model.process, unmask.MaskedProcess) and isinstance(
        model.network, torch.nn.Module
    )
    assert (
        model.schedule == unmask.LogLinear(1e-3)
        and model.denoiser.vocab_size == model.process.vocab_size
    )
    samples = unmask.sample(model, n=3, length=8, steps=4, seed=7)
    assert (
        samples.tokens.shape == (3, 8)
        and samples.tokens.dtype == torch.int64
        and samples.texts is None
    )
    assert samples.nfe.shape == (3,) and samples.nfe.dtype == torch.int64 and samples.calls <= 4
    assert unmask.entropy(samples.tokens).shape == (3,)
    model.save(tmp_path / "copy")
    again = unmask.sample(unmask.load(tmp_path / "copy"), n=3, length=8, steps=4, seed=7)
    assert torch.equal(again.tokens, samples.tokens)


def test_values_can_be_pickled() -> None:
    """Names found on first use still are the names that pickle writes down."""
    schedule = unmask.LogLinear(1e-3)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_a_judge_by_name_scores_texts_or_ids() -> None:
    """A judge scores texts, or ids if it has the tokenizer of the judged model."""
    model = unmask.load("unmask:teacher")
    samples = unmask.sample(model, n=2, length=8, steps=2)
    by_texts = unmask.judge("unmask:judge")
    assert unmask.generative_perplexity(samples.texts, by_texts).value > 1
    by_ids = unmask.judge("unmask:judge", model.tokenizer)
    assert unmask.generative_perplexity(samples.tokens, by_ids).value > 1
    with pytest.raises(ValueError, match=r"tokens_or_texts .* samples\.texts"):
        unmask.generative_perplexity(samples.tokens, by_texts)
    with pytest.raises(ValueError, match=r"tokens_or_texts .* samples\.tokens"):
        unmask.generative_perplexity(samples.texts, by_ids)
    with pytest.raises(ValueError, match=r"judge .* is a diffusion model"):
        unmask.judge("unmask:teacher")


@pytest.mark.parametrize("wrong", ["model", "name", "none"])
def test_a_model_is_not_a_judge(wrong: str) -> None:
    judge = {"model": unmask.load(GOLDEN / "hub_mdlm"), "name": "unmask:judge", "none": None}[wrong]
    kind = type(judge).__name__
    with pytest.raises(ValueError, match=rf"^judge is not a judge: got a {kind}.*unmask\.judge"):
        unmask.generative_perplexity(["a text"], judge)  # type: ignore[arg-type]


def test_an_entropy_of_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tokens is not a tensor: got list.*torch\.tensor"):
        unmask.entropy([[1, 2]])  # type: ignore[arg-type]


def test_the_name_of_a_shipped_model_without_its_prefix_is_explained() -> None:
    with pytest.raises(ValueError, match=r"teacher.*unmask:teacher.*hub"):
        unmask.load("teacher")
    with pytest.raises(ValueError, match=r"unmask\.load\('unmask:teacher'\)"):
        unmask.sample("teacher")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["runs/x", Path("runs/x"), torch.nn.Linear(2, 2), None])
def test_other_objects_than_models_are_refused(wrong: object) -> None:
    """The path of a model, and a network, with the step that is missing."""
    recipe, ids = unmask.recipe("demo-mcd"), torch.zeros(2, 4, dtype=torch.int64)
    missing = r"unmask\.DenoiserModule" if isinstance(wrong, torch.nn.Module) else r"unmask\.load"
    match = rf"^model is not a model: got a {type(wrong).__name__}.*{missing}"
    with pytest.raises(ValueError, match=match):
        unmask.sample(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=match):
        next(unmask.distill(wrong, ids, recipe))  # type: ignore[arg-type]
