"""Dataclasses as plain JSON data and back: recipes, reports. No torch here."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Readers = Mapping[type, Callable[[Any, str], Any]]  # type -> (value, where) -> what it means


def to_json(value: Any) -> Any:
    """Dataclasses and tuples to plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Any, where: str, *, strict: bool = True, readers: Readers | None = None) -> T:
    """The dataclass `kind` from JSON; ValueError names the field that is missing, unknown or of another type.

    where    what the value is called in errors: "recipe"
    strict   False: fields that `kind` does not have are left alone
    readers  types that are written in a form of their own
    """
    return typing.cast(T, _Reader(strict, readers or {}).record(kind, value, where))


@dataclasses.dataclass(frozen=True)
class _Reader:
    strict: bool
    readers: Readers

    def record(self, kind: type, value: Any, where: str) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} holds the fields of {kind.__name__}: want an object, got {value!r}")
        hints = _hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        if self.strict:
            for name in value:
                if name not in fields:
                    near = difflib.get_close_matches(name, fields, n=1)
                    hint = f", did you mean {near[0]!r}?" if near else f": it has {', '.join(fields)}"
                    raise ValueError(f"{where} has no field {name!r}{hint}")
        for f in fields.values():
            if f.name not in value and f.default is f.default_factory is dataclasses.MISSING:
                raise ValueError(f"{where}.{f.name} is missing: {where} has {', '.join(fields)}")
        known = {name: value[name] for name in fields if name in value}
        return kind(**{name: self.read(hints[name], item, f"{where}.{name}") for name, item in known.items()})

    def read(self, hint: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if hint in self.readers:
            return self.readers[hint](value, where)
        if dataclasses.is_dataclass(hint):
            return self.record(typing.cast(type, hint), value, where)
        if origin is Literal:
            if not any(value == argument and type(value) is type(argument) for argument in arguments):
                raise ValueError(f"{where} is one of {', '.join(map(repr, arguments))}: got {value!r}")
            return value
        if origin in (typing.Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            kinds = [argument for argument in arguments if argument is not type(None)]
            return self.read(kinds[0], value, where) if len(kinds) == 1 else self.one_of(kinds, value, where)
        if origin in (tuple, list, Sequence):
            return self.items(origin, arguments, value, where)
        if origin is Mapping:
            if not isinstance(value, Mapping):
                raise ValueError(f"{where} is an object: got {value!r}")
            return {key: self.read(arguments[1], item, f"{where}.{_text(key, where)}") for key, item in value.items()}
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > sys.float_info.max:
                raise ValueError(f"{where} is too large: got a whole number of {value.bit_length()} bits, want a float")
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
        found = [self.read(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(zip(inner, value, strict=True))]
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
    """Text that can be written: JSON may spell half of a surrogate pair, and UTF-8 has no form for it."""
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{where} holds half of a surrogate pair: got {value!a}, want text that UTF-8 can hold")
    return value
