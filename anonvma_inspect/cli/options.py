"""The options that every command shares, accepted before and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from anonvma_inspect.cli.mistakes import describe_file
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import UsageError

__all__ = ("pids_option", "shared_options")

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_FORMATS = ("table", "json", "jsonl", "dot")
# Those of anonvma_inspect.kernel.tags, which takes numpy to load: too early here.
_SCHEMES = ("none", "unfaulted", "lazy", "auto")


# Options are stored as they are parsed, the group's before the command's, so that the later one
# wins; defaults store nothing.
def _store(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    name = parameter.name
    assert name is not None
    if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
        return
    settings = context.ensure_object(Settings)
    if name in ("kernel", "core", "qemu", "gdb"):
        _store_target(context, settings, parameter.opts[0], name, value)
    elif name in ("symbols", "btf", "vmcoreinfo", "system_map"):
        _check_path(parameter.opts[0], name, value)
        settings.paths[name] = value
    elif name == "quiet":
        settings.verbosity = -1
    elif name == "scheme":
        settings.scheme = None if value == "auto" else value
    elif name == "verbose":
        settings.verbosity = value
    else:
        setattr(settings, name, value)


def _store_target(
    context: click.Context, settings: Settings, option: str, name: str, value: Any
) -> None:
    # One that stands before the command can be overridden after it, as in an alias; two at one
    # place contradict each other.
    before = context.meta.setdefault(f"{__name__}.target.{id(context)}", option)
    if before != option:
        raise UsageError(f"{before} and {option} both name a target: give one of them")
    settings.kind = name
    for other in ("core", "qemu", "gdb"):
        settings.paths.pop(other, None)
    if name == "kernel":
        settings.look_at_kernel()
    elif name in ("qemu", "gdb"):
        settings.paths[name] = value
    elif name == "core":
        settings.paths["core"] = value
        if describe_file(value) == "vmlinux":
            raise UsageError(
                f"{value} is a kernel executable, not a core dump. Did you mean -s {value}?"
            )


def _check_path(option: str, name: str, value: str) -> None:
    if name == "symbols" and describe_file(value) == "core dump":
        raise UsageError(f"{value} is a core dump. Did you mean -c {value}?")


def pids_option(what: str) -> Callable[[Decorated], Decorated]:
    """Give a command ``--pid``, as its argument ``pids``.

    :param what: What it says of the processes that are named.
    """
    return click.option("--pid", "pids", multiple=True, metavar="PID", help=f"{what} (repeatable).")


def shared_options(function: Decorated) -> Decorated:
    """Give a command (or the group) the options for the target, the output and the messages."""

    def option(*names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
        return click.option(*names, expose_value=False, callback=_store, **attributes)

    options = (
        option("-k", "--kernel", is_flag=True, help="The running kernel (the default for root)."),
        option("-c", "--core", metavar="PATH", help="A vmcore (ELF or kdump) or a snapshot."),
        option("--qemu", metavar="ADDRESS", help="A QEMU guest: its QMP socket."),
        option(
            "--gdb",
            metavar="ADDRESS",
            help="A gdb remote stub; the machine stands still meanwhile.",
        ),
        option("-s", "--symbols", metavar="PATH", help="A vmlinux with DWARF; else BTF serves."),
        option("--btf", metavar="PATH", help="BTF, for a target that has none."),
        option("--vmcoreinfo", metavar="PATH", help="VMCOREINFO, for a target that has none."),
        option("--system-map", metavar="PATH", help="Symbols, in the form of /proc/kallsyms."),
        option(
            "--scheme",
            type=click.Choice(_SCHEMES),
            help="How vma->anon_vma is tagged; auto (the default) finds out.",
        ),
        option(
            "--format",
            type=click.Choice(_FORMATS),
            help="How to answer; table (the default) is for people, dot (of family) for Graphviz.",
        ),
        option(
            "--color",
            type=click.Choice(("auto", "always", "never")),
            help="Colours; auto (the default) is at a terminal, unless NO_COLOR is set.",
        ),
        option("-q", "--quiet", is_flag=True, help="Only the answer and errors."),
        option("-v", "--verbose", count=True, help="Say how long it took; -vv: tracebacks."),
        option(
            "--progress/--no-progress",
            default=None,
            help="Show progress on a terminal from the start, or never.",
        ),
    )
    for decorator in reversed(options):
        function = decorator(function)
    return function
