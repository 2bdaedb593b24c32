"""What the options that every command shares were set to."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

__all__ = ("KCORE", "Settings")

#: The running kernel, which can be named like any other core.
KCORE = "/proc/kcore"


@dataclass
class Settings:
    """The options that stand before or after the command; the later one wins.

    :ivar kind: The option that named the target, ``None`` if none did.
    :ivar paths: Files of the target, by the names that
        :class:`~anonvma_inspect.target.TargetOptions` gives them.
    :ivar verbosity: -1 quiet, 1 times as well, 2 tracebacks as well.
    :ivar progress: ``None``: if it takes long.
    :ivar scheme: How ``vma->anon_vma`` is encoded; ``None``: find out.
    """

    kind: str | None = None
    paths: dict[str, str] = field(default_factory=dict)
    format: str = "table"
    color: str = "auto"
    verbosity: int = 0
    progress: bool | None = None
    scheme: str | None = None

    def look_at_kernel(self) -> None:
        """Make the running kernel the target."""
        self.kind = "kernel"
        self.paths["core"] = KCORE

    @property
    def colored(self) -> bool:
        """Whether standard output gets colours."""
        if self.color != "auto":
            return self.color == "always"
        return (
            sys.stdout.isatty()
            # https://no-color.org: set and not empty.
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
        )

    @property
    def unicode(self) -> bool:
        """Whether standard output can show box characters."""
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        return encoding.lower().replace("-", "").startswith("utf")
