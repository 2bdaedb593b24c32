"""What one run of the tool has: its settings, its target, its outputs."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO, TypeVar

from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import UsageError

if TYPE_CHECKING:
    from anonvma_inspect.cli.progress import Progress
    from anonvma_inspect.in_flight import Audit
    from anonvma_inspect.invariants.base import Invariant
    from anonvma_inspect.report.facts import TargetFacts
    from anonvma_inspect.report.render import Report
    from anonvma_inspect.tables import Tables
    from anonvma_inspect.target import Target

__all__ = ("Session", "drop", "say", "target_facts")

T = TypeVar("T")

# How a target stands where "live" and "not live" say too little.
_STANDS = {"gdb": "stopped while it is read"}


class Session:
    """A run of one command.

    :ivar settings: What the shared options say.
    """

    #: Exit code if part of what was asked for is not in the target.
    INCOMPLETE = 4

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._limit_told = False

    def check_target(self) -> None:
        """Without a target, root looks at the running kernel.

        :raises UsageError: if none is named.
        """
        if self.settings.kind is None:
            if os.geteuid() != 0:
                raise UsageError(
                    "no target: name a vmcore or a snapshot with -c PATH, or be root to look at "
                    "the running kernel"
                )
            self.settings.look_at_kernel()

    def open(self) -> Target:
        """Open the target, and say on standard error what it is."""
        self.check_target()
        from anonvma_inspect.report.escape import printable
        from anonvma_inspect.target import TargetOptions, open_target

        if self.settings.kind == "gdb":
            _end_by_exceptions()
        options = TargetOptions(**self.settings.paths)
        target = self.timed("opened", lambda: open_target(options))
        self.note(
            printable(
                f"Linux {target.release} {target.architecture}, {target.kind}, "
                f"layouts from {target.layouts_source}, symbols from {target.symbols_source}, "
                f"{_STANDS.get(target.kind, 'live' if target.live else 'not live')}"
            )
        )
        return replace(target, scheme=self.settings.scheme)

    def collect(self, target: Target, pids: Sequence[int] = ()) -> Tables:
        """Read the reverse map of the target."""
        from anonvma_inspect.collect import collect

        with self.progress() as progress:
            tables = self.timed("read", lambda: collect(target, pids, progress))
        self.tell_limit(target)
        return tables

    def collect_audit(
        self, target: Target, pids: Sequence[int] = (), *, leaks: bool = False, deep: int = 0
    ) -> Tables:
        """Read the reverse map of the target, and what its slab allocator says of it."""
        from anonvma_inspect.collect import collect_audit

        with self.progress() as progress:
            tables = self.timed(
                "read", lambda: collect_audit(target, pids, progress, leaks=leaks, deep=deep)
            )
        self.tell_limit(target)
        return tables

    def audit(
        self,
        target: Target,
        pids: Sequence[int],
        invariants: Sequence[Invariant],
        *,
        leaks: bool = False,
        deep: int = 0,
        on_finding: Callable[[Target], None] = lambda view: None,
    ) -> Audit:
        """Read the reverse map of the target and verify it; of one that runs, confirm what that
        shows.

        :param on_finding: Called when something is confirmed, with what shows it.
        """
        from anonvma_inspect.confirm import audit_running
        from anonvma_inspect.in_flight import audit

        if target.live:
            with self.progress() as progress:
                running = audit_running(
                    target,
                    pids,
                    invariants,
                    leaks=leaks,
                    deep=deep,
                    progress=progress,
                    on_finding=on_finding,
                )
            self.tell_limit(target)
            return running
        tables = self.collect_audit(target, pids, leaks=leaks, deep=deep)
        made = self.timed("checked", lambda: audit(tables, invariants))
        if made.findings_total:
            on_finding(target)
        return made

    def progress(self) -> Progress:
        """Something to tell progress to."""
        from anonvma_inspect.cli.progress import Progress

        quiet = self.settings.verbosity < 0 and self.settings.progress is None
        return Progress(False if quiet else self.settings.progress)

    def timed(self, done: str, work: Callable[[], T]) -> T:
        """Do something, and say with ``-v`` how long it took."""
        start = time.perf_counter()
        result = work()
        if self.settings.verbosity >= 1:
            self.note(f"{done} in {time.perf_counter() - start:.2f} s")
        return result

    def tell_limit(self, target: Target) -> None:
        """Say, once, if pages of a target that runs were not read since too many were wanted."""
        if target.meter is None or not target.meter.pages_refused or self._limit_told:
            return
        self._limit_told = True
        from anonvma_inspect.report.words import counted

        self.note(
            f"{counted(target.meter.pages_refused, 'page')} were not read: they do not fit into a "
            "quarter of this machine's memory with those that were; less is needed with --pid"
        )

    def completeness(self, tables: Tables) -> int:
        """Exit code of a command that reads everything."""
        if tables.complete:
            return 0
        from anonvma_inspect.report.words import counted

        holes = counted(len(tables.holes.address), "hole")
        self.note(f"incomplete: {holes} in the target; see: anonvma-inspect --format json audit")
        return self.INCOMPLETE

    def note(self, line: str) -> None:
        """Say something on standard error, unless ``-q``.

        :param line: Safe to show.
        """
        if self.settings.verbosity >= 0:
            say(line + "\n")

    def answer(self, report: Report) -> bool:
        """Write a report to standard output.

        :return: Whether anybody reads it.
        """
        from anonvma_inspect.report.render import render
        from anonvma_inspect.report.style import Style

        style = Style(color=self.settings.colored, unicode=self.settings.unicode)
        return _answer(render(report, self.settings.format, style))


# Who is told to end leaves a stub as it was found, which a signal's own end does not do.
def _end_by_exceptions() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


# Whoever reads the other end of a pipe may go away: no reason to complain, nor to forget the
# verdict that the exit code tells.
def _answer(pieces: Iterable[str]) -> bool:
    try:
        for piece in pieces:
            sys.stdout.write(piece)
        sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)
        return False
    return True


def say(text: str) -> None:
    """Write to standard error.

    If that fails (a log on a full disk), there is nobody to tell, and the verdict stands.

    :param text: Safe to show.
    """
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Let what is still written to a stream go nowhere, what its buffer holds included."""
    # A stream that is no file has nothing behind it that could fail again.
    with contextlib.suppress(io.UnsupportedOperation):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def target_facts(target: Target, tables: Tables) -> TargetFacts:
    """What every answer says of the target."""
    from anonvma_inspect.report.facts import TargetFacts

    return TargetFacts(
        kind=target.kind,
        release=target.release,
        architecture=target.architecture,
        era=tables.era.name,
        tag_scheme=tables.era.tag_scheme,
        layouts=target.layouts_source,
        symbols=target.symbols_source,
        tag_evidence=tables.era.tags.evidence,
        tag_certain=tables.era.tags.certain,
        tag_supported=tables.era.tags.supported,
        tag_enabled=tables.era.tags.enabled,
    )
