"""Every test: one thread a process, or OMP_NUM_THREADS of them, no network, no display; hypothesis without deadlines,
and without dice in CI.
"""

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is first imported
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
from hypothesis import HealthCheck, settings

# A job in the background of a shell inherits SIGINT as ignored; tests send it, also to processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the user's own cache, by subprocesses neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end, and the garbage collector does not look through it again."""
    gc.freeze()


# A deadline measures the machine, and the first example of a test pays for imports. `make check` asks for all examples.
settings.register_profile(
    "all",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.register_profile("some", settings.get_profile("all"), max_examples=20)
settings.load_profile("some")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small texts."""
    from toy_recipes import corpus

    return corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="session")
def masked(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a masked model that was trained for two steps on `text`, with its tokenizer."""
    from toy_recipes import shrink
    from unmask.recipes.catalog import recipe
    from unmask.recipes.run import run

    folder = tmp_path_factory.mktemp("masked") / "run"
    list(
        run(
            replace(shrink(recipe("demo-teacher"), text), precision="float32"), folder, device="cpu"
        )
    )
    return folder / "model"


@pytest.fixture(scope="session")
def uniform(text: Path, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a uniform-state model, in the tokens of `masked`."""
    from toy_recipes import shrink
    from unmask.recipes.catalog import recipe
    from unmask.recipes.run import run

    folder = tmp_path_factory.mktemp("uniform") / "run"
    plan = shrink(recipe("demo-duo"), text, tokens=masked)
    list(run(replace(plan, precision="float32"), folder, device="cpu"))
    return folder / "model"


@pytest.fixture(scope="session")
def causal(text: Path, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of an autoregressive model, in the tokens of `masked`."""
    from toy_recipes import shrink
    from unmask.recipes.catalog import recipe
    from unmask.recipes.run import run

    folder = tmp_path_factory.mktemp("causal") / "run"
    plan = shrink(recipe("demo-judge"), text, tokens=masked)
    list(run(replace(plan, precision="float32"), folder, device="cpu"))
    return folder / "model"
