"""Packages through apt's ordinary tools: found, downloaded and unpacked, never installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .versions import version_key

__all__ = ("Apt", "Package", "extract", "newest", "unpack")


@dataclass(frozen=True)
class Package:
    """A binary package that apt knows."""

    name: str
    version: str
    architecture: str


def run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run a command quietly and return what it printed; its complaint becomes the error."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        complaint = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise LabError(
            f"'{' '.join(command)}' failed with status {result.returncode}"
            + (": " + "; ".join(complaint[-3:]) if complaint else "")
        )
    return result.stdout


def newest(packages: Sequence[Package]) -> Package | None:
    """The package of the highest version; of equal ones, the one whose name sorts last."""
    return max(packages, key=lambda p: (version_key(p.version), p.name), default=None)


class Apt:
    """apt as the machine is set up, or with options (another suite, another architecture)."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._options = list(options)

    def update(self) -> None:
        """Fetch the lists of packages."""
        run(["apt-get", *self._options, "--quiet", "update"])

    def find(self, pattern: str, architecture: str) -> list[Package]:
        """All packages whose whole name matches the regular expression."""
        whole = re.compile(pattern)
        prefix = re.split(r"[\\.*+?\[(|^$]", pattern, maxsplit=1)[0]
        names = run(["apt-cache", *self._options, "pkgnames", prefix]).split()
        names = sorted(name for name in names if whole.fullmatch(name))
        if not names:
            return []
        text = run(["apt-cache", *self._options, "show", "--no-all-versions", *names])
        found = []
        for stanza in text.split("\n\n"):
            fields = dict(re.findall(r"^(\w[\w-]*): (.*)$", stanza, re.MULTILINE))
            if fields.get("Architecture") in (architecture, "all") and "Version" in fields:
                found.append(Package(fields["Package"], fields["Version"], fields["Architecture"]))
        return found

    def libraries(self, name: str, architecture: str) -> list[Package]:
        """The libraries that a package depends on, and those that they depend on."""
        kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        options = [f"--no-{kind}" for kind in kinds]
        text = run(["apt-cache", *self._options, "depends", "--recurse", *options, name])
        names = re.findall(r"^((?:lib|zlib)[\w.+-]*)(?::\w+)?$", text, re.MULTILINE)
        return [
            package
            for library in dict.fromkeys(names)
            for package in self.find(re.escape(library), architecture)
        ]

    def download(self, package: Package, directory: Path) -> Path:
        """Download exactly this package; return the file."""
        scratch = directory / f"download-{package.name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        run(
            ["apt-get", *self._options, "download", f"{package.name}={package.version}"],
            cwd=scratch,
        )
        files = list(scratch.glob("*.deb"))
        if len(files) != 1:
            raise LabError(f"apt-get downloaded {len(files)} files for {package.name}")
        target = directory / files[0].name
        files[0].replace(target)
        scratch.rmdir()
        return target


def unpack(deb: Path, directory: Path) -> None:
    """Unpack a package's files into a directory."""
    run(["dpkg-deb", "-x", str(deb), str(directory)])


def extract(deb: Path, directory: Path, wildcard: str) -> None:
    """Unpack only the files that match, for packages of which most is not wanted."""
    directory.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            ["tar", "-x", "-C", str(directory), "--wildcards", wildcard],
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    if tar.returncode or done.returncode:
        raise LabError(f"{deb.name} has no {wildcard}, or is damaged: {done.stderr.strip()}")
