"""Several processes learn the same as one: same losses, same weights, same last step."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unmask
from toy_training import Chase, Net, begin, updates
from unmask.training import Engine, launch
from unmask.training import distributed as engine

SCRIPT = """
import json, os, sys
from pathlib import Path
from toy_training import RECIPE, Chase, Net, batch_at
from unmask.training import AdamW, RunDir, State, fit, launch, with_checkpoints
from unmask.training import distributed as engine
import torch

def train(folder, resumed):
    here = launch()
    objective = Chase(noise=0.0, teacher=Net(0.0, seed=9 + here.rank))  # rank 0 decides
    state = State.begin(objective, Net(0.0, seed=here.rank), AdamW(lr=0.01, warmup_steps=3), here)
    with RunDir.open(folder / "run", RECIPE, engine=here) as run:
        assert run.restore(state).step == 5 * resumed
        mine = lambda step: batch_at(step).tensor_split(here.world)[here.rank]
        stop = lambda: here.rank == 1 and state.step + 1 == 5
        updates = fit(objective, state, mine, steps=8, engine=here, stop=stop)
        updates = list(with_checkpoints(updates, run, state, every=3))
    weights = [p.tolist() for p in state.student.parameters()]
    curve = [[u.loss, u.metrics["error"], u.tokens] for u in updates]
    found = [curve, weights, here.world, here.device.type]
    (folder / f"{here.rank}{resumed}.json").write_text(json.dumps(found))

engine.BUCKET_ELEMENTS = 20  # several messages
torch.optim.SGD([torch.zeros(1)])  # what torch imports late, it imports once, here
for resumed, port in enumerate(sys.argv[2:]):
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ |= {"MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            train(Path(sys.argv[1]), resumed)
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


def test_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    """Equal to 1e-5, with a stop on one rank and a resume on both."""
    paths = [str(Path(unmask.__file__).parents[1]), str(Path(__file__).parents[1])]
    launcher = {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), free_port(), free_port()]
    ran = subprocess.run(
        command, env=os.environ | launcher, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr

    objective = Chase(noise=0.0, teacher=Net(0.0, seed=9))
    state, alone = begin(objective, Net(0.0, seed=0)), []
    for update in updates(state, objective, 8):
        alone.append((update.loss, update.metrics["error"], update.tokens))
        if update.step == 5:
            halfway = [p.tolist() for p in state.student.parameters()]
    ends = [halfway, [p.tolist() for p in state.student.parameters()]]
    for resumed, expected in enumerate((alone[:5], alone[5:])):
        results = [json.loads((tmp_path / f"{rank}{resumed}.json").read_text()) for rank in (0, 1)]
        assert results[0] == results[1]
        curve, weights, world, device = results[0]
        assert (world, device, len(curve)) == (2, "cpu", len(expected))
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-5, atol=0)
        for got, want in zip(weights, ends[resumed], strict=True):
            torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-5, atol=1e-6)


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_buckets_hold_every_tensor_once_and_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUCKET_ELEMENTS", 10)
    tensors = [
        torch.zeros(n, dtype=d)
        for n, d in ((4, torch.float32), (6, torch.float32), (1, torch.float32))
    ]
    tensors += [torch.zeros(30), torch.zeros(1, dtype=torch.float64), torch.zeros(())]
    buckets = list(engine._buckets(tensors))
    assert [id(tensor) for bucket in buckets for tensor in bucket] == [
        id(tensor) for tensor in tensors
    ]
    assert [len(bucket) for bucket in buckets] == [2, 1, 1, 1, 1]


def test_a_sum_over_one_process_changes_nothing() -> None:
    here = launch("cpu")
    assert here == Engine(torch.device("cpu"), 0, 1) and here.main and here.broadcast_int(3) == 3
    value = torch.tensor([2.0])
    here.sum_([value])
    assert value.item() == 2
