"""Running the command line in this process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from anonvma_inspect.cli import main

__all__ = ("Cli", "Ran")


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    code: int
    out: str
    err: str


class Cli:
    """Runs the command line; made by the fixture ``cli``."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ran:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = self._capsys.readouterr()
        code = exit_.value.code
        assert isinstance(code, int)
        return Ran(code, captured.out, captured.err)

    def fails(self, code: int, *arguments: str) -> str:
        """Run something that ends with one sentence on standard error, and return it."""
        ran = self(*arguments)
        assert ran.out == ""
        lines = [
            line
            for line in ran.err.splitlines()
            if not line.startswith(("Linux ", "Try 'anonvma-inspect"))
        ]
        assert len(lines) == 1, ran.err
        assert "Traceback" not in ran.err
        assert ran.code == code, ran.err
        assert lines[0].startswith("anonvma-inspect: ")
        return lines[0].removeprefix("anonvma-inspect: ")
