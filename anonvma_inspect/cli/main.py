"""The one place that prints errors and exits."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from anonvma_inspect.cli.app import app
from anonvma_inspect.cli.process import set_up_process
from anonvma_inspect.cli.session import drop, say
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import AnonVmaInspectError, TargetError, UsageError
from anonvma_inspect.report.escape import printable

__all__ = ("main",)

PROGRAM = "anonvma-inspect"
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    :param arguments: Instead of those of the process.
    """
    set_up_process()
    code = _run(sys.argv[1:] if arguments is None else list(arguments))
    # What click wrote itself may still be in the buffer.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            drop(stream)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    settings = Settings()
    try:
        code = app.main(arguments, prog_name=PROGRAM, standalone_mode=False, obj=settings)
        return code if isinstance(code, int) else 0
    except AnonVmaInspectError as error:
        _complain(str(error))
        return error.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else PROGRAM
        say(f"Try '{path} --help'.\n")
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except SystemExit:
        # This is how click ends when whoever reads its own output (--help) went away, with an exit
        # code that would be a verdict here.
        return 0
    except OSError as error:
        # Of files, the layers below make sentences of their own; left are the outputs.
        drop(sys.stdout)
        _complain(f"cannot go on: {error.strerror or error}")
        return TargetError.exit_code
    except MemoryError:
        _complain("out of memory: the audit of one process (--pid) or of a snapshot needs less")
        return TargetError.exit_code
    except Exception as error:
        return _report_bug(error, settings)


# A bug of this tool, which must not look like a verdict on the target.
def _report_bug(error: Exception, settings: Settings) -> int:
    if settings.verbosity >= 2:
        say(printable(traceback.format_exc()))
    what = str(error)
    _complain(
        f"a bug in this tool, please report it: {type(error).__name__}"
        + (f": {what}" if what else "")
        + ("" if settings.verbosity >= 2 else " (-vv shows where)")
    )
    return TargetError.exit_code


def _complain(message: str) -> None:
    say(f"{PROGRAM}: {printable(message)}\n")
