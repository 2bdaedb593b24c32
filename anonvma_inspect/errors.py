"""Errors that end a command, each with the exit code of the command-line contract.

Every layer raises these; exactly one place (:func:`anonvma_inspect.cli.main`) prints the message
and exits. A message says what is wrong and what to do about it, in one or two sentences.
"""

__all__ = ("AnonVmaInspectError", "MissingError", "NotFoundError", "TargetError", "UsageError")


class AnonVmaInspectError(Exception):
    """An error whose message is meant for the person at the terminal."""

    exit_code = 3


class UsageError(AnonVmaInspectError):
    """The command was called wrongly: an option, an argument or their combination (exit 2)."""

    exit_code = 2


class NotFoundError(UsageError):
    """A PID, address or pointer that names nothing in this target (exit 2)."""


class MissingError(AnonVmaInspectError):
    """What the answer begins with is not in this target, as a hole would be (exit 4)."""

    exit_code = 4


class TargetError(AnonVmaInspectError):
    """The target, or a file that describes it, cannot be opened or understood (exit 3)."""

    exit_code = 3
