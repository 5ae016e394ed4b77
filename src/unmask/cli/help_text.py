"""From docstrings to the help of flags: `name   what it is` in a dataclass's docstring becomes the flag's sentence."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator


def explain(kind: type) -> None:
    """Rewrite the docstrings of a dataclass and of those in its fields into the form that tyro reads."""
    for each in {*dataclasses_of(kind)}:
        doc = inspect.getdoc(each) or ""
        if "\nArgs:\n" not in doc:
            each.__doc__ = sections(doc, [f.name for f in dataclasses.fields(each)])


def sections(text: str, fields: typing.Sequence[str]) -> str:
    r"""A docstring with its lines about fields in a section `Args`, the rest before it.

    >>> text = "A run.\n\nlr       peak learning rate,\n         in nats\nn, seed  numbers\n\nMore."
    >>> print(sections(text, ["lr", "n", "seed"]))
    A run.
    <BLANKLINE>
    More.
    <BLANKLINE>
    Args:
        lr: peak learning rate, in nats
        n: numbers
        seed: numbers
    """
    kept: list[str] = []
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        start = re.match(r"(\w+(?:, \w+)*) {2,}(\S.*)", line)
        if start and {*start[1].split(", ")} <= {*fields}:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2].strip())
        elif names and line.startswith("  "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
            kept.append(line)
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    if not found:
        return body
    return "\n".join([body, "", "Args:", *(f"    {name}: {what}" for name, what in found.items())])


def empty_flag(kind: type, arguments: typing.Sequence[str]) -> str | None:
    """The flag of the first empty text among the arguments, None where there is none.

    A field whose default is the empty text may be given it. Elsewhere it is a variable of a shell script that was not
    set: as a path it would name the working directory.
    """
    free = {
        f.name for each in dataclasses_of(kind) for f in dataclasses.fields(each) if f.default == ""
    }
    flag = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        flag = name if word.startswith("--") else flag
        empty = not word or (word.startswith("--") and equals and not value)
        if empty and flag.rpartition(".")[2].lstrip("-").replace("-", "_") not in free:
            return flag or "an argument"
    return None


def dataclasses_of(kind: object) -> Iterator[type]:
    """The dataclasses in a type: itself, those of its fields, those of a union."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for hint in typing.get_type_hints(kind, include_extras=False).values():
            yield from dataclasses_of(hint)
    for argument in typing.get_args(kind):
        yield from dataclasses_of(argument)
