"""``what``: what the addresses of an oops are."""

from __future__ import annotations

import sys

import click
import numpy as np

from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.analysis.identify import identify
from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.oops import Word, words_of
from anonvma_inspect.cli.options import pids_option, shared_options
from anonvma_inspect.cli.parameters import parse_address, parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.collect.look_up import look_up
from anonvma_inspect.errors import UsageError
from anonvma_inspect.invariants import pages
from anonvma_inspect.invariants.catalogue import CATALOGUE
from anonvma_inspect.report.what import WhatReport
from anonvma_inspect.report.words import counted

__all__ = ("command",)

# An oops has some dozens, and a log of many kilobytes is read to its end.
_MAX_WORDS = 4096
_MAX_TEXT = 16 << 20


@click.command("what", cls=Command)
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@pids_option("Only the families of this process are read")
@shared_options
@click.pass_obj
def command(settings: Settings, addresses: tuple[str, ...], pids: tuple[str, ...]) -> int:
    """What the addresses of an oops are.

    Of each: the object that it lies in, which field, whether it is allocated, its family, and every
    finding of the audit that touches it. ADDRESS is hex; - reads a text from standard input, as an
    oops with its registers, and takes every word in it that could be an address of the kernel's.
    """
    session = Session(settings)
    numbers = [parse_pid(pid) for pid in pids]
    # What the target says must not be waited for only to find that there is nothing to ask.
    session.check_target()
    words = _words(session, addresses)
    target = session.open()
    checks = [each for each in CATALOGUE if each not in pages.INVARIANTS]
    audit = session.audit(target, numbers, checks)
    tables = audit.tables
    asked = np.array([word.address for word in words], dtype=np.uint64)
    looked_up = look_up(target, tables, asked)
    report = WhatReport(
        target_facts(target, tables),
        audit,
        find_families(tables),
        looked_up,
        identify(tables, asked, looked_up),
        [word.labels for word in words],
    )
    session.answer(report)
    return session.completeness(tables)


def _words(session: Session, addresses: tuple[str, ...]) -> list[Word]:
    words: dict[int, Word] = {}
    for text in addresses:
        if text != "-":
            address = parse_address(text)
            words.setdefault(address, Word(address, ()))
            continue
        read, total = words_of(
            sys.stdin.buffer.read(_MAX_TEXT).decode("utf-8", "replace"), _MAX_WORDS
        )
        if total > len(read):
            session.note(
                f"{counted(total, 'word')} in that text: the first {_MAX_WORDS:,} are taken"
            )
        for word in read:
            words.setdefault(word.address, word)
    if not words:
        raise UsageError("there is no address of the kernel's in that text")
    return list(words.values())[:_MAX_WORDS]
