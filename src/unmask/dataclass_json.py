"""Conversion between dataclasses and JSON, and safe reading of JSON files.

Recipes and reports are dataclasses. This module does not import torch.
"""

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
# For each type, a function (JSON value, where) -> value; `where` names the field in errors.
Readers = Mapping[type, Callable[[Any, str], Any]]

LARGEST_JSON = 2**22  # bytes of a JSON file that `read_json` accepts by default
LARGEST_REPORT = 2**28  # bytes of a report.json, which holds texts and a number for each sample


def to_json(value: Any) -> Any:
    """Turn dataclasses into dicts and tuples into lists, recursively: plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def dumps(value: Any, indent: int | None = None, ascii: bool = False) -> str:
    """Write plain data as strict JSON text: NaN and infinities become null (see `not_finite`).

    Args:
        value: plain data: dicts, lists, tuples, numbers, strings, bools, None.
        indent: spaces for each level; None: one line.
        ascii: escape letters outside ASCII.

    >>> dumps({"worst": float("inf"), "name": "é"})
    '{"worst": null, "name": "é"}'
    """
    return json.dumps(finite(value), indent=indent, ensure_ascii=ascii, allow_nan=False)


def not_finite(value: Any, where: str = "") -> list[str]:
    """List the paths of the numbers in plain data that are not finite.

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
    return [path for name, item in items for path in not_finite(item, name)]


def finite(value: Any) -> Any:
    """Replace every number that is not finite by None."""
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
    """Build a dataclass from a JSON value.

    Args:
        kind: the dataclass.
        value: the JSON object.
        where: the name of the value in errors, such as "recipe".
        strict: refuse fields that `kind` does not have; False: ignore them.
        readers: functions for types with their own JSON form.

    Raises:
        ValueError: names the field that is missing, unknown or of the wrong type.
    """
    return typing.cast(T, _JsonReader(strict, readers or {}).record(kind, value, where))


def read_json(file: Path, largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: for a device or a pipe, for more than `largest` bytes, and for invalid JSON.
            NaN, Infinity and an object with a duplicate name are invalid too.
        FileNotFoundError: if there is no file.
    """
    check_regular(file, largest)
    try:
        return json.loads(
            file.read_bytes().decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_names,
        )
    except RecursionError as error:
        raise ValueError(f"{file} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def check_regular(file: Path, largest: int | None = None) -> None:
    """Raise ValueError unless `file` is a regular file of at most `largest` bytes.

    Reading a pipe or a device might never end.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file} is not a regular file but a directory, a pipe or a device")
    if largest is not None and status.st_size > largest:
        raise ValueError(f"{file} is too large: got {status.st_size} bytes, want at most {largest}")


def _refuse_constant(spelling: str) -> NoReturn:
    raise ValueError(f"{spelling} is not a JSON number")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the name {twice!r} twice")
    return record


def leaves(record: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of nested dataclasses with dotted names, such as ("optim.lr", 3e-4)."""
    for field in dataclasses.fields(record):
        value, name = getattr(record, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def check_plain(record: Any) -> None:
    """Raise ValueError if a JSON file cannot hold a field of nested dataclasses.

    Floats must be finite, integers must fit in 64 bits, and strings must be valid UTF-8.
    """
    for name, value in leaves(record):
        for item in value if isinstance(value, tuple) else (value,):
            _check_leaf(name, item)


def _check_leaf(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is not finite: got {value}, want a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is out of range: got {value}, want an integer of 64 bits")
    if isinstance(value, str) and _has_lone_surrogate(value):
        raise ValueError(f"{name} is not UTF-8: got {value!r}, want text that UTF-8 can encode")


@dataclasses.dataclass(frozen=True)
class _JsonReader:
    """Reads JSON values by the type hints of dataclasses. `where` names the value in errors."""

    strict: bool
    readers: Readers

    def record(self, kind: type, value: Any, where: str) -> Any:
        """A dataclass `kind`, from a JSON object."""
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{where} has the wrong type: got {value!r}, want an object with the fields of "
                f"{kind.__name__}"
            )
        hints = _hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if self.strict:
            _check_names(value, list(fields), where)
        for field in fields.values():
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in value:
                raise ValueError(
                    f"{where}.{field.name} is missing: {where} has {', '.join(fields)}"
                )
        return kind(
            **{
                name: self.read(hints[name], value[name], f"{where}.{name}")
                for name in fields
                if name in value
            }
        )

    def read(self, hint: Any, value: Any, where: str) -> Any:
        """A value of the type `hint`, from a JSON value."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if hint in self.readers:
            return self.readers[hint](value, where)
        if dataclasses.is_dataclass(hint):
            return self.record(typing.cast(type, hint), value, where)
        if origin is Literal:
            return _literal(arguments, value, where)
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            kinds = [argument for argument in arguments if argument is not type(None)]
            kind = kinds[0] if len(kinds) == 1 else _record_of_kind(kinds, value, where)
            return self.read(kind, value, where)
        if origin in (tuple, list, Sequence):
            return self.items(origin, arguments, value, where)
        if origin is Mapping:
            if not isinstance(value, Mapping):
                raise ValueError(f"{where} has the wrong type: got {value!r}, want an object")
            return {
                key: self.read(arguments[1], item, f"{where}.{_text(key, where)}")
                for key, item in value.items()
            }
        return _scalar(hint, value, where)

    def items(self, origin: Any, arguments: Sequence[Any], value: Any, where: str) -> Any:
        """A tuple or a list, from a JSON list."""
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} has the wrong type: got {value!r}, want a list")
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            raise ValueError(
                f"{where} has the wrong length: got {value!r}, want a list of {len(arguments)}"
            )
        hints = arguments if fixed else [arguments[0]] * len(value)
        items = [
            self.read(hint, item, f"{where}[{i}]")
            for i, (hint, item) in enumerate(zip(hints, value, strict=True))
        ]
        return tuple(items) if origin is tuple else items


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _record_of_kind(records: Sequence[Any], value: Any, where: str) -> Any:
    """The dataclass, of several, whose field `kind` has the value's `kind`."""
    kinds = {typing.get_args(_hints(record)["kind"])[0]: record for record in records}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return kinds[_literal(list(kinds), kind, f"{where}.kind")]


def _check_names(value: Mapping[str, Any], fields: Sequence[str], where: str) -> None:
    """Raise ValueError for a name that is not a field; the error suggests the nearest field."""
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f": it has {', '.join(fields)}"
            raise ValueError(f"{where} has no field {name!r}{hint}")


def _literal(allowed: Sequence[Any], value: Any, where: str) -> Any:
    if not any(value == item and type(value) is type(item) for item in allowed):
        raise ValueError(
            f"{where} is unknown: got {value!r}, want one of {', '.join(map(repr, allowed))}"
        )
    return value


def _scalar(hint: type, value: Any, where: str) -> Any:
    """Check a str, bool, int or float. A whole number is a float too; a bool is not a number."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise ValueError(
                f"{where} is too large: got a whole number of {value.bit_length()} bits, "
                "want a float"
            )
        return float(value)
    if hint is str and isinstance(value, str):
        return _text(value, where)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} has the wrong type: got {value!r}, want {hint.__name__}")
    return value


def _text(value: str, where: str) -> str:
    """Check a string. ValueError for a lone surrogate, which JSON can express and UTF-8 cannot."""
    if _has_lone_surrogate(value):
        raise ValueError(
            f"{where} has a lone surrogate: got {value!a}, want text that UTF-8 can encode"
        )
    return value


def _has_lone_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
