"""The answer of ``what``: what addresses are, and what the audit says of it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.identify import Identity, Kind
from anonvma_inspect.collect.look_up import LookedUp
from anonvma_inspect.in_flight import Audit
from anonvma_inspect.invariants.base import Finding
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.report.audit import finding_document
from anonvma_inspect.report.escape import escape, printable
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.objects import describe_vma, process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted, hexadecimal
from anonvma_inspect.tables import NO_ROW, ObjectState

__all__ = ("WhatReport",)

SCHEMA = "anonvma-inspect/what/2"

# Of a kernel that is corrupt throughout, more are not looked through.
_MAX_FINDINGS = 50_000
_STATES = {
    ObjectState.ALLOCATED: "allocated",
    ObjectState.FREE: "free",
    ObjectState.INSIDE: "not where an object begins",
    ObjectState.NO_SLAB: "in a page that is no slab",
    ObjectState.OTHER_CACHE: "in a slab of another cache",
    ObjectState.UNKNOWN: None,
}
_NOTHING = {
    Kind.NULL: "NULL",
    Kind.ERROR: "an error number",
    Kind.USER: "an address of user memory, or a number",
    Kind.IMPOSSIBLE: "no address at all",
    Kind.ELSEWHERE: "in the kernel, but in no slab and no memory that is known here (its image, a "
    "module, another stack)",
    Kind.MEMORY: "in RAM, but in no object that is known here",
}


_NUMBERS = (Kind.NULL, Kind.ERROR, Kind.USER, Kind.POISON)


@dataclass(frozen=True)
class WhatReport:
    """Some addresses, each with what it is.

    :ivar labels: What stood before each of them, such as the names of registers.
    """

    facts: TargetFacts
    audit: Audit
    families: Families
    looked_up: LookedUp
    identities: Sequence[Identity]
    labels: Sequence[Sequence[str]]

    items = "addresses"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "addresses": [
                self._entry(identity, labels)
                for identity, labels in zip(self.identities, self.labels, strict=True)
            ],
            "findings_total": self.audit.findings_total,
            "complete": self.audit.tables.complete,
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        for identity, labels in zip(self.identities, self.labels, strict=True):
            names = "".join(f"{printable(label)} " for label in labels)
            address = style.strong(hexadecimal(identity.address))
            yield f"{names}{address}  {self._what(identity, style)}"
            for line in self._about(identity):
                yield f"    {line}"
            for finding in self._touching(identity):
                yield f"    {_finding_line(finding, style)}"
        total = self.audit.findings_total
        if total:
            yield ""
            yield f"{counted(total, 'finding')} in this target; see: anonvma-inspect audit"

    def _what(self, identity: Identity, style: Style) -> str:
        if identity.kind is Kind.OBJECT:
            return self._object(identity, style)
        if identity.kind is Kind.SLAB:
            return f"in a slab of {self._cache(identity)}, but in none of its objects"
        if identity.kind is Kind.FOLIO:
            page = self._page(identity)
            return f"{page}, in {self._folio(identity)}" if page else self._folio(identity)
        if identity.kind is Kind.PAGE:
            tail = identity.head not in (0, identity.start)
            of = f", a tail of the folio {hexadecimal(identity.head)}" if tail else ""
            return f"{self._page(identity)}{of}"
        if identity.kind is Kind.STACK:
            pid, comm = self._thread(identity)
            # A snapshot may not have the names of kernel threads.
            return f"in the kernel stack of PID {pid}{f' ({comm})' if comm else ''}"
        if identity.kind is Kind.POISON:
            return style.warn(identity.note or "poison")
        nothing = _NOTHING[identity.kind]
        return nothing if identity.note is None else f"{nothing} ({printable(identity.note)})"

    def _object(self, identity: Identity, style: Style) -> str:
        offset = identity.address - identity.start
        what = identity.struct or f"an object of {self._cache(identity)}"
        parts = [_name(identity, what) if offset else what]
        state = _STATES[identity.state]
        if state is not None:
            parts.append(style.good(state) if state == "allocated" else style.bad(state))
        if not identity.met and identity.state is ObjectState.ALLOCATED:
            parts.append("nothing that was read leads to it")
        return ", ".join(parts)

    def _cache(self, identity: Identity) -> str:
        name = self._cache_name(identity)
        return f"cache {name}" if name else f"the cache at {hexadecimal(identity.cache)}"

    def _cache_name(self, identity: Identity) -> str | None:
        name = self.looked_up.objects.names.get(identity.cache)
        return escape(name) if name else None

    # The struct page that it lies in; "" if it lies in none.
    def _page(self, identity: Identity) -> str:
        if identity.page < 0:
            return ""
        offset = identity.address - identity.start
        field = f" ({identity.field})" if identity.field else ""
        at = f" + {offset:#x}{field}" if offset else ""
        return f"struct page{at} of page frame {identity.page:#x}"

    # PID and name of the thread whose stack it is in.
    def _thread(self, identity: Identity) -> tuple[int, str]:
        stacks, row = self.looked_up.stacks, identity.stack
        return int(stacks.pid[row]), escape(bytes(stacks.comm[row]))

    def _folio(self, identity: Identity) -> str:
        folio = self._folio_document(identity)
        assert folio is not None
        return (
            f"a folio of {counted(int(str(folio['pages'])), 'page')}, struct page "
            f"{folio['address']}, PFN {folio['pfn']}, mapped "
            f"{counted(int(str(folio['mapcount'])), 'time')}, mapping "
            f"{folio['mapping']} ({folio['kind']})"
        )

    # What it is of, a line each.
    def _about(self, identity: Identity) -> Iterator[str]:
        tables = self.audit.tables
        if identity.vma != NO_ROW:
            yield describe_vma(tables, identity.vma)
        elif identity.mm != NO_ROW:
            process = process_of_mm(tables, identity.mm)
            yield f"of {process}" if process is not None else "of an mm that no task has"
        if identity.one_bit_from is not None:
            other, bit = identity.one_bit_from
            yield f"differs in one bit ({bit}) from {_name(other)}"
        if identity.head:
            yield f"see: anonvma-inspect rmap {identity.page:#x}"
        if identity.anon_vma == NO_ROW:
            return
        anon_vma = hexadecimal(int(tables.anon_vmas.address[identity.anon_vma]))
        root = self._root(identity)
        if root is None:
            yield f"anon_vma {anon_vma}, of no family"
            return
        family = int(self.families.anon_vma_family[identity.anon_vma])
        once = "" if identity.met or identity.kind is Kind.FOLIO else "once of "
        yield (
            f"{once}anon_vma {anon_vma}, family of root "
            f"{hexadecimal(root)}: {counted(int(self.families.anon_vmas[family]), 'anon_vma')}, "
            f"{counted(int(self.families.vmas[family]), 'VMA')}"
        )

    def _root(self, identity: Identity) -> int | None:
        if identity.anon_vma == NO_ROW:
            return None
        family = int(self.families.anon_vma_family[identity.anon_vma])
        if family == NO_ROW:
            return None
        return int(self.audit.tables.anon_vmas.address[self.families.root[family]])

    # Findings of the audit, by each object, and each other address that was asked for, that they
    # are about or name.
    @cached_property
    def _findings(self) -> dict[int, list[Finding]]:
        sizes = {each.start: each.size for each in self.identities if each.start}
        starts = sorted(sizes)
        named = {hexadecimal(start): start for start in starts}
        # A number that is no address of the kernel's may be expected of many a word.
        named |= {
            hexadecimal(each.address): each.start or each.address
            for each in self.identities
            if each.kind not in _NUMBERS
        }
        found: dict[int, list[Finding]] = {}
        for finding in itertools.islice(self.audit.findings(None), _MAX_FINDINGS):
            text = f"{finding.expected} {finding.actual}".replace(",", " ").split()
            about = {named[word] for word in text if word in named}
            for address in (finding.object_address, finding.word, finding.cause):
                # The object that begins last before it.
                at = bisect.bisect_right(starts, address) - 1 if address is not None else -1
                if at >= 0 and address is not None and address - starts[at] < sizes[starts[at]]:
                    about.add(starts[at])
            for start in about:
                found.setdefault(start, []).append(finding)
        return found

    def _touching(self, identity: Identity) -> list[Finding]:
        return self._findings.get(identity.start or identity.address, [])

    def _entry(self, identity: Identity, labels: Sequence[str]) -> Document:
        tables = self.audit.tables
        process = process_of_mm(tables, identity.mm)
        vmas, vma = tables.vmas, identity.vma
        anon_vma = identity.anon_vma
        root = self._root(identity)
        pid, comm = None if process is None else process.pid, None
        if process is not None:
            comm = escape(process.comm)
        if identity.stack != NO_ROW:
            pid, comm = self._thread(identity)
        return {
            "address": hexadecimal(identity.address),
            "labels": [printable(label) for label in labels],
            "kind": identity.kind.value,
            "object": None
            if not identity.start
            else {"type": identity.struct, "address": hexadecimal(identity.start)},
            "offset": identity.address - identity.start if identity.start else None,
            "field": identity.field or None,
            "state": _STATES[identity.state],
            "reached": identity.met,
            "cache": None
            if not identity.cache
            else {"address": hexadecimal(identity.cache), "name": self._cache_name(identity)},
            "where": {
                "pid": pid,
                "comm": comm,
                "vma": None if vma == NO_ROW else hexadecimal(int(vmas.address[vma])),
                "start": None if vma == NO_ROW else hexadecimal(int(vmas.vm_start[vma])),
                "end": None if vma == NO_ROW else hexadecimal(int(vmas.vm_end[vma])),
            },
            "anon_vma": None
            if anon_vma == NO_ROW
            else hexadecimal(int(tables.anon_vmas.address[anon_vma])),
            "root": None if root is None else hexadecimal(root),
            "page": None
            if identity.page < 0
            else {
                "pfn": identity.page,
                "head": hexadecimal(identity.head) if identity.head else None,
            },
            "folio": self._folio_document(identity),
            "one_bit_from": _one_bit_document(identity),
            "note": None if identity.note is None else printable(identity.note),
            "findings": [finding_document(finding) for finding in self._touching(identity)],
        }

    def _folio_document(self, identity: Identity) -> Document | None:
        folios, row = self.looked_up.folios, identity.folio
        if folios is None or row == NO_ROW:
            return None
        return {
            "address": hexadecimal(int(folios.address[row])),
            "pfn": int(folios.pfn[row]),
            "pages": int(folios.pages[row]),
            "mapcount": int(folios.mapcount[row]),
            "refcount": int(folios.refcount[row]),
            "mapping": hexadecimal(int(folios.mapping[row])),
            "kind": MappingKind(int(folios.kind[row])).word,
        }


def _name(identity: Identity, what: str | None = None) -> str:
    offset = identity.address - identity.start
    field = f" ({identity.field})" if identity.field else ""
    at = f" + {offset:#x}{field}" if offset else ""
    return f"{what or identity.struct} {hexadecimal(identity.start)}{at}"


def _one_bit_document(identity: Identity) -> Document | None:
    if identity.one_bit_from is None:
        return None
    other, bit = identity.one_bit_from
    return {
        "address": hexadecimal(other.address),
        "bit": bit,
        "object": {"type": other.struct, "address": hexadecimal(other.start)},
    }


def _finding_line(finding: Finding, style: Style) -> str:
    return (
        f"{style.bad(finding.code)} {finding.slug}: {printable(finding.message)} "
        f"({finding.object_type} {hexadecimal(finding.object_address)}: expected "
        f"{printable(finding.expected)}, actual {printable(finding.actual)})"
    )
