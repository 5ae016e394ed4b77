"""Settings of all tests: one thread a process (or OMP_NUM_THREADS), no network, no display.

Hypothesis has no deadlines, and fixed examples in CI.
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

# A background job of a shell ignores SIGINT. Tests send SIGINT, also to their child processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the files of all tests and their subprocesses out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_finish() -> None:
    """Exclude the objects of all imports from garbage collection."""
    gc.freeze()


# No deadlines: they measure the machine, and the first example includes imports.
# `make check` runs all examples.
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
    """Train a masked model for two steps on `text`; returns its directory with the tokenizer."""
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
    """Train a uniform-state model for two steps; returns its directory. Tokenizer of `masked`."""
    from toy_recipes import shrink
    from unmask.recipes.catalog import recipe
    from unmask.recipes.run import run

    folder = tmp_path_factory.mktemp("uniform") / "run"
    plan = shrink(recipe("demo-duo"), text, tokens=masked)
    list(run(replace(plan, precision="float32"), folder, device="cpu"))
    return folder / "model"


@pytest.fixture(scope="session")
def causal(text: Path, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an autoregressive model for two steps; returns its directory. Tokenizer of `masked`."""
    from toy_recipes import shrink
    from unmask.recipes.catalog import recipe
    from unmask.recipes.run import run

    folder = tmp_path_factory.mktemp("causal") / "run"
    plan = shrink(recipe("demo-judge"), text, tokens=masked)
    list(run(replace(plan, precision="float32"), folder, device="cpu"))
    return folder / "model"
