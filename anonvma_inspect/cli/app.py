"""The command line as a whole: the group and its commands, loaded when they are called."""

from __future__ import annotations

import importlib

import click

from anonvma_inspect import __version__
from anonvma_inspect.cli.mistakes import suggest_command
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.session import say
from anonvma_inspect.errors import UsageError

__all__ = ("COMMANDS", "app")

#: The commands in the order of the help, with what each does. A command's module is imported when
#: the command is called: numpy alone takes longer than all of ``--help``.
COMMANDS = {
    "audit": "Verify the invariants.",
    "vma": "VMAs of a process, vma->anon_vma decoded.",
    "chain": "A VMA's anon_vma_chain.",
    "tree": "An anon_vma's interval tree.",
    "family": "Anon_vmas of a family, each below its parent; or all families.",
    "rmap": "Who maps a page.",
    "stats": "Counts, bytes, distributions, costs.",
    "what": "What the addresses of an oops are.",
    "savings": "What each proposal would save.",
    "diff": "What has changed from one reading to another.",
    "locks": "Who holds and who awaits the locks.",
    "snapshot": "Save what was read.",
    "explain": "An invariant, its reason, its source.",
}


class _App(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"anonvma_inspect.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(suggest_command(args[0], list(COMMANDS)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_App,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="COMMAND [ARGS]",
    options_metavar="[TARGET] [OPTIONS]",
    epilog="TARGET and OPTIONS may stand before or after COMMAND; the later one wins.",
)
@shared_options
@click.version_option(__version__, prog_name="anonvma-inspect", message="%(prog)s %(version)s")
@click.pass_context
def app(context: click.Context) -> int | None:
    """Decode, walk and verify the Linux kernel's anonymous reverse map.

    \b
    anonvma-inspect -c vmcore audit
    """
    if context.invoked_subcommand is None:
        say(context.get_help() + "\n")
        return UsageError.exit_code
    return None
