"""What all commands have in common, as click sees them."""

from __future__ import annotations

from typing import Any

import click

from anonvma_inspect.cli.mistakes import suggest_option
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import UsageError

__all__ = ("Command",)


class Command(click.Command):
    """A command that knows what a file among its arguments is meant for, and what it can draw.

    :param draws: It can answer in the language of Graphviz.
    """

    def __init__(self, *args: Any, draws: bool = False, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._draws = draws

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

    def invoke(self, ctx: click.Context) -> Any:
        """Do it.

        :raises UsageError: if it cannot answer in the format that was asked for.
        """
        if ctx.ensure_object(Settings).format == "dot" and not self._draws:
            raise UsageError(f"{self.name} has nothing to draw: --format dot is for family")
        return super().invoke(ctx)
