"""The architectures of guests: which QEMU, which ports, which compiler."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("MACHINES", "Machine")


@dataclass(frozen=True)
class Machine:
    """What a guest of one architecture takes."""

    #: Debian's name of the architecture.
    architecture: str
    qemu: str
    #: Debian package of that QEMU.
    qemu_package: str
    #: The console's device in the guest; QEMU's first serial port.
    console: str
    compiler: str
    compiler_package: str
    libc_package: str
    #: Where that package puts the static C library.
    libc_pattern: str
    #: Further arguments of QEMU.
    arguments: tuple[str, ...] = ()
    #: The processor, where QEMU emulates it.
    cpu: str = "max"
    #: The device of the second serial port, where the machine has only one of its own.
    word_device: str | None = None


MACHINES = {
    machine.architecture: machine
    for machine in (
        Machine(
            architecture="amd64",
            qemu="qemu-system-x86_64",
            qemu_package="qemu-system-x86",
            console="ttyS0",
            compiler="gcc",
            compiler_package="gcc",
            libc_package="libc6-dev",
            libc_pattern="usr/lib/*-linux-gnu/libc.a",
            # QEMU 7.2 emulates AVX2 wrongly: what numpy sorts with it is not sorted.
            cpu="max,avx2=off",
        ),
        Machine(
            architecture="arm64",
            qemu="qemu-system-aarch64",
            qemu_package="qemu-system-arm",
            console="ttyAMA0",
            compiler="aarch64-linux-gnu-gcc",
            compiler_package="gcc-aarch64-linux-gnu",
            libc_package="libc6-dev-arm64-cross",
            libc_pattern="usr/aarch64-linux-gnu/lib/libc.a",
            arguments=("-machine", "virt"),
            # Signing pointers as the architecture says it takes half of the emulation's time.
            cpu="max,pauth-impdef=on",
            word_device="pci-serial",
        ),
    )
}
