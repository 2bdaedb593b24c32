"""Our own changes to a kernel's source, as edits that hold none of its lines.

An edit names a file, a function (or a struct, or ``-`` for the whole file), and lines in it by
their number and the beginning of their SHA-256; some of the last of these it drops, and then puts
lines of ours there::

    @@ mm/rmap.c unlink_anon_vmas 1 -1 0c9f3a5d21
    +       our line, in place of the one found

A source in which these lines are not, or not just once, is another one than the edits were written
for, and is left as it is. A set of edits is a directory with a file ``edits`` and, under ``files``,
whole files of ours, laid out as in the kernel's tree.
"""

from __future__ import annotations

import difflib
import filecmp
import hashlib
import itertools
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError

__all__ = (
    "SETS",
    "Edit",
    "apply_edits",
    "edited_files",
    "make_edits",
    "parse_edits",
    "set_digest",
    "write_set",
)

#: The sets of edits; what is in them is under the kernel's licence.
SETS = Path(__file__).resolve().parent / "kernel-edits"

_HEAD = re.compile(r"@@ (\S+) (\S+) (\d+) -(\d+) ([0-9a-f]+)")
_DIGITS = 10
# What edits are about; generated files are in the same places.
_SOURCE = re.compile(r"(?!.*\.mod\.c$).+\.[chS]|Makefile|Kconfig.*")


@dataclass(frozen=True)
class Edit:
    """One change: where, and what stands there then."""

    path: str
    #: The function or struct, or ``-``.
    region: str
    #: How many lines are looked for, and of these how many of the last are dropped.
    lines: int
    dropped: int
    digest: str
    new: tuple[str, ...]

    def __str__(self) -> str:
        head = f"@@ {self.path} {self.region} {self.lines} -{self.dropped} {self.digest}"
        return "\n".join([head, *(f"+{line}" for line in self.new)])


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGITS]


# Functions as the kernel writes them, with the brace in a line of its own, and structs: name, first
# line, line after the last.
def _regions(lines: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    for start, line in enumerate(lines):
        struct = re.match(r"(?:struct|enum|union) (\w+) \{", line)
        name = struct.group(1) if struct else None
        first = start
        if line == "{":
            while first > 0 and re.match(r"[\w\t]", lines[first - 1]):
                first -= 1
            called = re.search(r"(\w+)\(", " ".join(lines[first:start]))
            name = called.group(1) if called else None
        if name is not None:
            end = next((at for at in range(start, len(lines)) if lines[at].startswith("}")), None)
            if end is not None:
                yield name, first, end + 1


def _places(lines: Sequence[str], region: str, count: int, digest: str) -> list[int]:
    spans = [(0, len(lines))]
    if region != "-":
        spans = [(first, end) for name, first, end in _regions(lines) if name == region]
    return [
        at
        for first, end in spans
        for at in range(first, end - count + 1)
        if _digest(lines[at : at + count]) == digest
    ]


def parse_edits(text: str) -> list[Edit]:
    """The edits in a file's text; lines that begin with ``#`` are comments."""
    edits: list[Edit] = []
    new: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        head = _HEAD.fullmatch(line)
        if head:
            path, region, lines, dropped, digest = head.groups()
            new = []
            edits.append(Edit(path, region, int(lines), int(dropped), digest, ()))
        elif line.startswith("+") and edits:
            new.append(line[1:])
            last = edits[-1]
            edits[-1] = Edit(
                last.path, last.region, last.lines, last.dropped, last.digest, tuple(new)
            )
        elif line and not line.startswith("#"):
            raise LabError(f"Line {number} of the edits is none of theirs: {line!r}")
    return edits


def apply_edits(text: str, edits: Sequence[Edit], where: str) -> str:
    """One file's text with all its edits made.

    :param where: What to call the edits in a complaint.
    :raises LabError: if the text is not what the edits are for.
    """
    lines = text.split("\n")
    changes: list[tuple[int, Edit]] = []
    for edit in edits:
        places = _places(lines, edit.region, edit.lines, edit.digest)
        if len(places) != 1:
            found = f"{len(places)} times" if places else "nowhere"
            region = "the file" if edit.region == "-" else edit.region
            raise LabError(
                f"{edit.path}: the {edit.lines} lines {edit.digest} of {region} are {found} in "
                f"this source: {where} is for another one. Write it anew for this source: change "
                "a copy of the tree by hand, and 'scripts/lab edits OLD NEW SET' takes the edits "
                "from it."
            )
        changes.append((places[0] + edit.lines, edit))
    changes.sort(key=lambda change: change[0], reverse=True)
    before = len(lines)
    for end, edit in changes:
        if end > before:
            raise LabError(f"{edit.path}: two edits of {where} drop the same lines.")
        before = end - edit.dropped
        lines[before:end] = edit.new
    return "\n".join(lines)


def _enclosing(lines: Sequence[str], first: int, last: int) -> str:
    names = [name for name, start, end in _regions(lines) if start <= first and last <= end]
    return names[-1] if names else "-"


def make_edits(path: str, old: str, new: str) -> list[Edit]:
    """The edits that make one text of the other; none of its lines is in them."""
    before, after = old.split("\n"), new.split("\n")
    edits = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, first, last, new_first, new_last in matcher.get_opcodes():
        if tag == "equal":
            continue
        start = first if last > first else first - 1
        if start < 0:
            raise LabError(f"{path}: nothing stands before what is put at its beginning.")
        region = _enclosing(before, start, max(last, start + 1))
        # As many lines before as it takes to be unique.
        while True:
            digest = _digest(before[start:last])
            if len(_places(before, region, last - start, digest)) == 1:
                break
            start -= 1
            if start < 0:
                raise LabError(f"{path}: line {first + 1} cannot be told from others.")
            region = _enclosing(before, start, last)
        lines = tuple(after[new_first:new_last])
        edits.append(Edit(path, region, last - start, last - first, digest, lines))
    return edits


def _files(set_name: str) -> Iterator[tuple[str, Path]]:
    root = SETS / set_name / "files"
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(root)), path


def edited_files(read: Callable[[str], str | None], sets: Sequence[str]) -> dict[str, str]:
    """The files of a source that sets of edits change or add, as they are then, by their paths.

    :param read: A file of the source by its path; None if there is none.
    :param sets: Names of sets; each finds what those before it made.
    """
    made: dict[str, str] = {}

    def text(path: str) -> str | None:
        return made[path] if path in made else read(path)

    for name in sets:
        by_path: dict[str, list[Edit]] = defaultdict(list)
        for edit in parse_edits((SETS / name / "edits").read_text()):
            by_path[edit.path].append(edit)
        for path, edits in by_path.items():
            before = text(path)
            if before is None:
                raise LabError(f"This source has no {path}, which the edits {name!r} are for.")
            made[path] = apply_edits(before, edits, f"the set of edits {name!r}")
        for path, file in _files(name):
            if text(path) is not None:
                raise LabError(f"This source has a {path} already; {name!r} would add it.")
            made[path] = file.read_text()
    return made


def write_set(old: Path, new: Path, name: str) -> Path:
    """Write a set of edits: in what sources and makefiles two trees differ; return its directory.

    What stands above the edits in a set that is there already, stays.
    """
    target = SETS / name
    file = target / "edits"
    head = ["# SPDX-License-Identifier: GPL-2.0"]
    if file.is_file():
        lines = file.read_text().splitlines()
        head = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    made: list[str] = []
    shutil.rmtree(target / "files", ignore_errors=True)
    paths = (
        Path(folder, one)
        for folder, _, names in os.walk(new)
        for one in names
        if _SOURCE.fullmatch(one)
    )
    for path in sorted(paths):
        relative = path.relative_to(new)
        before = old / relative
        if not before.is_file():
            ours = target / "files" / relative
            ours.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, ours)
        elif not filecmp.cmp(before, path):
            made += map(str, make_edits(str(relative), before.read_text(), path.read_text()))
    target.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*head, *made, ""]))
    return target


def set_digest(sets: Sequence[str]) -> bytes:
    """What changes when any of the sets does."""
    digest = hashlib.sha256()
    for name in sets:
        for path, file in [("edits", SETS / name / "edits"), *_files(name)]:
            digest.update(f"{name}/{path}\n".encode() + file.read_bytes())
    return digest.digest()
