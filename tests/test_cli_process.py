"""The command line as a process: pipes, terminals, signals and what it imports."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .captures import CAPTURES

CORE = str(next(capture for capture in CAPTURES if capture.name == "forktree-6.12").core)
TOOL = [sys.executable, "-m", "anonvma_inspect"]
ROOT = Path(__file__).parent.parent


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*TOOL, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, **options
    )


def shell(command: str) -> subprocess.CompletedProcess[str]:
    tool = " ".join(TOOL)
    return subprocess.run(
        ["bash", "-c", command.replace("TOOL", tool).replace("CORE", CORE)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


def test_module_and_exit_code() -> None:
    assert run("--version").stdout.startswith("anonvma-inspect ")
    assert run("frobnicate").returncode == 2
    assert run("-c", "/nonexistent", "audit").returncode == 3
    ran = run("-q", "-c", CORE, "stats")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        "TOOL -q -c CORE --format json vma 1",
        "TOOL -q -c CORE stats",
        "TOOL --help",
        "TOOL explain",
    ],
)
def test_a_reader_that_goes_away(command: str) -> None:
    ran = shell(command + " | true; exit ${PIPESTATUS[0]}")
    assert (ran.returncode, ran.stderr) == (0, "")
    ran = shell(command + " | head -n 1; exit ${PIPESTATUS[0]}")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_closed_streams() -> None:
    assert shell("TOOL -q -c CORE stats >&-").returncode == 0
    assert shell("TOOL -c CORE stats 2>&-").returncode == 0
    assert shell("TOOL -c CORE frobnicate 2>&-").returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["TOOL -q -c CORE stats", "TOOL --help"])
def test_a_full_disk(command: str) -> None:
    ran = shell(command + " >/dev/full")
    assert ran.returncode == 3
    assert ran.stderr == "anonvma-inspect: cannot go on: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("-c CORE stats", 0),
        ("frobnicate", 2),
        ("-c CORE audit --only", 2),
        ("", 2),
        ("-c x vma 1", 3),
    ],
)
def test_a_full_disk_for_messages(command: str, code: int) -> None:
    """Python's own way to fail is exit code 1, a verdict here."""
    assert shell(f"TOOL {command} 2>/dev/full").returncode == code


def test_interrupt() -> None:
    script = (
        "import signal, time, anonvma_inspect.target as target\n"
        # A shell's background jobs ignore it, and so do their children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(options):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "target.open_target = wait\n"
        "from anonvma_inspect.cli import main\n"
        "main(['-c', 'x', 'stats'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == ""
        assert process.wait(timeout=30) == 130


def test_ascii_locale() -> None:
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    ran = run("-q", "-c", CORE, "tree", "1", "4c2000", env=environment)
    assert ran.returncode == 0
    assert ran.stdout.isascii()


# What a terminal is shown.
def at_terminal(*arguments: str, **environment: str) -> str:
    try:
        parent, child = pty.openpty()
    except OSError as error:
        pytest.skip(f"this machine has no terminals (is /dev/pts mounted?): {error}")
    process = subprocess.Popen(
        [*TOOL, *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=ROOT,
        env={"TERM": "xterm", "PATH": os.environ["PATH"], **environment},
    )
    os.close(child)
    pieces = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            piece = os.read(parent, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(parent)
    assert process.wait(timeout=30) == 0
    return b"".join(pieces).decode()


def test_terminal() -> None:
    text = at_terminal("-c", CORE, "stats", "--progress")
    assert "\x1b[1mAVCs in a VMA's chain\x1b[0m" in text
    assert "\r\x1b[Kreading " in text
    assert "\x1b" not in at_terminal("-c", CORE, "stats", "--no-progress", NO_COLOR="1")
    assert "\x1b" not in at_terminal("-c", CORE, "stats", "--progress", TERM="dumb")
    assert "\x1b[94m" in at_terminal("-c", CORE, "--format", "json", "chain", "1", "4c2000")


def imported(*arguments: str) -> set[str]:
    script = (
        "import sys\n"
        "from anonvma_inspect.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    return set(ran.stdout.splitlines()[-1].split())


def test_start_up_imports_only_what_is_needed() -> None:
    heavy = {"numpy", "drgn", "tabulate", "pygments"}
    assert not imported("--help") & heavy
    assert not imported("--version") & heavy
    assert not imported("frobnicate") & heavy
    assert "pygments" not in imported("explain")
    assert "pygments" not in imported("-c", CORE, "stats")
    assert not imported("-c", CORE, "--format", "json", "stats") & {"pygments", "tabulate"}
