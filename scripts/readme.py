"""Run the console examples of README.md and write their output into it, or check it (--check).

An example is a fenced block that begins with ``console``; its first line is the command behind
``$``. What it writes to its standard output follows. Lines beyond the first 60 are left out, and a
last line of three dots says so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
EXAMPLE = re.compile(r"```console\n\$ ([^\n]+)\n.*?```", re.DOTALL)
MOST_LINES = 60


def run(command: str) -> str:
    """Standard output of an example's command, cut to what a reader wants to see."""
    beside = Path(sys.executable).parent
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{beside}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    lines = [line.rstrip() for line in ended.stdout.splitlines()]
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "..."]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command."""
    old = README.read_text()
    new = EXAMPLE.sub(lambda found: f"```console\n$ {found[1]}\n{run(found[1])}\n```", old)
    if arguments == ["--check"]:
        if new != old:
            print("README.md does not show what the commands print: run scripts/readme.py")
        return int(new != old)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
