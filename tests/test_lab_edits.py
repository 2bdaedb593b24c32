"""Edits to a kernel's source: made from two texts, and made to one, or refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from labkit.build import lay_out
from labkit.edits import (
    SETS,
    apply_edits,
    edited_files,
    make_edits,
    parse_edits,
    set_digest,
    write_set,
)
from labkit.errors import LabError
from labkit.kernels import KERNELS

OLD = """\
#include "few.h"

struct pair {
	int left;
	int right;
};

/* Adds. */
static int add(struct pair *pair,
		int more)
{
	if (more)
		return 0;
	return pair->left + pair->right;
}

int take(struct pair *pair)
{
	if (more)
		return 0;
	return pair->left - pair->right;
}
"""
NEW = (
    OLD.replace("int right;", "int right, more;")
    .replace("return pair->left - pair->right;", "return pair->right;\n\t/* so */")
    .replace('"few.h"\n', '"few.h"\n#include "ours.h"\n')
)
SET_NAMES = sorted(path.name for path in SETS.iterdir() if path.is_dir())


def written(old: str, new: str) -> str:
    return "\n".join(map(str, make_edits("a.c", old, new)))


def test_round_trip() -> None:
    text = written(OLD, NEW)
    assert apply_edits(OLD, parse_edits(text), "these") == NEW
    # No line of the source, but for those that ours are made of; nor a context.
    assert [line for line in text.splitlines() if not line.startswith("@@")] == [
        '+#include "ours.h"',
        "+\tint right, more;",
        "+\treturn pair->right;",
        "+\t/* so */",
    ]
    assert re.findall(r"^@@ a.c (\S+) (\d+) -(\d+) ", text, re.M) == [
        ("-", "1", "0"),
        ("pair", "1", "1"),
        ("take", "1", "1"),
    ]


@given(
    st.lists(st.sampled_from(["{", "}", "int f(void)", "\tx;", "\ty;", ""]), max_size=30),
    st.data(),
)
def test_any_texts(lines: list[str], data: st.DataObject) -> None:
    old = "\n".join(["/* first, and only here */", *lines])
    changed = list(lines)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.lists(st.sampled_from(["\tours;", "\tx;", "}"]), max_size=2)
        )
    new = "\n".join(["/* first, and only here */", *changed])
    assert apply_edits(old, parse_edits(written(old, new)), "these") == new


def test_another_place_is_the_same_source() -> None:
    """What moves, with all that edits name, does not matter; nor what changes elsewhere."""
    moved = OLD.replace("/* Adds. */", "/* Adds,\n * or not. */\nint unrelated;")
    expected = NEW.replace("/* Adds. */", "/* Adds,\n * or not. */\nint unrelated;")
    assert apply_edits(moved, parse_edits(written(OLD, NEW)), "these") == expected


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("pair->left - pair->right", "pair->left - more"), "nowhere"),
        (("\treturn pair->left - pair->right;\n", ""), "nowhere"),
        (("int take(", "int took("), "nowhere"),
        (
            ("\treturn pair->left - pair->right;\n", "\treturn pair->left - pair->right;\n" * 2),
            "2 times",
        ),
    ],
)
def test_another_source_is_refused(change: tuple[str, str], found: str) -> None:
    other = OLD.replace(*change)
    assert other != OLD
    with pytest.raises(LabError, match=f"take are {found} in this source: these is for another"):
        apply_edits(other, parse_edits(written(OLD, NEW)), "these")


def test_edits_that_are_none() -> None:
    with pytest.raises(LabError, match="Line 2 of the edits"):
        parse_edits("# a comment\nneither\n")


def test_lay_out_writes_what_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one set to the other and to none: files of ours come and go, others are as they were."""
    old, new, tree, originals = (tmp_path / name for name in ("old", "new", "tree", "originals"))
    monkeypatch.setattr("labkit.edits.SETS", tmp_path / "sets")
    for root, text in ((old, OLD), (new, NEW), (tree, OLD)):
        (root / "mm").mkdir(parents=True)
        (root / "mm" / "a.c").write_text(text)
        (root / "mm" / "b.c").write_text("int b;\n")
    (new / "mm" / "ours.h").write_text("/* SPDX-License-Identifier: GPL-2.0 */\n")
    write_set(old, new, "one")
    (new / "mm" / "a.c").write_text(OLD)
    (new / "mm" / "b.c").write_text("int b, c;\n")
    (new / "mm" / "ours.h").unlink()
    write_set(old, new, "two")

    lay_out(tree, originals, ["one"])
    assert (tree / "mm" / "a.c").read_text() == NEW
    assert (tree / "mm" / "ours.h").exists()
    untouched = (tree / "mm" / "b.c").stat().st_mtime_ns
    written_at = (tree / "mm" / "a.c").stat().st_mtime_ns
    lay_out(tree, originals, ["one"])
    assert (tree / "mm" / "a.c").stat().st_mtime_ns == written_at
    assert (tree / "mm" / "b.c").stat().st_mtime_ns == untouched
    lay_out(tree, originals, ["two"])
    assert (tree / "mm" / "a.c").read_text() == OLD
    assert (tree / "mm" / "b.c").read_text() == "int b, c;\n"
    assert not (tree / "mm" / "ours.h").exists()
    lay_out(tree, originals, [])
    assert (tree / "mm" / "b.c").read_text() == "int b;\n"
    assert set_digest(["one"]) != set_digest(["two"])
    with pytest.raises(LabError, match=r"has a mm/ours.h already"):
        edited_files(lambda path: {"mm/a.c": OLD}.get(path, "theirs"), ["one"])
    with pytest.raises(LabError, match=r"has no mm/a.c"):
        edited_files(lambda path: None, ["one"])


def test_every_set_is_used_and_licensed() -> None:
    assert set(SET_NAMES) == {name for kernel in KERNELS.values() for name in kernel.edits}
    assert "GNU GENERAL PUBLIC LICENSE" in (SETS / "COPYING").read_text()
    for name in SET_NAMES:
        assert parse_edits((SETS / name / "edits").read_text())
        files = [path for path in (SETS / name).rglob("*") if path.is_file()]
        assert all("SPDX-License-Identifier: GPL-2.0" in path.read_text() for path in files)
