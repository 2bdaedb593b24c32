"""What is said of the target in every answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from anonvma_inspect.kernel.tags import NO_TAGS
from anonvma_inspect.report.escape import escape, printable

__all__ = ("Document", "TargetFacts")

#: What becomes a JSON object.
Document = dict[str, object]


@dataclass(frozen=True)
class TargetFacts:
    """The target in a few words.

    :ivar kind: ``elf-core``, ``kdump`` or ``snapshot``.
    :ivar release: ``uname -r``, as the target has it.
    :ivar architecture: ``uname -m``.
    :ivar era: What tells its structures from those of other kernels.
    :ivar tag_scheme: How ``vma->anon_vma`` is encoded.
    :ivar layouts: Where layouts come from: ``btf`` or ``dwarf``.
    :ivar symbols: Where symbols come from, see
        :class:`~anonvma_inspect.target.symbols.Symbols`.
    :ivar tag_evidence: What says how ``vma->anon_vma`` is encoded.
    :ivar tag_certain: Whether that is enough to judge tagged words by.
    :ivar tag_supported: Whether anything speaks for this scheme, if it is not.
    :ivar tag_enabled: Whether the kernel has that switched on; ``None`` if that is not known.
    """

    kind: str
    release: str
    architecture: str
    era: str
    tag_scheme: str
    layouts: str
    symbols: str
    tag_evidence: str = NO_TAGS.evidence
    tag_certain: bool = True
    tag_supported: bool = True
    tag_enabled: bool | None = None

    def tag_lines(self) -> Iterator[str]:
        """What is to be said of the encoding of ``vma->anon_vma``: nothing of a plain pointer."""
        if self.tag_evidence == NO_TAGS.evidence:
            return
        switch = {None: "", True: ", switched on", False: ", switched off"}[self.tag_enabled]
        scheme, evidence = f"{self.tag_scheme}{switch}", printable(self.tag_evidence)
        if not self.tag_certain:
            scheme = f"not sure, perhaps {scheme}" if self.tag_supported else "not sure"
            evidence += "; --scheme settles it"
        yield f"tags in vma->anon_vma: {scheme} ({evidence})"

    def document(self) -> Document:
        """As a part of a JSON answer."""
        return {
            "kind": self.kind,
            "release": escape(self.release.encode("utf-8", "surrogatepass")),
            "architecture": escape(self.architecture.encode("utf-8", "surrogatepass")),
            "era": self.era,
            "tag_scheme": self.tag_scheme,
            "tag_scheme_certain": self.tag_certain,
            "tag_scheme_enabled": self.tag_enabled,
            "tag_scheme_evidence": printable(self.tag_evidence),
            "layouts": self.layouts,
            "symbols": self.symbols,
        }
