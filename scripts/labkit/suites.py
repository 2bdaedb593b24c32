"""apt for suites and architectures that the machine is not set up with.

It has a configuration of its own, in the lab's cache, and changes nothing of the machine's. The
mirror is the one that the machine itself takes Debian from, and so are its keys and proxies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from .apt import Apt, run
from .cache import locked
from .errors import LabError

__all__ = ("mirror", "other_suites")

_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Lists older than this are fetched again; a mirror drops versions, but not within hours.
_FRESH = 12 * 3600


def mirror() -> str:
    """The address of the Debian archive (not of security updates) that this machine uses."""
    text = run(
        ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    )
    for line in text.splitlines():
        label, _, address = line.rpartition(" ")
        if label == "Debian":
            return address
    raise LabError(
        "This machine's apt is not set up for a Debian archive, or has never been updated "
        "('apt-get update'): other suites cannot be reached."
    )


def other_suites(cache: Path, suites: Sequence[str], architecture: str) -> Apt:
    """apt for just these suites and this architecture, with lists no older than half a day."""
    name = "-".join([*suites, architecture])
    root = cache / "apt" / name
    apt = Apt(_options(root, architecture))
    stamp = root / "updated"
    with locked(cache, f"apt-{name}"):
        if not stamp.is_file() or time.time() - stamp.stat().st_mtime > _FRESH:
            _update(root, suites, architecture, apt)
            stamp.touch()
    return apt


def _options(root: Path, architecture: str) -> list[str]:
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": f"{root}/sources",
        "Dir::Etc::preferencesparts": f"{root}/preferences",
        "Dir::State::Lists": f"{root}/lists",
        # What is installed on this machine is of no interest here.
        "Dir::State::status": f"{root}/status",
        "Dir::Cache": f"{root}/cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Acquire::Languages": "none",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _update(root: Path, suites: Sequence[str], architecture: str, apt: Apt) -> None:
    for part in ("sources", "preferences", "lists/partial", "cache/archives/partial"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    keys = f" signed-by={_KEYS}" if _KEYS.is_file() else ""
    address = mirror()
    (root / "sources" / "lab.list").write_text(
        "".join(f"deb [arch={architecture}{keys}] {address} {suite} main\n" for suite in suites)
    )
    apt.update()
