"""What is said of the target in every answer."""

from __future__ import annotations

from dataclasses import dataclass

from anonvma_inspect.report.escape import escape

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
    """

    kind: str
    release: str
    architecture: str
    era: str
    tag_scheme: str
    layouts: str
    symbols: str

    def document(self) -> Document:
        """As a part of a JSON answer."""
        return {
            "kind": self.kind,
            "release": escape(self.release.encode("utf-8", "surrogatepass")),
            "architecture": escape(self.architecture.encode("utf-8", "surrogatepass")),
            "era": self.era,
            "tag_scheme": self.tag_scheme,
            "layouts": self.layouts,
            "symbols": self.symbols,
        }
