"""Answers about targets with wrong words in them: no traceback, no hang, nothing raw."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import pytest

from anonvma_inspect.analysis.difference import summarize
from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.analysis.identify import identify
from anonvma_inspect.analysis.savings import find_savings
from anonvma_inspect.collect import collect_audit, collect_pages
from anonvma_inspect.collect.look_up import look_up
from anonvma_inspect.in_flight import audit
from anonvma_inspect.report.diff import DiffReport
from anonvma_inspect.report.family import FamiliesReport, FamilyReport, sorted_families
from anonvma_inspect.report.render import Picture, Report, render
from anonvma_inspect.report.savings import SavingsReport
from anonvma_inspect.report.stats import StatsReport
from anonvma_inspect.report.style import PLAIN
from anonvma_inspect.report.what import WhatReport
from anonvma_inspect.target.memory import OverlayMemory

from .captures import CAPTURES, KERNELS, Capture, few_or_all
from .small_tables import FACTS

_CAPTURES = [*KERNELS, *(each for each in CAPTURES if each.name.startswith("deep-"))]


def wrong_words(capture: Capture, dice: random.Random) -> dict[int, int]:
    """Some words of some objects, and what shall be there."""
    tables = capture.tables
    kinds = [
        (tables.era.vma, tables.vmas.address),
        (tables.era.avc, tables.avcs.address),
        (tables.era.anon_vma, tables.anon_vmas.address),
        (tables.era.mm, tables.mms.address),
    ]
    words = {}
    for _ in range(dice.choice((1, 5, 50))):
        record, column = dice.choice(kinds)
        at = int(dice.choice(column))
        offset = dice.choice(list(record.fields.values())).offset & ~7
        other = int(dice.choice(dice.choice(kinds)[1]))
        words[at + offset] = dice.choice(
            (0, 1, 2**64 - 1, dice.getrandbits(64), dice.getrandbits(20), at, other, other + 32)
        )
    return words


def reports(capture: Capture, words: dict[int, int], dice: random.Random) -> Iterator[Report]:
    memory = OverlayMemory(capture.target.memory, words)
    target = dataclasses.replace(capture.target, memory=memory)
    tables = collect_pages(target, collect_audit(target, leaks=True))
    families = find_families(tables)
    yield StatsReport(FACTS, tables)
    yield SavingsReport(FACTS, tables, find_savings(tables, families))
    yield FamiliesReport(FACTS, tables, families, sorted_families(families, "memory"))
    for family in dice.sample(range(len(families.root)), min(len(families.root), 5)):
        yield FamilyReport(FACTS, tables, families, family)
    yield DiffReport(FACTS, FACTS, summarize(capture.tables), summarize(tables), True, True)
    asked = np.array([*words, *words.values()], dtype=np.uint64)
    looked_up = look_up(target, tables, asked)
    identities = identify(tables, asked, looked_up)
    yield WhatReport(
        FACTS, audit(tables), families, looked_up, identities, [() for _ in identities]
    )


@pytest.mark.parametrize("capture", _CAPTURES, ids=lambda capture: capture.name)
@pytest.mark.parametrize("seed", range(few_or_all(1, 10)))
def test_any_words(capture: Capture, seed: int) -> None:
    dice = random.Random(f"{capture.name} {seed}")
    for report in reports(capture, wrong_words(capture, dice), dice):
        for format in ("table", "json", *(("dot",) if isinstance(report, Picture) else ())):
            text = "".join(render(report, format, PLAIN))
            assert text
            assert all(line.isprintable() for line in text.split("\n"))
