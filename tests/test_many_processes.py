"""Several processes learn the same as one: whole or sharded, resumed, and with a lost process."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unmask
from toy_recipes import shrink
from unmask.dataclass_json import to_json
from unmask.models.model import load
from unmask.recipes.catalog import recipe
from unmask.recipes.run import run
from unmask.recipes.schema import Recipe
from unmask.training import Engine

STEPS, ROUND = 9, 3
# A job is DIRECTORY WORLD SHARDED STEP PORT: train to STEP and save there. A negative STEP kills
# the last process at that step instead.
SCRIPT = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed.checkpoint, torch.distributed.fsdp
from unmask.dataclass_json import from_json
from unmask.recipes.run import run
from unmask.recipes.schema import Recipe

def train(folder, rank, world, sharded, last):
    found = []
    plan = from_json(Recipe, json.loads((folder / "plan.json").read_text()), "plan")
    try:
        for update in run(plan, folder / "run", device="cpu", sharded=sharded):
            found.append([update.step, update.loss, update.grad_norm, update.metrics["round"]])
            if update.step == -last and rank == world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if update.step == last < plan.steps:
                break
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
    (folder / f"{rank}.json").write_text(json.dumps(found))

torch.optim.SGD([torch.zeros(1)])  # what torch imports late, it imports once, here
for job in json.loads(sys.argv[1]):
    folder, world, sharded, last, port = job
    children = []
    for rank in range(world):
        children.append(os.fork())
        if children[-1] == 0:
            if world > 1:
                variables = {"MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank,
                             "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ |= {key: str(value) for key, value in variables.items()}
            train(Path(folder), rank, world, sharded, last)
            os._exit(0)
    ended = [os.waitpid(child, 0)[1] for child in children]
    assert ended == [0] * (world - 1) + [signal.SIGKILL if last < 0 else 0], ended
    for rank in range(world - (last < 0)):
        print((Path(folder) / f"{rank}.json").read_text(), flush=True)
"""


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trained(*jobs: tuple[Path, int, bool, int]) -> list[list[object]]:
    """The losses of each process of each job, one job after the other."""
    paths = [str(Path(unmask.__file__).parents[1]), str(Path(__file__).parent)]
    variables = {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
    }
    with_ports = [
        (str(folder), world, sharded, last, free_port()) for folder, world, sharded, last in jobs
    ]
    command = [sys.executable, "-c", SCRIPT, json.dumps(with_ports)]
    ran = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def plan(text: Path, masked: Path) -> Recipe:
    """Three rounds of MCD with dropout, in two micro-batches."""
    small = shrink(recipe("demo-mcd"), text, masked)
    objective = replace(small.objective, round_steps=ROUND, temperatures=(0.9, 0.8, 0.7))
    network = replace(small.network, dropout=0.2)
    return replace(
        small,
        objective=objective,
        network=network,
        accumulation=2,
        steps=STEPS,
        save_every=5,
        precision="float32",
    )


def planned(folder: Path, plan: Recipe) -> Path:
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(to_json(plan)))
    return folder


def close(results: object, expected: object) -> None:
    torch.testing.assert_close(torch.tensor(results), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def same_model(one: Path, two: Path, weights: str) -> None:
    first, second = (
        load(path / "run" / "model", weights=weights).network.state_dict() for path in (one, two)
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_whole_or_sharded_two_processes_learn_the_same_as_one(plan: Recipe, tmp_path: Path) -> None:
    """Losses, gradients, weights and EMA to 1e-5, with dropout, noise and a changing teacher.

    One process reads the sharded state of two, and two read the state of one as shards.
    """
    alone = planned(tmp_path / "alone", plan)
    curve = [
        [update.step, update.loss, update.grad_norm, update.metrics["round"]]
        for update in run(plan, alone / "run", device="cpu")
    ]
    again = replace(plan, checkpointing=True)
    two, back = planned(tmp_path / "two", plan), planned(tmp_path / "back", plan)
    parts = planned(tmp_path / "parts", again)
    results = trained(
        (two, 2, False, STEPS), (parts, 2, True, 5), (parts, 1, False, STEPS), (back, 1, False, 5),
        (back, 2, True, STEPS),
    )  # fmt: skip
    expected = [curve, curve, curve[:5], curve[:5], curve[5:], curve[:5], curve[5:], curve[5:]]
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        close(got, want)
    for other in (two, parts, back):
        for weights in ("ema", "raw"):
            same_model(alone, other, weights)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_lost_process_ends_the_training_with_a_message(
    sharded: bool, plan: Recipe, tmp_path: Path
) -> None:
    """Killed after step 7: the other process names the last state, and one resumes at step 5."""
    folder, alone = planned(tmp_path / "run", plan), tmp_path / "alone"
    curve = [
        [u.step, u.loss, u.grad_norm, u.metrics["round"]]
        for u in run(plan, alone / "run", device="cpu")
    ]
    first, second = trained((folder, 2, sharded, -7), (folder, 1, False, STEPS))
    close(first[:7], curve[:7])
    assert (
        "TrainingError: step 7 did not end on process 0 of 2" in first[7]
        and "another process was lost" in first[7]
    )
    assert "The last good state, step 5, is kept in" in first[7]
    close(second, curve[5:])
    same_model(alone, folder, "ema")


def test_processes_share_micro_batches() -> None:
    cpu = torch.device("cpu")
    assert [Engine(cpu, 0, world).local_micro_batches(4) for world in (1, 2, 4, 8)] == [4, 2, 1, 1]
    with pytest.raises(ValueError, match=r"accumulation .*got 4.*multiple of 3"):
        Engine(cpu, 0, 3).local_micro_batches(4)
