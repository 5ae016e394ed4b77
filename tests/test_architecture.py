"""Rules of the architecture, checked on the source (docs/architecture.md, CONTRIBUTING.md).

A rule reads one source file and yields (line, complaint). Each rule is tested with code that it
must refuse and with code that it must accept, and then reads the whole package. The effects of an
import are tested in another process.
"""

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

import unmask

PACKAGE = Path(unmask.__file__).parent

FLOORS = {
    **dict.fromkeys(
        ["types", "prediction", "rng", "dataclass_json", "atomic_files", "limits", "extras"], 0
    ),
    **dict.fromkeys(["diffusion", "data"], 1),
    **dict.fromkeys(["models"], 2),
    **dict.fromkeys(["objectives", "samplers"], 3),
    **dict.fromkeys(["evaluation", "training"], 4),
    **dict.fromkeys(["recipes"], 5),
    "cli": 6,
    "experiments": 7,
    "__main__": 8,
}
FACADE = "__init__.py"  # of src/unmask: it names things of every floor; no module imports it

FILE_LINES = 350
LONG_FILES = {  # "folder/file.py" -> the reason for its length
    "evaluation/measure.py": "one schema: measures, rows and their protocol",
    "models/model.py": "both kinds of model, and `load`",
    "recipes/catalog.py": "19 recipes, each number with its source",
    "recipes/objective_settings.py": "the settings of all objectives, a class each",
}
FUNCTION_LINES = 60
LONG_FUNCTIONS = {  # "folder/file.py:function" -> the reason for its length
    "evaluation/conditional_likelihood.py:conditional_nelbo": "a third is its docstring",
    "samplers/sample.py:sample": "its docstring lists every argument",
    "training/loop.py:fit": "the training loop reads from top to bottom",
}

FOREIGN_CONFIG = {  # files that read the config.json and tokenizer_config.json of other projects
    *(
        "evaluation/huggingface.py",
        "models/checkpoints/config.py",
        "models/checkpoints/lightning.py",
        "data/tokenizers.py",
    )
}
GRAB_BAGS = {"utils", "util", "common", "misc", "helpers"}

Complaints = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Source:
    """A Python file of the package: its path below src/unmask and its text."""

    path: str
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    def all(self, kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> list[ast.AST]:
        return [node for node in self.nodes if isinstance(node, kind)]

    @property
    def room(self) -> str:
        """The folder, or the module that stands alone."""
        return Path(self.path).parts[0].removesuffix(".py")

    @property
    def floor(self) -> int:
        return FLOORS[self.room]


@cache
def read_package() -> list[Source]:
    return [
        Source(file.relative_to(PACKAGE).as_posix(), file.read_text("utf-8"))
        for file in PACKAGE.rglob("*.py")
    ]


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import, also inside functions: a module, or module.name."""
    for node in source.nodes:
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                stem = "." * level + (module or "")
                yield from ((node.lineno, f"{stem}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name
            case ast.Call(
                func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]
            ):
                yield node.lineno, name


def called(source: Source, name: str) -> Iterator[ast.Call]:
    for node in source.nodes:
        match node:
            case ast.Call(func=ast.Name(id=found)) if found == name:
                yield node


def stands_on_lower_floors(source: Source) -> Complaints:
    for line, name in imported(source):
        if name.startswith("."):
            yield line, f"relative import {name}: write it in full, so that the floors can be read"
        parts = name.split(".")
        if parts[0] != "unmask" or name == "unmask.__version__":
            continue
        room = parts[1] if len(parts) > 1 else ""
        if room not in FLOORS:
            yield line, f"imports {name} through the public surface: name its home"
        elif room != source.room and not (
            FLOORS[room] < source.floor or FLOORS[room] == source.floor == 0
        ):
            yield line, f"floor {source.floor} imports {name} of floor {FLOORS[room]}"


def report_knows_no_torch(source: Source) -> Complaints:
    if source.path.startswith("experiments/report/"):
        for line, name in imported(source):
            if name.split(".")[0] in ("torch", "transformers", "safetensors"):
                yield line, f"the report is made from records, and imports {name}"


def config_stops_at_recipes(source: Source) -> Complaints:
    if source.floor >= FLOORS["recipes"] or source.path in FOREIGN_CONFIG:
        return
    for node in source.nodes:
        match node:
            case (
                ast.arg(arg="config")
                | ast.Name(id="config")
                | ast.Attribute(ast.Name(id="self"), "config")
            ):
                yield node.lineno, "a `config` below floor 5: pass what is used"


def files_are_short(source: Source) -> Complaints:
    lines = source.text.count("\n")
    if lines > FILE_LINES and source.path not in LONG_FILES:
        yield lines, f"{lines} lines, at most {FILE_LINES}"


def functions_are_short(source: Source) -> Complaints:
    for node in source.all((ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = node.end_lineno - node.lineno + 1
        if lines > FUNCTION_LINES and f"{source.path}:{node.name}" not in LONG_FUNCTIONS:
            yield node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES}"


def only_the_command_line_prints(source: Source) -> Complaints:
    if source.floor < FLOORS["cli"]:
        yield from (
            (call.lineno, "prints below floor 7: yield or return it")
            for call in called(source, "print")
        )


def attributes_are_known(source: Source) -> Complaints:
    yield from (
        (call.lineno, "hasattr: ask for a role, a Protocol") for call in called(source, "hasattr")
    )
    for call in called(source, "getattr"):
        if len(call.args) > 2:
            yield call.lineno, "getattr with a default hides a missing attribute"


def errors_are_not_swallowed(source: Source) -> Complaints:
    for node in source.all(ast.ExceptHandler):
        caught = (
            {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
            if node.type
            else set()
        )
        if node.type is None:
            yield node.lineno, "bare except: name what can happen"
        elif caught & {"Exception", "BaseException"} and source.floor < FLOORS["cli"]:
            if not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                yield (
                    node.lineno,
                    f"except {'/'.join(sorted(caught))} that does not raise: name what can happen",
                )


def behaviour_is_not_inherited(source: Source) -> Complaints:
    for node in source.nodes:
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attr) if (
                attr != "__init__"
            ):
                yield node.lineno, f"super().{attr}: a class is a role or final"


def files_are_named_for_what_they_hold(source: Source) -> Complaints:
    if Path(source.path).stem in GRAB_BAGS:
        yield 1, "a grab bag: name the file for what it holds"


def generators_are_made_by_rng(source: Source) -> Complaints:
    if source.path == "rng.py":
        return
    for node in source.nodes:
        match node:
            case ast.Attribute(attr="manual_seed" | "manual_seed_all"):
                yield (
                    node.lineno,
                    "torch keeps 32 bits of a seed: use rng.generator or rng.global_generators",
                )


Rule = Callable[[Source], Complaints]

# rule, path, code that it refuses, code that it lets pass
EXAMPLES: list[tuple[Rule, str, str, str]] = [
    (
        stands_on_lower_floors,
        "models/dit.py",
        "import unmask.samplers.sample",
        "import unmask.diffusion.schedules",
    ),
    (
        stands_on_lower_floors,
        "models/dit.py",
        "from unmask import cli",
        "from unmask import __version__",
    ),
    (stands_on_lower_floors, "models/dit.py", "from unmask import load", "from unmask import rng"),
    (stands_on_lower_floors, "models/dit.py", "import unmask", "import torch"),
    (
        stands_on_lower_floors,
        "models/dit.py",
        "def f():\n import unmask.cli",
        "def f():\n import unmask.types",
    ),
    (
        stands_on_lower_floors,
        "models/dit.py",
        "import_module('unmask.cli')",
        "import_module('mauve')",
    ),
    (
        stands_on_lower_floors,
        "models/dit.py",
        "from .layers import Norm",
        "from unmask.models.layers import Norm",
    ),
    (
        stands_on_lower_floors,
        "data/packing.py",
        "from unmask.diffusion import schedules",
        "from unmask.types import x",
    ),
    (
        stands_on_lower_floors,
        "rng.py",
        "from unmask.data.corpora import Corpus",
        "from unmask.types import Tokens",
    ),
    (
        report_knows_no_torch,
        "experiments/report/page.py",
        "def f():\n from torch import nn",
        "import json",
    ),
    (config_stops_at_recipes, "models/dit.py", "def f(config): ...", "def f(width): ..."),
    (
        config_stops_at_recipes,
        "samplers/loop.py",
        "steps = self.config.steps",
        "limit = network.config.n_positions",
    ),
    (files_are_short, "rng.py", "\n" * (FILE_LINES + 1), "\n" * FILE_LINES),
    (
        functions_are_short,
        "rng.py",
        "def f():" + "\n 0" * FUNCTION_LINES,
        "def f():" + "\n 0" * (FUNCTION_LINES - 1),
    ),
    (only_the_command_line_prints, "recipes/run.py", "print(1)", "pprint(1)"),
    (attributes_are_known, "cli/main.py", "getattr(x, 'a', None)", "getattr(x, 'a')"),
    (attributes_are_known, "cli/main.py", "hasattr(x, 'a')", "x.a"),
    (
        errors_are_not_swallowed,
        "cli/main.py",
        "try: f()\nexcept: pass",
        "try: f()\nexcept Exception: fail()",
    ),
    (
        errors_are_not_swallowed,
        "rng.py",
        "try: f()\nexcept (OSError, Exception): 0",
        "try: f()\nexcept OSError: 0",
    ),
    (
        errors_are_not_swallowed,
        "rng.py",
        "try: f()\nexcept Exception: 0",
        "try: f()\nexcept Exception: raise",
    ),
    (behaviour_is_not_inherited, "models/dit.py", "super().forward(x)", "super().__init__()"),
    (files_are_named_for_what_they_hold, "text/utils.py", "", ""),
    (
        generators_are_made_by_rng,
        "models/dit.py",
        "torch.Generator().manual_seed(1)",
        "generator(1)",
    ),
]
RULES = list(dict.fromkeys(rule for rule, *_ in EXAMPLES))


@pytest.mark.parametrize(("rule", "path", "refused", "passed"), EXAMPLES)
def test_each_rule_finds_a_violation(rule: Rule, path: str, refused: str, passed: str) -> None:
    assert list(rule(Source(path, refused)))
    assert refused == passed or not list(rule(Source(path, passed)))


def test_every_module_has_a_floor() -> None:
    assert {source.room for source in read_package() if source.path != FACADE} <= FLOORS.keys()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Rule) -> None:
    complaints = [
        f"src/unmask/{source.path}:{line}: {complaint}"
        for source in read_package()
        if source.path != FACADE
        for line, complaint in rule(source)
    ]
    assert not complaints, "\n" + "\n".join(complaints)


def test_no_excuse_is_out_of_date() -> None:
    long = {
        f"{source.path}:{node.name}"
        for source in read_package()
        for node in source.all((ast.FunctionDef, ast.AsyncFunctionDef))
        if node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    }
    assert LONG_FUNCTIONS.keys() <= long
    assert LONG_FILES.keys() <= {
        source.path for source in read_package() if source.text.count("\n") > FILE_LINES
    }
    assert FOREIGN_CONFIG <= {source.path for source in read_package()}


PROBE = """
import json, os, sys, time
started = time.process_time()
import unmask
seconds = time.process_time() - started
early = sorted({"torch", "numpy"} & sys.modules.keys())

import logging, pkgutil, random, signal, socket
import numpy, torch
def refuse(*args): raise RuntimeError("an import opened a connection")
socket.socket.connect = refuse
def state():
    return [str(random.getstate()), str(numpy.random.get_state()), torch.get_rng_state().tolist(),
            str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
            str(torch.get_default_device()), len(logging.root.handlers), logging.root.level,
            str(signal.getsignal(signal.SIGINT)), str(signal.getsignal(signal.SIGTERM)),
            torch.cuda.is_initialized()]
before = state()

for name in unmask.__dir__():
    getattr(unmask, name)
large = {"transformers", "datasets", "matplotlib", "tyro"}
surface = sorted(large & sys.modules.keys())
for module in pkgutil.walk_packages(unmask.__path__, "unmask."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
optional = {"mauve", "lm_eval", "tensorboard"}
extras = sorted(optional & sys.modules.keys())
changed = [(a, b) for a, b in zip(before, state()) if a != b]
facts = dict(seconds=seconds, early=early, surface=surface, extras=extras, changed=changed)
print(json.dumps(facts))
"""


def in_a_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in another folder, with the package that is tested here, installed or not."""
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )


def test_imports_have_no_effects(tmp_path: Path) -> None:
    """Importing changes no global state, opens nothing, and loads no large or optional package."""
    probe = in_a_process(PROBE, tmp_path)
    assert probe.returncode == 0, probe.stderr
    found = json.loads(probe.stdout)
    assert found["early"] == [] and found["seconds"] < 0.3, "`import unmask` is to cost nothing"
    assert found["surface"] == [], (
        "the public names bring a large package that only some calls need"
    )
    assert found["extras"] == [], "an extra is imported where it is used"
    assert found["changed"] == []
    assert list(tmp_path.iterdir()) == []


def test_the_report_never_loads_torch(tmp_path: Path) -> None:
    """Neither directly nor through what it imports."""
    code = "import pkgutil, sys, unmask.experiments.report as report\n"
    code += "for m in pkgutil.walk_packages(report.__path__, report.__name__ + '.'):\n"
    code += "    __import__(m.name)\n"
    code += "sys.exit('torch' in sys.modules)"
    probe = in_a_process(code, tmp_path)
    assert probe.returncode == 0, probe.stderr or "importing unmask.experiments.report loads torch"


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_scripts_import_names_that_exist(folder: str) -> None:
    """Type checks do not read these folders, and most scripts take too long for a test."""
    for file in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unmask"):
                module = importlib.import_module(node.module)
                submodules = {
                    name for _, name, _ in pkgutil.iter_modules(getattr(module, "__path__", []))
                }
                known = submodules | vars(module).keys()
                missing = [alias.name for alias in node.names if alias.name not in known]
                assert not missing, f"{file.name}: {node.module} has no {missing}"
