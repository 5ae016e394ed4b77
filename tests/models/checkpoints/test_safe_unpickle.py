"""Pickles are read as data: no name is imported, no function is called."""

import builtins
import collections
import functools
import gc
import io
import operator
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.models.checkpoints.safe_unpickle import (
    CheckpointError,
    Global,
    Record,
    Storage,
    StoredTensor,
    unpickle,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "lightning_mdlm" / "mdlm.ckpt"
HEAD = b"\x80\x02"  # PROTO 2

_events: list[str] | None = None


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if (
        _events is not None and event != "builtins.id"
    ):  # the repr of a record in an error imports it
        _events.append(event)


sys.addaudithook(_listen)  # for the life of the process, but it hears only while `watched` runs

for _protocol in range(
    6
):  # what pickletools imports when it first needs it is not the programs' doing
    unpickle(pickle.dumps([1, 10**20, 1.5, "a", "ä", b"a", None, True], protocol=_protocol))


def watched(program: bytes) -> tuple[Any, list[str]]:
    """The result of `unpickle` (or its error), and all audit events during the call."""
    global _events
    gc.disable()  # what it collects, and what a tracer looks at, is not the reader's doing
    tracer = sys.gettrace()
    sys.settrace(None)
    _events = events = []
    try:
        return unpickle(program), events
    except CheckpointError as error:
        return error, events
    finally:
        _events = None
        sys.settrace(tracer)
        gc.enable()


class Hostile:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


CALLS = {
    "system": (os.system, "touch canary"),
    "popen": (subprocess.Popen, ["touch", "canary"]),
    "eval": (eval, "open('canary', 'w')"),
    "exec": (exec, "open('canary', 'w')"),
    "import": (builtins.__import__, "antigravity"),
    "open": (open, "canary", "w"),
    "getattr": (getattr, "canary", "__class__"),
    "attrgetter": (operator.attrgetter, "__class__.__mro__"),
    "getitem": (operator.getitem, [1], 0),
    "partial": (functools.partial, print, 1),
    "function": (types.SimpleNamespace,),
    "loads": (pickle.loads, b"cos\nsystem\n(S'touch canary'\ntR."),
    "torch.load": (torch.load, "canary"),
    "torch.jit": (torch.jit.load, "canary"),
    "torch.hub": (torch.hub.load_state_dict_from_url, "http://localhost/canary"),
    "torch.compile": (torch.compile, print),
    "dotted": (torch._utils._import_dotted_name, "os.system"),
    "rebuild": (torch._utils._rebuild_wrapper_subclass, int, 1, 1),
    "untyped": (torch.UntypedStorage.from_file, "canary"),
    "path": (Path, "canary"),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_without_effects(name: str, protocol: int) -> None:
    program = pickle.dumps({"state_dict": {}, "x": Hostile(*CALLS[name])}, protocol=protocol)
    result, events = watched(program)
    assert isinstance(result, CheckpointError) and "no code in it was run" in str(result)
    assert events == []


def test_the_audit_hook_sees_pythons_unpickler() -> None:
    """The test above can fail."""
    global _events
    _events = events = []
    try:
        pickle.loads(pickle.dumps(Hostile(eval, "1")))
    finally:
        _events = None
    assert {"pickle.find_class", "exec"} <= set(events)


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


ATTACKS = {
    "name of os": b"cos\nsystem\n.",
    "name of posix": b"cposix\nsystem\n.",
    "python 2's builtins": b"c__builtin__\neval\n.",
    "stack global": stack_global("os", "system") + b".",
    "dotted attribute": stack_global("collections", "abc.sys.modules") + b".",
    "dotted attribute of omegaconf": stack_global("omegaconf", "os.system") + b".",
    "dotted attribute of torch": stack_global("torch", "os.system") + b".",
    "dotted builtin": stack_global("builtins", "dict.__class__") + b".",
    "dunder chain": stack_global("torch._utils", "_rebuild_tensor_v2.__globals__") + b".",
    "a module that begins alike": b"cnumpy_evil\nrun\n.",
    "a name that is no string": text("os") + b"]\x93.",
    "a module that is no string": b"]" + text("system") + b"\x93.",
    "old instance": b"(S'touch canary'\nios\nsystem\n.",
    "old object": b"(cnumpy\nndarray\nNo.",
    "extension registry": b"\x82\x01.",
    "persistent name": b"Pevil\n.",
    "persistent thing": b"]Q.",
    "persistent module": b"("
    + text("module")
    + b"cnumpy\nndarray\n"
    + text("0")
    + text("cpu")
    + b"K\x01tQ.",
    "persistent path": b"("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("../a")
    + text("cpu")
    + b"K\x01tQ.",
    "calls a record": b"cnumpy\nndarray\n)R)R.",
    "calls a string": text("os.system") + b")R.",
    "calls with no tuple": b"cnumpy\nndarray\n]R.",
    "state of a name": b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"K\x01sb.",
    "state of a list": b"]}b.",
    "items of a name": b"cnumpy\nndarray\nK\x01a.",
    "keywords": b"\x80\x04cnumpy\nndarray\n)}\x92.",
    "out of band buffer": b"\x80\x05\x97.",
    "duplicate": b"K\x012.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_programs_are_refused(name: str) -> None:
    result, events = watched(HEAD + ATTACKS[name])
    assert isinstance(result, CheckpointError) and events == []
    assert str(result).startswith("the pickle is not opened")


def test_a_refusal_names_the_global_and_the_source() -> None:
    with pytest.raises(CheckpointError, match=r"evil\.ckpt is not opened.*it names os\.system"):
        unpickle(b"cos\nsystem\n.", "evil.ckpt")


@pytest.mark.parametrize(
    "name",
    [
        "omegaconf.dictconfig",
        "transformers.nowhere",
        "tokenizers",
        "lightning.x",
        "pytorch_lightning",
        "typing",
    ],
)
def test_names_of_harmless_packages_stay_names(name: str) -> None:
    """They are neither imported nor called, with any arguments."""
    before = set(sys.modules)
    result, events = watched(
        b"c" + name.encode() + b"\nThing\n" + text("evil") + b"\x85R}" + text("a") + b"K\x01sb."
    )
    assert events == [] and set(sys.modules) == before
    assert isinstance(result, Record)
    assert (result.name, result.state) == (f"{name}.Thing", {"a": 1})


def test_even_a_dangerous_function_of_a_harmless_package_is_only_a_name() -> None:
    result, events = watched(
        b'cnumpy.testing._private.utils\nrunstring\n(S\'open("canary", "w")\'\n}tR.'
    )
    assert events == [] and isinstance(result, Record) and result.name.endswith("runstring")


def test_names_are_compared_whole() -> None:
    assert unpickle(b"ctorch\nfloat32\n.") == Global("torch.float32")
    assert unpickle(b"c__builtin__\ndict\n.") == Global("builtins.dict")
    for name in (
        b"torch\nfloat32_",
        b"torch.nn\nfloat32",
        b"torch\nnn",
        b"builtins\nmap",
        b"_codecs\ndecode",
    ):
        with pytest.raises(CheckpointError):
            unpickle(b"c" + name + b"\n.")


small = st.integers(1 - 2**32, 2**32 - 1)  # keys are no greater
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | small, inner)
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
        | st.sets(small | st.text() | st.tuples(st.text(), st.text()))
        | st.frozensets(st.text())
    ),
    max_leaves=12,
)


@given(plain, st.sampled_from([0, 1, 2, 3, 4, 5]))
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    program = pickle.dumps(value, protocol=protocol)
    assert unpickle(program) == pickle.loads(program)


def test_shared_and_recursive_values_stay_so() -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    read = unpickle(pickle.dumps({"a": shared, "b": shared}))
    assert read["a"] is read["b"] and read["a"][1] is read["a"]


def test_objects_of_real_checkpoints_are_read() -> None:
    """Optimizer and generator states, numpy values: through torch.save, at its own protocol."""
    numpy = pytest.importorskip("numpy")
    content = io.BytesIO()
    torch.save(
        {
            "optimizer": {
                "state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(2)}},
                "param_groups": [{"lr": 1e-3}],
            },
            "random": numpy.random.RandomState(0).get_state(),
            "scalar": numpy.float64(2.0),
            "generator": torch.get_rng_state(),
            "tree": collections.defaultdict(dict),
            "size": torch.Size([2]),
            "half": torch.ones(3, dtype=torch.bfloat16)[1:],
            "odd": torch.ones(3, dtype=torch.uint16),
            "parameter": torch.nn.Parameter(torch.ones(2, 2)),
            "bytes": b"\xff\x00",
        },
        content,
    )
    read = unpickle(zipfile.ZipFile(content).read("archive/data.pkl"))
    assert read["bytes"] == b"\xff\x00"
    assert (
        isinstance(read["half"], StoredTensor)
        and read["half"].offset == 1
        and read["half"].size == (2,)
    )
    assert read["half"].storage == Storage(read["half"].storage.key, torch.bfloat16, 3)
    assert isinstance(read["parameter"], StoredTensor) and read["parameter"].stride == (2, 1)
    assert (
        isinstance(read["odd"], Record)
        and isinstance(read["scalar"], Record)
        and isinstance(read["tree"], Record)
    )


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of a view of six floats."""

    def numbers(*values: int) -> bytes:
        return b"".join(b"I%d\n" % value for value in values)

    storage = (
        b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + text("cpu")
        + numbers(6)
        + b"tQ"
    )
    view = storage + numbers(offset) + b"(" + numbers(*size) + b"t(" + numbers(*stride) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"\x89NtR."


def test_tensors_stay_inside_their_bytes() -> None:
    assert unpickle(tensor(0, (2, 3), (3, 1))).size == (2, 3)
    assert unpickle(tensor(5, (), ())).offset == 5
    assert unpickle(tensor(6, (0, 3), (3, 1))).size == (0, 3)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (2, 3), (3, 1)),
        (0, (7,), (1,)),
        (0, (2,), (6,)),
        (6, (), ()),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (10**12,), (0,)),
        (0, (2, 3), (3,)),
        (0, (2**70,), (1,)),
    ],
)
def test_tensors_that_reach_outside_are_refused(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    with pytest.raises(CheckpointError, match="tensor data/0"):
        unpickle(tensor(offset, size, stride))


def test_keys_that_are_slow_to_hash_are_refused() -> None:
    """t = (t, t), 100 times: hashing the last one visits 2^100 tuples."""
    with pytest.raises(CheckpointError, match="as a key"):
        unpickle(b"}K\x01" + b"q\x00h\x00\x86" * 100 + b"K\x01s.")


GOLDEN_PICKLE = zipfile.ZipFile(GOLDEN).read("mdlm/data.pkl")


def test_a_truncated_pickle_is_named_damaged() -> None:
    for stop in range(0, len(GOLDEN_PICKLE), 397):
        with pytest.raises(CheckpointError, match="is damaged"):
            unpickle(GOLDEN_PICKLE[:stop])


@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, len(GOLDEN_PICKLE) - 1), st.binary(min_size=1, max_size=8))
def test_changed_bytes_have_no_effects_outside(place: int, patch: bytes) -> None:
    _, events = watched(GOLDEN_PICKLE[:place] + patch + GOLDEN_PICKLE[place + len(patch) :])
    assert events == []


@pytest.mark.filterwarnings("ignore")
@given(st.binary(max_size=64))
def test_random_programs_have_no_effects_outside(program: bytes) -> None:
    _, events = watched(program + b".")
    assert events == []


def test_the_size_of_a_program_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.models.checkpoints.safe_unpickle.LARGEST_PICKLE", 3)
    assert unpickle(b"N.") is None
    with pytest.raises(CheckpointError, match="at most 3"):
        unpickle(b"NNN.")
