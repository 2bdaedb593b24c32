"""The lab: real kernels under QEMU, real workloads, dumps, and the guest's own word for them.

``scripts/lab`` is the way in. From nothing but a Debian machine it fetches a kernel package, builds
an initramfs, boots a guest, runs a workload, lets the guest say what is there, and dumps it::

    kernels    which kernels there are, fetched through apt and unpacked into a cache; suites is apt
               for other suites and architectures, symbols what a kernel does not tell of itself;
               build makes those of our own configuration; edits changes their source; foreign
               is a kernel that somebody else built
    machines   the architectures of guests; busybox and modules what goes into one
    programs   the C programs (workloads, witness), compiled static; packages those of Debian's
    initramfs  a cpio archive written here, byte by byte; interpreter one with Python in it
    guest      one QEMU, from start to end; qmp is how it is spoken to
    shell      a guest that is told what to do
    word       what the witness in the guest wrote, taken apart
    manifest   the JSON beside each dump or fixture
    specs      the fixtures, and the parameters of the workloads
    capture    a dump, step by step; storm the same for a guest that never rests
    live       audits of a guest by itself, while a storm goes on; poke changes words meanwhile
    aim        words to change, and what an audit says of them; gdbstub changes them in a guest
    kdump      the same by crashing the guest, with makedumpfile in a second kernel
    faults     a dump after each allocation that failed; judge is the package's verdict on one
    check      a verdict on any kernel; console is what a kernel complains of
    verdict    the same as the command line gives it
    fixtures   dumps made into fixtures
    figures    what a workload must come to, worked out by hand

But for model, judge, verdict and aim, nothing here knows the package that inspects the dumps: what
the lab says must stand on its own.
"""
