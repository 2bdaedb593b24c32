"""What all commands have in common, as click sees them."""

from __future__ import annotations

import click

from anonvma_inspect.cli.mistakes import suggest_option
from anonvma_inspect.errors import UsageError

__all__ = ("Command",)


class Command(click.Command):
    """A command that knows what a file among its arguments is meant for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments apart.

        :raises UsageError: if there are too many; with the option that a file goes with.
        """
        ctx.allow_extra_args = True
        extra = super().parse_args(ctx, args)
        for argument in extra:
            suggestion = suggest_option(argument)
            if suggestion is not None:
                raise UsageError(suggestion)
        if extra:
            ctx.fail(f"{self.name} has no argument for {' '.join(extra)!r}")
        return extra
