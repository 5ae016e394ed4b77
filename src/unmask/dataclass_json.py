"""Dataclasses as plain JSON data and back: recipes, reports. JSON files, read within bounds. No torch here."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import stat
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

T = TypeVar("T")
Readers = Mapping[type, Callable[[Any, str], Any]]  # type -> (value, where) -> what it means


def to_json(value: Any) -> Any:
    """Dataclasses and tuples to plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def dumps(value: Any, indent: int | None = None, ascii: bool = False) -> str:
    """Plain data as JSON text that every reader takes: a number that is not finite is null (`not_finite` names it).

    ascii  letters outside of ASCII are written as escapes

    >>> dumps({"worst": float("inf"), "name": "é"})
    '{"worst": null, "name": "é"}'
    """
    return json.dumps(finite(value), indent=indent, ensure_ascii=ascii, allow_nan=False)


def not_finite(value: Any, where: str = "") -> list[str]:
    """The places of plain data where a number is not finite.

    >>> not_finite({"rows": [{"sem": float("nan"), "n": 2}]})
    ['rows[0].sem']
    """
    if isinstance(value, float):
        return [] if math.isfinite(value) else [where]
    if isinstance(value, Mapping):
        items = [(f"{where}.{key}" if where else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{where}[{i}]", item) for i, item in enumerate(value)]
    else:
        return []
    return [place for name, item in items for place in not_finite(item, name)]


def finite(value: Any) -> Any:
    """Plain data with None in the place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def from_json(
    kind: type[T], value: Any, where: str, *, strict: bool = True, readers: Readers | None = None
) -> T:
    """The dataclass `kind` from JSON; ValueError names the field that is missing, unknown or of another type.

    where    what the value is called in errors: "recipe"
    strict   False: fields that `kind` does not have are left alone
    readers  types that are written in a form of their own
    """
    return typing.cast(T, _Reader(strict, readers or {}).record(kind, value, where))


LARGEST_JSON = 2**22  # bytes of a JSON file that `read_json` reads by default
LARGEST_REPORT = 2**28  # bytes of a report.json, which holds texts and a number for each sample


def read_json(file: Path, largest: int = LARGEST_JSON) -> Any:
    """The value of a JSON file in UTF-8, with or without a byte order mark.

    ValueError for a device or a pipe, for more than `largest` bytes, for NaN and Infinity, for a name that an object
    has twice, and for anything else that is no JSON; FileNotFoundError where there is no file.
    """
    check_regular(file, largest)
    try:
        return json.loads(
            file.read_bytes().decode("utf-8-sig"),
            parse_constant=_no_number,
            object_pairs_hook=_once,
        )
    except RecursionError as error:
        raise ValueError(f"{file} is no JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def check_regular(file: Path, largest: int | None = None) -> None:
    """ValueError unless this is a regular file of at most `largest` bytes: a pipe or a device may never end."""
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(
            f"{file} is no regular file but a directory, a pipe or a device: it is not read"
        )
    if largest is not None and facts.st_size > largest:
        raise ValueError(f"{file} is too large: got {facts.st_size} bytes, want at most {largest}")


def _no_number(spelling: str) -> NoReturn:
    raise ValueError(f"{spelling} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"an object has the name {next(name for name in names if names.count(name) > 1)!r} twice"
        )
    return found


def leaves(record: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass and of those in it, by dotted names: ("optim.lr", 3e-4)."""
    for field in dataclasses.fields(record):
        value, name = getattr(record, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def check_plain(record: Any) -> None:
    """ValueError for a field that JSON files cannot keep, in a dataclass or in those in it.

    A float is finite, an integer has 64 bits, a text has a form in UTF-8.
    """
    each = (
        (name, item)
        for name, value in leaves(record)
        for item in (value if isinstance(value, tuple) else (value,))
    )
    for name, value in each:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is not finite: got {value}, want a finite number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} is out of range: got {value}, want an integer of 64 bits")
        if isinstance(value, str) and _half(value):
            raise ValueError(f"{name} is no UTF-8: got {value!r}, want text; rename it")


@dataclasses.dataclass(frozen=True)
class _Reader:
    strict: bool
    readers: Readers

    def record(self, kind: type, value: Any, where: str) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{where} holds the fields of {kind.__name__}: want an object, got {value!r}"
            )
        hints = _hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        if self.strict:
            for name in value:
                if name not in fields:
                    near = difflib.get_close_matches(name, fields, n=1)
                    hint = (
                        f", did you mean {near[0]!r}?" if near else f": it has {', '.join(fields)}"
                    )
                    raise ValueError(f"{where} has no field {name!r}{hint}")
        for f in fields.values():
            if f.name not in value and f.default is f.default_factory is dataclasses.MISSING:
                raise ValueError(f"{where}.{f.name} is missing: {where} has {', '.join(fields)}")
        known = {name: value[name] for name in fields if name in value}
        return kind(
            **{
                name: self.read(hints[name], item, f"{where}.{name}")
                for name, item in known.items()
            }
        )

    def read(self, hint: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if hint in self.readers:
            return self.readers[hint](value, where)
        if dataclasses.is_dataclass(hint):
            return self.record(typing.cast(type, hint), value, where)
        if origin is Literal:
            if not any(
                value == argument and type(value) is type(argument) for argument in arguments
            ):
                raise ValueError(
                    f"{where} is one of {', '.join(map(repr, arguments))}: got {value!r}"
                )
            return value
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            kinds = [argument for argument in arguments if argument is not type(None)]
            return (
                self.read(kinds[0], value, where)
                if len(kinds) == 1
                else self.one_of(kinds, value, where)
            )
        if origin in (tuple, list, Sequence):
            return self.items(origin, arguments, value, where)
        if origin is Mapping:
            if not isinstance(value, Mapping):
                raise ValueError(f"{where} is an object: got {value!r}")
            return {
                key: self.read(arguments[1], item, f"{where}.{_text(key, where)}")
                for key, item in value.items()
            }
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > sys.float_info.max:
                raise ValueError(
                    f"{where} is too large: got a whole number of {value.bit_length()} bits, want a float"
                )
            return float(value)
        if hint is str and isinstance(value, str):
            return _text(value, where)
        if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{where} is a value of type {hint.__name__}: got {value!r}")
        return value

    def items(self, origin: Any, arguments: Sequence[Any], value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is a list: got {value!r}")
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            raise ValueError(f"{where} is a list of {len(arguments)}: got {value!r}")
        inner = arguments if fixed else [arguments[0]] * len(value)
        found = [
            self.read(h, item, f"{where}[{i}]")
            for i, (h, item) in enumerate(zip(inner, value, strict=True))
        ]
        return tuple(found) if origin is tuple else found

    def one_of(self, records: Sequence[Any], value: Any, where: str) -> Any:
        """One of several records, told apart by their field `kind`."""
        kinds = {typing.get_args(_hints(record)["kind"])[0]: record for record in records}
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if kind not in kinds:
            raise ValueError(f"{where}.kind is one of {', '.join(map(repr, kinds))}: got {kind!r}")
        return self.record(kinds[kind], value, where)


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _text(value: str, where: str) -> str:
    """The text; ValueError for half of a surrogate pair, which JSON may spell."""
    if _half(value):
        raise ValueError(
            f"{where} holds half of a surrogate pair: got {value!a}, want text that UTF-8 can hold"
        )
    return value


def _half(text: str) -> bool:
    """True where a text holds half of a surrogate pair, for which UTF-8 has no form."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
