"""The checker of kernels, as far as it goes without a guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from labkit.capture import Lab
from labkit.check import BAD, GOOD, MATRIX, UNTESTABLE, Outcome, check, steps_text
from labkit.errors import LabError
from labkit.foreign import any_kernel, image_release
from labkit.modules import find_modules
from labkit.programs import WORKLOADS
from labkit.specs import PARAMETERS


def image(release: str = "7.3.4-ours", at: int = 0x3000) -> bytes:
    """A bzImage's header: 'HdrS' at 0x202, and at 0x20e where the version is, less 0x200."""
    data = bytearray(0x4000)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (at - 0x200).to_bytes(2, "little")
    text = f"{release} (lab@lab) #1 SMP\0".encode()
    data[at : at + len(text)] = text
    return bytes(data)


def test_release_of_an_image() -> None:
    assert image_release(image()) == "7.3.4-ours"
    for other in (b"", b"\x7fELF" + bytes(0x1000), image(release="")[:0x210]):
        with pytest.raises(LabError, match="no kernel image"):
            image_release(other)


@pytest.mark.parametrize(
    "layout", ["boot/vmlinuz-7.3.4-ours", "usr/lib/modules/7.3.4-ours/vmlinuz"]
)
def test_modules_beside_an_image(tmp_path: Path, layout: str) -> None:
    """As a package, unpacked or installed, has them; other kernels' are left alone."""
    path = tmp_path / layout
    path.parent.mkdir(parents=True)
    path.write_bytes(image())
    folder = "usr/lib/modules" if layout.startswith("usr") else "lib/modules"
    for release in ("7.3.4-ours", "6.1.0-other"):
        module = tmp_path / folder / release / "kernel/drivers/firmware/qemu_fw_cfg.ko"
        module.parent.mkdir(parents=True)
        module.write_bytes(release.encode())
    kernel, found = any_kernel(str(path), tmp_path)
    assert (kernel.name, kernel.modules, found.release) == (
        "7.3.4-ours",
        ("qemu_fw_cfg",),
        "7.3.4-ours",
    )
    assert found.vmlinuz == path.resolve()
    assert [
        one.read_bytes() for one in find_modules(found.root, kernel.modules, found.release)
    ] == [b"7.3.4-ours"]


def test_an_image_in_a_tree_has_no_modules(tmp_path: Path) -> None:
    path = tmp_path / "arch" / "x86" / "boot" / "bzImage"
    path.parent.mkdir(parents=True)
    path.write_bytes(image())
    kernel, found = any_kernel(str(path), tmp_path)
    assert kernel.modules == ()
    assert "qemu_fw_cfg.ioport" in kernel.append
    assert find_modules(found.root, kernel.modules, found.release) == []


def test_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"kernels by name are .*7\.3-lazy"):
        any_kernel(str(tmp_path / "missing"), tmp_path)
    (tmp_path / "text").write_text("no kernel")
    with pytest.raises(LabError, match="text: it is no kernel image"):
        any_kernel(str(tmp_path / "text"), tmp_path)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(steps=4), GOOD),
        (Outcome(steps=4, left_out=["pages: no KSM"]), GOOD),
        (Outcome(steps=4, wrong=["AV402"]), BAD),
        # Found before the guest died: it stays bad.
        (Outcome(steps=4, wrong=["AV402"], untestable="cannot be read"), BAD),
        (Outcome(), UNTESTABLE),
        (Outcome(untestable="no image"), UNTESTABLE),
        (Outcome(steps=1, untestable="cannot be read"), UNTESTABLE),
    ],
)
def test_verdicts_are_what_git_bisect_takes(outcome: Outcome, code: int) -> None:
    assert outcome.code == code
    assert (GOOD, BAD, UNTESTABLE) == (0, 1, 125)


def test_what_the_guest_cannot_begin_is_untestable(tmp_path: Path) -> None:
    """An image that QEMU cannot boot, after all tries; nothing was run, so nothing is bad."""
    path = tmp_path / "bzImage"
    path.write_bytes(image())
    chosen = any_kernel(str(path), tmp_path)
    lab = Lab(tmp_path, lambda line: None, timeout=2)

    def fail(*arguments: object, **more: object) -> None:
        raise LabError("the lab needs QEMU")

    lab.prepare = fail  # type: ignore[method-assign, assignment]  # no guest in a unit test
    outcome = check(lab, chosen, lambda core: [], lambda line: None)
    assert (outcome.code, outcome.untestable) == (UNTESTABLE, "the lab needs QEMU")


def test_matrix() -> None:
    lines = steps_text(MATRIX).splitlines()
    assert len(lines) == len(MATRIX)
    for line, (name, changed) in zip(lines, MATRIX, strict=True):
        program, *words = line.split()
        assert program == name in WORKLOADS
        said = dict(word.split("=") for word in words)
        assert said == {key: str(value) for key, value in {**PARAMETERS[name], **changed}.items()}
    # The guest reads them into a buffer of 4 kB.
    assert len(steps_text(MATRIX)) < 4000
