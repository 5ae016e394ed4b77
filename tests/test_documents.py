"""Documents: their code runs, and the names and files in them exist.

Every ```python block must be valid Python. Blocks after a line `<!-- run -->` are run from top to
bottom in an empty folder, with one namespace a document. Examples are documents too.
"""

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import unmask

ROOT = Path(__file__).parents[1]
HOMES = [ROOT / "src" / "unmask", ROOT, ROOT / "tests"]
DOCUMENTS = sorted(
    file.relative_to(ROOT).as_posix() for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
EXAMPLES = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob("examples/*.py"))
EXAMPLE_LINES = 60

BLOCK = re.compile(
    r"(?ms)^(?P<mark><!-- run -->\n+)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$"
)
PLACE = re.compile(r"`(?P<file>[\w./-]+\.py):(?P<name>[A-Za-z_][\w.]*)`")
FILE = re.compile(r"`(?P<file>(?:src|tests|docs|examples|benchmarks)/[\w./-]+)`")
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)[^)]*\)")
TARGET = re.compile(r"(?m)(?:`|^)make (?P<target>[a-z0-9]+)")

PRIVATE = re.compile("|".join(["/" + "work" + r"\b", "/" + "root/", r"\.\./" + "shared"]))
TEXT = {
    "",
    ".cff",
    ".css",
    ".csv",
    ".html",
    ".js",
    ".json",
    ".jsonl",
    ".md",
    ".py",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: language, code, its first line, and whether it is marked to be run."""

    language: str
    code: str
    line: int
    marked: bool


def read(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(found["language"], found["code"], line, found["mark"] is not None)


def defines(tree: ast.Module, name: str) -> bool:
    """Whether `name` or `Class.name` is defined at the top level of the module or class."""
    body: list[ast.stmt] = tree.body
    for part in name.split("."):
        for node in body:
            match node:
                case ast.FunctionDef(name=found) | ast.ClassDef(name=found) if found == part:
                    body = node.body
                    break
                case ast.AnnAssign(target=ast.Name(id=found)) if found == part:
                    break
                case ast.Assign(targets=targets) if part in [
                    t.id for t in targets if isinstance(t, ast.Name)
                ]:
                    break
        else:
            return False
    return True


def missing_places(text: str) -> list[str]:
    """`file.py:name` and `src/...` paths of a text that lead nowhere."""
    missing = [found[0] for found in FILE.finditer(text) if not (ROOT / found["file"]).exists()]
    for found in PLACE.finditer(text):
        files = [home / found["file"] for home in HOMES if (home / found["file"]).is_file()]
        if not any(defines(ast.parse(file.read_text("utf-8")), found["name"]) for file in files):
            missing.append(found[0])
    return missing


def test_the_readers_read() -> None:
    """The patterns above find their targets: a pattern that finds nothing passes every document."""
    text = "a\n<!-- run -->\n```python\nx = 1\n```\n\n```sh\nmake demo\n```\n"
    assert list(blocks(text)) == [
        Block("python", "x = 1\n", 4, True),
        Block("sh", "make demo\n", 8, False),
    ]
    assert (
        missing_places(
            "`rng.py:mix_` `prediction.py:LOG_ZERO` `prediction.py:Prediction.log_p` `src/unmask`"
        )
        == []
    )
    assert (
        len(
            missing_places("`rng.py:no` `no.py:f` `prediction.py:Prediction.no` `src/unmask/no.py`")
        )
        == 4
    )
    assert [found["target"] for found in TARGET.finditer(text + "and `make test`")] == [
        "demo",
        "test",
    ]
    assert LINK.findall("[a](docs/a.md#b) [c](https://c.d)") == ["docs/a.md", "https://c.d"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_is_python(document: str) -> None:
    for block in blocks(read(document)):
        if block.language == "python":
            compile("\n" * (block.line - 1) + block.code, document, "exec", dont_inherit=True)


@pytest.mark.parametrize(
    "document", [name for name in DOCUMENTS if any(block.marked for block in blocks(read(name)))]
)
def test_marked_code_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(read(document)):
        if block.marked:
            assert block.language == "python", (
                f"{document}:{block.line}: only Python blocks are run"
            )
            exec(
                compile("\n" * (block.line - 1) + block.code, document, "exec", dont_inherit=True),
                namespace,
            )


@pytest.mark.slow
def test_marked_code_has_types(tmp_path: Path) -> None:
    """The first lines of Python that a user sees pass `mypy --strict`: one call for all of them."""
    pytest.importorskip("mypy")
    files = []
    for document in ("README.md", "docs/concepts.md"):
        files.append(tmp_path / f"{Path(document).stem.lower()}_blocks.py")
        code = "\n".join(block.code for block in blocks(read(document)) if block.marked)
        files[-1].write_text(code, "utf-8")
    call = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--strict"]
    done = subprocess.run([*call, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_and_files_exist(document: str) -> None:
    assert missing_places(read(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    targets = [target for target in LINK.findall(read(document)) if ":" not in target]
    assert [
        target for target in targets if not (ROOT / document).parent.joinpath(target).exists()
    ] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", read("Makefile"), re.MULTILINE))
    text = "\n".join(
        [
            *(block.code for block in blocks(read(document))),
            *re.findall(r"`make [a-z0-9]+", read(document)),
        ]
    )
    assert {found["target"] for found in TARGET.finditer(text)} <= targets


def test_nothing_private_is_mentioned() -> None:
    kept = [
        path
        for path in ROOT.iterdir()
        if path.name == ".ci" or not path.name.startswith((".", "runs"))
    ]
    files = [
        file
        for path in kept
        for file in [path, *path.rglob("*")]
        if file.is_file() and file.suffix in TEXT
    ]
    assert [file.name for file in files if PRIVATE.search(file.read_text("utf-8"))] == []


def test_one_version() -> None:
    """The package, CITATION.cff and the newest entry of CHANGELOG.md agree."""
    assert (
        re.search(r'^version: "?([\w.]+)"?$', read("CITATION.cff"), re.MULTILINE)[1]
        == unmask.__version__
    )
    assert (
        re.search(r"^## \[([\d.]+)\]", read("CHANGELOG.md"), re.MULTILINE)[1] == unmask.__version__
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_short_and_run(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(example).count("\n") <= EXAMPLE_LINES
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / example), run_name="__main__")
