"""README shows what the commands really print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_examples_are_what_the_commands_print() -> None:
    ended = subprocess.run(
        [sys.executable, "scripts/readme.py", "--check"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


def test_readme_is_for_a_newcomer() -> None:
    """The two commands come before any other code."""
    blocks = (ROOT / "README.md").read_text().split("```")[1::2]
    assert "scripts/demo" in blocks[0]
    assert "scripts/test" in blocks[0]
