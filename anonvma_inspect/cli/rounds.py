"""Audits of a target that runs, one after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from anonvma_inspect.cli.session import Session
from anonvma_inspect.collect import save_snapshot
from anonvma_inspect.errors import UsageError
from anonvma_inspect.report.audit import AuditReport, Outcome
from anonvma_inspect.report.escape import printable
from anonvma_inspect.report.rounds import History, RoundsReport
from anonvma_inspect.target import Target

__all__ = ("EvidenceDirectory", "audit_in_rounds", "parse_on_finding")

_INTERRUPTED = 130
_SNAPSHOT = "snapshot:"
# A kernel that is corrupt throughout must not fill the disk.
_MAX_SNAPSHOTS = 10


class EvidenceDirectory:
    """Where snapshots of what was confirmed go.

    :param path: A directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved = 0

    def save(self, session: Session, view: Target) -> None:
        """Save what a view shows, and say so; no more than some, and one that fails ends nothing.

        :param view: The one that confirmed a finding: the snapshot shows the same words.
        """
        if self._saved >= _MAX_SNAPSHOTS:
            return
        self._saved += 1
        stamp = time.strftime("%Y%m%dT%H%M%S")
        names = (f"finding-{stamp}-{number}.core.xz" for number in itertools.count(1))
        path = next(path for path in (self._path / name for name in names) if not path.exists())
        try:
            saved = save_snapshot(view, str(path))
        except UsageError as error:
            session.note(printable(f"no snapshot: {error}"))
            return
        session.note(printable(f"saved {path}, {saved.bytes:,} bytes"))


def parse_on_finding(text: str) -> EvidenceDirectory:
    """Read the argument of ``--on-finding``.

    :raises UsageError: if it names no directory that can be written to.
    """
    path = Path(text.removeprefix(_SNAPSHOT))
    if not text.startswith(_SNAPSHOT) or path == Path():
        raise UsageError(f"--on-finding {text}: what it can do is {_SNAPSHOT}DIR")
    if not path.is_dir():
        raise UsageError(f"--on-finding {text}: there is no directory {path}")
    return EvidenceDirectory(path)


def audit_in_rounds(
    session: Session,
    one_round: Callable[[], AuditReport],
    every: float,
    count: int | None,
) -> int:
    """Audit again and again, and answer round by round.

    :param one_round: Makes an audit.
    :param every: Seconds from the start of one round to that of the next; one that takes longer is
        followed by the next at once.
    :param count: How many; ``None``: until Ctrl-C.
    :return: The exit code: of the worst round, and that of an interruption.
    """
    history = History()
    interrupted = False
    try:
        for number in itertools.count(1):
            start = time.monotonic()
            heard = session.answer(history.add(one_round()))
            if number == count or not heard:
                break
            time.sleep(max(start + every - time.monotonic(), 0))
    except KeyboardInterrupt:
        interrupted = True
    if history.rounds:
        session.answer(RoundsReport(history, interrupted))
    if history.outcomes[Outcome.VIOLATED]:
        return 1
    if interrupted:
        return _INTERRUPTED
    return session.INCOMPLETE if history.outcomes[Outcome.INCOMPLETE] else 0
