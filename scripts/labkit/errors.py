"""Errors that end a lab command: a sentence for the person at the terminal, and exit code 3."""

__all__ = ("BootError", "GuestError", "LabError")


class LabError(Exception):
    """The lab cannot do what it was asked to; the message says why and what to do."""

    exit_code = 3


class GuestError(LabError):
    """The guest died, or did not do in time what was expected of it."""


class BootError(GuestError):
    """The guest's kernel died before it ran anything."""
