"""The C programs of the lab, compiled static so that they run in a guest without libraries."""

from __future__ import annotations

from pathlib import Path

from .apt import run
from .errors import LabError

__all__ = ("HERE", "WORKLOADS", "compile_program")

HERE = Path(__file__).resolve().parent
WORKLOADS = tuple(sorted(path.stem for path in (HERE / "workloads").glob("*.c")))

_FLAGS = ("-std=gnu11", "-O1", "-static", "-pthread", "-Wall", "-Wextra", "-Werror", "-s")


def compile_program(name: str, output: Path, compiler: str) -> Path:
    """Compile a workload, or one of the lab's own programs, to `output`."""
    source = HERE / ("workloads" if name in WORKLOADS else "guest") / f"{name}.c"
    if not source.is_file():
        raise LabError(f"No workload is called {name!r}; there are {', '.join(WORKLOADS)}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    run([compiler, *_FLAGS, "-o", str(output), str(source)])
    return output
