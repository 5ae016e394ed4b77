"""Pickles, read as data: nothing that a pickle names is ever imported or called.

A pickle is a program for a small stack machine that may look up any name of any module and call it. Python's own
unpickler with a list of allowed names, which is what `torch.load` can be given, only shortens that list: it still
calls what is on it with arguments that the file chose, and still lets the program set attributes of whatever it
reaches. Here the program runs on a machine every instruction of which makes plain data: a name becomes a `Global`,
a call of it a `Record`, a tensor a `Stored`, which says where its bytes are. No instruction leads out of the machine;
that unknown names are refused besides is a second wall.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

import torch


class CheckpointError(ValueError):
    """A file or directory does not hold the weights it should; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle mentions: never looked up."""

    name: str


@dataclass(eq=False)
class Record:
    """What a pickle would make by calling `name`: never called."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """The bytes NAME/data/`key` of an archive: `numel` elements; dtype None for kinds that no weights have."""

    key: str
    dtype: torch.dtype | None
    numel: int


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of an archive: a strided view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


# Packages whose names may stand in a checkpoint: they say how it was made, and are kept as names.
INERT_PACKAGES = frozenset(
    "omegaconf transformers tokenizers lightning lightning_fabric pytorch_lightning typing collections numpy".split()
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
INERT_NAMES = frozenset(
    [
        *DTYPES,
        *(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
        *(f"torch._utils._rebuild_{kind}" for kind in ("tensor_v2", "tensor_v3", "parameter")),
        *("torch.storage.UntypedStorage", "torch.Size", "torch.device", "_codecs.encode"),
        *(
            f"builtins.{kind}"
            for kind in "bool int float complex str bytes bytearray object".split()
        ),
        *(f"builtins.{kind}" for kind in "list tuple dict set frozenset slice range".split()),
    ]
)
LARGEST_PICKLE = 2**25  # bytes; a tokenizer inside takes a few million, tensors a hundred each
MOST_STEPS = 2**23  # a second for each half million
MOST_CONTAINERS = 2**20  # an instruction of one byte makes an empty set of 216 bytes
LONGEST_NAME = 500
LARGEST_KEY = (
    2**32
)  # greater integers may have one hash, and a dictionary of them takes quadratic time

LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


def unpickle(program: bytes, source: str = "the pickle") -> Any:
    """Run a pickle on the machine that only makes data; CheckpointError, naming it, where it asks for more.

    Time and memory are bounded by the length of the program: an instruction takes one step, what is copied from one
    value to another is no more than the program is long, and the number of containers has a limit.
    """
    if len(program) > LARGEST_PICKLE:
        raise CheckpointError(
            f"{source}: a pickle of {len(program)} bytes, want at most {LARGEST_PICKLE}"
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
            f"{source} is not opened, and nothing in it was run: {error}"
        ) from error
    except Exception as error:  # a damaged program can fail in any way; none of them is ours
        raise CheckpointError(
            f"{source} is damaged: its pickle makes no sense ({str(error)[:200]})"
        ) from error


class _Machine:
    """The stack machine of pickles, less everything that reaches outside of it."""

    def __init__(self, copies: int) -> None:
        self.copies = copies  # elements that may still be copied
        self.containers = MOST_CONTAINERS
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction, by its name in `pickletools`."""
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
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                self.collect(name, self.since_mark())
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
                raise CheckpointError(
                    f"it uses the instruction {name}, which no torch.save file needs"
                )

    def count_container(self) -> None:
        """One more list, tuple, dictionary, set or record."""
        self.containers -= 1
        if self.containers < 0:
            _refuse(f"it makes more than {MOST_CONTAINERS} containers")

    def count_copies(self, args: Any) -> None:
        """Bound the copies of arguments: a program can call many times with one long list."""
        parts = args if isinstance(args, tuple) else ()
        self.copies -= sum(
            len(part) for part in parts if isinstance(part, list | tuple | set | frozenset | str)
        )
        if self.copies < 0:
            _refuse("it copies more than it is long")

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def collect(self, name: str, items: list[Any]) -> None:
        """Push a container of items."""
        match name:
            case "TUPLE":
                self.stack.append(tuple(items))
            case "LIST":
                self.stack.append(items)
            case "FROZENSET":
                self.stack.append(frozenset(map(_key, items)))
            case _:
                made: dict[Any, Any] = {}
                self.stack.append(made)
                _extend(made, items)


def _global(module: Any, name: Any) -> Global:
    """A name of the list, as a name; all others are refused."""
    if not all(isinstance(part, str) and len(part) <= LONGEST_NAME for part in (module, name)):
        _refuse(f"it names something by what is no string of at most {LONGEST_NAME} characters")
    full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
    inert = module.partition(".")[0] in INERT_PACKAGES
    # A dotted attribute would reach through a module to whatever that has imported.
    if full in INERT_NAMES or (inert and name.isidentifier()):
        return Global(full)
    raise CheckpointError(f"it names {full[:200]}, which is no part of a checkpoint of weights")


def _call(called: Any, args: Any) -> Any:
    """The data that a call stands for: containers, bytes and tensors of the kinds known here, else a `Record`."""
    if not isinstance(called, Global) or not isinstance(args, tuple):
        _refuse(
            f"it calls a {type(called).__name__} with a {type(args).__name__}: want a name and a tuple"
        )
    match called.name, args:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", ([*pairs],):
            return {_key(key): value for key, value in pairs}
        case "builtins.set" | "builtins.frozenset", ([*items],):
            kind = set if called.name == "builtins.set" else frozenset
            return kind(map(_key, items))
        case "_codecs.encode", (
            str(text),
            "latin1",
        ):  # pickles before protocol 3 spell bytes so, and b"" as a call
            return text.encode("latin-1")
        case "builtins.bytes", ():
            return b""
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, size, stride, *_):
            return _stored(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter", (Stored() as data, *_):
            return data
    return Record(called.name, args)


def _stored(storage: Storage, offset: Any, size: Any, stride: Any) -> Stored:
    if not (
        isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 64
    ):
        _refuse(f"tensor data/{storage.key} has a size and a stride that do not match")
    if not all(
        isinstance(number, int) and 0 <= number < 2**62 for number in (offset, *size, *stride)
    ):
        _refuse(f"tensor data/{storage.key} has an offset, a size or a stride that is no count")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if prod(size) > storage.numel or (prod(size) and last >= storage.numel):
        _refuse(f"tensor data/{storage.key} reaches beyond its {storage.numel} elements")
    return Stored(storage, offset, size, stride)


def _storage(pid: Any) -> Storage:
    """A storage from torch's persistent id ("storage", kind, key, device, number of elements)."""
    match pid:
        case ("storage", Global(kind), str(key), str(), int(numel)) if (
            key.isalnum() and 0 <= numel < 2**62
        ):
            if kind in DTYPES or kind == "torch.storage.UntypedStorage":
                return Storage(key, DTYPES.get(kind), numel)
    _refuse("it refers to something outside of the pickle that is no storage of a tensor")


def _build(made: Any, state: Any) -> None:
    """Keep the state of a record; a dict has none worth keeping (module versions)."""
    if isinstance(made, Record):
        made.state = state
    elif not isinstance(made, dict):
        _refuse(f"it sets the state of a {type(made).__name__}")


def _extend(made: Any, items: list[Any]) -> None:
    """Put items into a container: values, or keys and values in turn for a dict."""
    match made:
        case dict():
            made.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        case list():
            made.extend(items)
        case set():
            made.update(map(_key, items))
        case Record():
            made.items.extend(items)
        case _:
            _refuse(f"it adds items to a {type(made).__name__}")


def _key(value: Any) -> Any:
    """A key that hashes in a moment, and that a file cannot give the hash of many others."""
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
        f"it uses a {type(value).__name__} as a key: want a name, a short tuple of names or a small number"
    )


def _refuse(why: str) -> NoReturn:
    raise CheckpointError(why)
