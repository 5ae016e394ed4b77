"""Read pickles as data: no name in a pickle is ever imported or called.

A pickle is a program for a stack machine that may look up any name of any module and call it. Here
every instruction makes plain data: a name becomes a `Global`, a call becomes a `Record`, and a
tensor becomes a `StoredTensor`. No instruction has an effect outside the machine. Unknown names are
refused too.

`torch.load(weights_only=True)` protects less (torch 2.13). It calls the allowed names with
arguments from the file, so the classes of a config would have to be imported. It does not bound
time or memory: a key of tuples in tuples, in a file of 1 kB, takes hours to hash.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import torch

from unmask.models.checkpoints import CheckpointError


@dataclass(frozen=True)
class Global:
    """A name in a pickle; it is never looked up."""

    name: str


@dataclass(eq=False)
class Record:
    """A call of `name` in a pickle, and the state that it sets; `name` is never called."""

    name: str
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """The bytes NAME/data/`key` of an archive; dtype None if it is not one of `DTYPES`."""

    key: str
    dtype: torch.dtype | None
    numel: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of an archive: a strided view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


# Packages whose names may occur in the hyper-parameters of a checkpoint. They are never imported.
INERT_PACKAGES = frozenset(
    "omegaconf transformers tokenizers lightning lightning_fabric pytorch_lightning "
    "typing collections numpy".split()
)
DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
_BUILTINS = (
    "bool int float complex str bytes bytearray object list tuple dict set frozenset slice range"
)
INERT_NAMES = frozenset(
    [
        *DTYPES,
        *(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
        *(f"torch._utils._rebuild_{kind}" for kind in ("tensor_v2", "tensor_v3", "parameter")),
        *("torch.storage.UntypedStorage", "torch.Size", "torch.device", "_codecs.encode"),
        *(f"builtins.{kind}" for kind in _BUILTINS.split()),
    ]
)
LARGEST_PICKLE = 2**25  # bytes; a tokenizer takes a few million, a tensor about 100
MOST_STEPS = 2**23  # half a million take a second
MOST_CONTAINERS = 2**20  # an instruction of one byte makes an empty set of 216 bytes
LONGEST_NAME = 500
# Larger integers can share one hash, and a dictionary of them takes quadratic time.
LARGEST_KEY = 2**32

LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


def unpickle(program: bytes, source: str = "the pickle") -> Any:
    """Run a pickle on a machine that only makes data.

    The length of the program bounds time and memory. Each instruction takes one step. The number of
    copied elements is at most the number of bytes, and the number of containers has a limit.

    Args:
        program: The bytes of the pickle.
        source: Name of the file in errors.

    Raises:
        CheckpointError: The program needs more than data, exceeds a limit, or is damaged.
    """
    if len(program) > LARGEST_PICKLE:
        raise CheckpointError(
            f"{source} is too large: got a pickle of {len(program)} bytes, "
            f"want at most {LARGEST_PICKLE}"
        )
    machine = _Machine(len(program))
    try:
        for step, (instruction, argument, _) in enumerate(pickletools.genops(program), start=1):
            if step > MOST_STEPS:
                _refuse(f"it takes more than {MOST_STEPS} steps")
            machine.step(instruction.name, argument)
        return machine.stack.pop()
    except CheckpointError as error:
        raise CheckpointError(
            f"{source} is not opened, and no code in it was run: {error}"
        ) from error
    except Exception as error:  # a damaged program can raise any kind of error
        raise CheckpointError(
            f"{source} is damaged: its pickle is not a valid program ({str(error)[:200]})"
        ) from error


class _Machine:
    """The stack machine of pickles, without the instructions that have effects outside of it."""

    def __init__(self, copies: int) -> None:
        self.copies = copies  # elements that may still be copied
        self.containers = MOST_CONTAINERS
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Run one instruction, by its name in `pickletools`."""
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in LITERALS:
                push(argument)
            case _ if name in CONSTANTS:
                push(CONSTANTS[name])
            case _ if name in EMPTY:
                self.count_container()
                push(EMPTY[name]())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "MARK":
                self.count_container()
                self.marked.append(self.stack)
                self.stack = []
            case "POP":
                pop()
            case "POP_MARK":
                self.since_mark()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.count_container()
                push(tuple(reversed([pop() for _ in range(int(name[-1]))])))
            case _ if name in COLLECT:
                items = self.since_mark()
                self.stack.append(COLLECT[name](items))
            case "APPEND" | "SETITEM":
                items = list(reversed([pop() for _ in range(1 if name == "APPEND" else 2)]))
                _extend(self.stack[-1], items)
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items = self.since_mark()
                _extend(self.stack[-1], items)
            case "GLOBAL":
                push(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(_global(module, attribute))
            case "REDUCE" | "NEWOBJ":
                args, called = pop(), pop()
                self.count_container()
                self.count_copies(args)
                push(_call(called, args))
            case "BUILD":
                state = pop()
                _build(self.stack[-1], state)
            case "BINPERSID":
                push(_storage(pop()))
            case _:
                _refuse(f"it uses the instruction {name}, which no torch.save file needs")

    def count_container(self) -> None:
        """Count a list, tuple, dictionary, set or record; CheckpointError above the limit."""
        self.containers -= 1
        if self.containers < 0:
            _refuse(f"it makes more than {MOST_CONTAINERS} containers")

    def count_copies(self, args: Any) -> None:
        """Count copied arguments, because a program can call a name often with one long list."""
        parts = args if isinstance(args, tuple) else ()
        self.copies -= sum(
            len(part) for part in parts if isinstance(part, list | tuple | set | frozenset | str)
        )
        if self.copies < 0:
            _refuse("it copies more elements than it has bytes")

    def since_mark(self) -> list[Any]:
        """Pop all values pushed since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items


def _global(module: Any, name: Any) -> Global:
    """An allowed name as a `Global`; CheckpointError for all others."""
    if not all(isinstance(part, str) and len(part) <= LONGEST_NAME for part in (module, name)):
        _refuse(f"it has a name that is not a string of at most {LONGEST_NAME} characters")
    full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
    inert = module.partition(".")[0] in INERT_PACKAGES
    # A dotted attribute would give access to all that a module has imported.
    if full in INERT_NAMES or (inert and name.isidentifier()):
        return Global(full)
    _refuse(f"it names {full[:200]}, which does not belong in a checkpoint of weights")


def _call(called: Any, args: Any) -> Any:
    """The result of a call as data: known containers, bytes and tensors, else a `Record`."""
    if not isinstance(called, Global) or not isinstance(args, tuple):
        _refuse(
            f"it calls a {type(called).__name__} with a {type(args).__name__}: "
            "want a name and a tuple"
        )
    match called.name, args:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", ([*pairs],):
            return {_key(key): value for key, value in pairs}
        case "builtins.set" | "builtins.frozenset", ([*items],):
            kind = set if called.name == "builtins.set" else frozenset
            return kind(map(_key, items))
        # Bytes in pickles before protocol 3.
        case "_codecs.encode", (str(text), "latin1"):
            return text.encode("latin-1")
        case "builtins.bytes", ():
            return b""
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, size, stride, *_):
            return _stored(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter", (StoredTensor() as data, *_):
            return data
    return Record(called.name)


def _stored(storage: Storage, offset: Any, size: Any, stride: Any) -> StoredTensor:
    if not (
        isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 64
    ):
        _refuse(f"tensor data/{storage.key} has a size and a stride that do not match")
    if not all(
        isinstance(number, int) and 0 <= number < 2**62 for number in (offset, *size, *stride)
    ):
        _refuse(f"tensor data/{storage.key} has an offset, a size or a stride outside 0 to 2^62")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if prod(size) > storage.numel or (prod(size) and last >= storage.numel):
        _refuse(f"tensor data/{storage.key} reaches beyond its {storage.numel} elements")
    return StoredTensor(storage, offset, size, stride)


def _storage(pid: Any) -> Storage:
    """A storage from torch's persistent id ("storage", kind, key, device, number of elements)."""
    match pid:
        case ("storage", Global(kind), str(key), str(), int(numel)) if (
            key.isalnum() and 0 <= numel < 2**62
        ):
            if kind in DTYPES or kind == "torch.storage.UntypedStorage":
                return Storage(key, DTYPES.get(kind), numel)
    _refuse("it refers to an object outside of the pickle that is not a storage of a tensor")


def _build(made: Any, state: Any) -> None:
    """Set the state of a record. The state of a dict (versions of modules) is dropped."""
    if isinstance(made, Record):
        made.state = state
    elif not isinstance(made, dict):
        _refuse(f"it sets the state of a {type(made).__name__}")


def _extend(made: Any, items: list[Any]) -> None:
    """Add items to a container: values, or alternating keys and values for a dict."""
    match made:
        case dict():
            made.update(_mapping(items))
        case list():
            made.extend(items)
        case set():
            made.update(map(_key, items))
        case Record():
            pass  # items of a subclass of list or dict are not needed
        case _:
            _refuse(f"it adds items to a {type(made).__name__}")


def _mapping(items: list[Any]) -> dict[Any, Any]:
    """A dictionary of alternating keys and values."""
    return dict(zip(map(_key, items[::2]), items[1::2], strict=True))


def _key(value: Any) -> Any:
    """The value, if it hashes fast and a file cannot provoke collisions; else CheckpointError."""
    match value:
        case None | str() | bytes() | float() | Global() | Record():
            return value
        case int() if abs(value) < LARGEST_KEY:
            return value
        case tuple() if len(value) <= 8 and all(
            isinstance(part, str | Global | Record | None) for part in value
        ):
            return value
    _refuse(
        f"it uses a {type(value).__name__} as a key: want a name, "
        "a short tuple of names or a small number"
    )


# Instructions that make a container of all values since the last mark.
COLLECT: Mapping[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": _mapping,
    "FROZENSET": lambda items: frozenset(map(_key, items)),
}


def _refuse(why: str) -> NoReturn:
    raise CheckpointError(why)
