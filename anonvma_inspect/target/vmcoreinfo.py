"""VMCOREINFO: what a kernel tells about itself to whoever reads its dump.

Follows ``Documentation/admin-guide/kdump/vmcoreinfo.rst`` and ``kernel/vmcore_info.c``, v6.12.
"""

from __future__ import annotations

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.files import map_file

__all__ = ("MAX_VMCOREINFO", "parse_vmcoreinfo", "read_vmcoreinfo")

#: Bytes that are looked at; no kernel's has more than some pages.
MAX_VMCOREINFO = 1 << 20


def parse_vmcoreinfo(text: bytes, path: str) -> dict[str, str]:
    """Split VMCOREINFO into its ``KEY=value`` lines.

    :param path: Where it comes from, for messages.
    :raises TargetError: if it is no VMCOREINFO.
    """
    lines = text[:MAX_VMCOREINFO].rstrip(b"\0").decode("ascii", "replace").splitlines()
    values = dict(line.partition("=")[::2] for line in lines if "=" in line)
    missing = [key for key in ("OSRELEASE", "PAGESIZE") if key not in values]
    if missing:
        raise TargetError(f"{path}: no VMCOREINFO of a kernel: {' and '.join(missing)} not in it")
    if values["PAGESIZE"] not in {str(1 << shift) for shift in range(12, 17)}:
        raise TargetError(f"{path}: VMCOREINFO is damaged: PAGESIZE={values['PAGESIZE']!r}")
    return values


def read_vmcoreinfo(path: str | None) -> bytes | None:
    """Read VMCOREINFO from the file that the user named, if any.

    :raises TargetError: if it is none.
    """
    if path is None:
        return None
    text = map_file(path)[:MAX_VMCOREINFO].tobytes()
    parse_vmcoreinfo(text, path)
    return text
