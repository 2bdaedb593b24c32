"""Fixtures: a snapshot of a dump, and the manifest that says what is in it and how to make it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from . import manifest
from .cache import locked
from .capture import Lab
from .errors import LabError
from .kdump import kdump
from .specs import Plan

__all__ = ("capture_fixture",)


def capture_fixture(lab: Lab, plan: Plan, keep_core: Path | None) -> None:
    """Make fixtures/NAME.core.xz and fixtures/NAME.json from nothing."""
    with locked(lab.cache, f"capture-{plan.name}"):
        _capture(lab, plan, keep_core)


def _dump(lab: Lab, plan: Plan, core: Path) -> dict[str, Any]:
    command = f"scripts/lab capture {plan.name}"
    if plan.kdump is not None:
        return kdump(lab, plan, plan.kdump, core, command)
    return lab.dump(plan, core, command)


def _capture(lab: Lab, plan: Plan, keep_core: Path | None) -> None:
    core = keep_core if keep_core is not None else lab.cache / f"{plan.name}.core"
    made = _dump(lab, plan, core)
    made["dump"] = {"size": core.stat().st_size, "sha256": manifest.sha256(core)}
    try:
        snapshot = _snapshot(lab, plan, core)
    except LabError as error:
        # The dump took a minute: it stays, and with it the guest's word.
        manifest.write(made, core.with_suffix(".json"))
        raise LabError(f"{error}\nThe dump is kept: {core}") from None
    manifest.write(made, _folder(lab, plan) / f"{plan.name}.json")
    if keep_core is None:
        core.unlink()
        core.with_suffix(".map").unlink(missing_ok=True)
    lab.say(f"Wrote {snapshot} ({snapshot.stat().st_size / 1000:.0f} kB) and its .json")


# What never rests is by itself: it is full of operations half done, and there is no word for it but
# the workload's log. So is what a kernel did wrong.
def _folder(lab: Lab, plan: Plan) -> Path:
    if plan.name.startswith("wrong-"):
        return lab.fixtures / "wrong"
    return lab.fixtures if plan.word else lab.fixtures / plan.workload


# The snapshot is the package's work, and its command line is all that the lab knows of it.
def _snapshot(lab: Lab, plan: Plan, core: Path) -> Path:
    folder = _folder(lab, plan)
    target = folder / f"{plan.name}.core.xz"
    partial = folder / f".{plan.name}.partial.core.xz"
    folder.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    command = [sys.executable, "-m", "anonvma_inspect", "-c", str(core)]
    symbols = core.with_suffix(".map")
    if symbols.is_file():
        command += ["--system-map", str(symbols)]
    try:
        result = subprocess.run(
            [*command, "snapshot", *(["--pages"] if plan.pages else []), "-o", str(partial)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode or not partial.is_file():
            complaint = result.stderr.strip()[-2000:]
            raise LabError(
                f"The snapshot of {plan.name} failed with status {result.returncode}: "
                f"{complaint or 'nothing said'}"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
