"""What the lab takes for an oops on a guest's console."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from labkit.errors import GuestError
from labkit.oops import text_of_oops

CONSOLE = """\
[    1.000000] Run /init as init process\r
LAB-DONE\r
[    5.483958] BUG: unable to handle page fault for address: ff36e5fad4bf9888\r
[    5.484337] #PF: supervisor read access in kernel mode\r
[    5.485083] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI\r
[    5.486854] RAX: ff36f5fad4bc1308 RBX: ff36f5fad4bc1308 RCX: 0000000000000000\r
[    5.493578] Modules linked in: qemu_fw_cfg\r
[    5.494044] ---[ end trace 0000000000000000 ]---\r
[    5.494187] RIP: 0010:unlink_anon_vmas+0x9b/0x1d0\r
"""


def test_from_its_first_line_to_its_last() -> None:
    assert text_of_oops(CONSOLE) == [
        "BUG: unable to handle page fault for address: ff36e5fad4bf9888",
        "#PF: supervisor read access in kernel mode",
        "Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI",
        "RAX: ff36f5fad4bc1308 RBX: ff36f5fad4bc1308 RCX: 0000000000000000",
        "Modules linked in: qemu_fw_cfg",
        "---[ end trace 0000000000000000 ]---",
    ]


@pytest.mark.parametrize("console", ["", CONSOLE.split("[    5.494044]")[0], "BUG: " * 3])
def test_nothing_happened(console: str) -> None:
    with pytest.raises(GuestError, match="no oops"):
        text_of_oops(console)
