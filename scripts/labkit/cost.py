"""What an audit of the running kernel costs: its time, what it reads, and what others notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .capture import Lab, Say
from .errors import GuestError
from .guest import Guest
from .live import audit_rounds, operations, start_storm
from .shell import Shell
from .specs import Plan

__all__ = ("show_sizes", "show_slowdown")

_ROUNDS = 3
# Children of one parent.
_FAMILY = 1000
# MiB: a guest without any, and each process of one page.
_GUEST, _PROCESS = 1024, 0.15
# Of a storm that keeps every processor busy.
_STORM = ("processes=2", "threads=0", "nice=0")


def show_sizes(lab: Lab, plan: Plan, sizes: Sequence[int], show: Say) -> None:
    """Audit guests with so many processes.

    :param plan: For the kernel and the name; each size takes the memory it needs.
    """
    for size in sizes:

        def work(guest: Guest, size: int = size) -> None:
            shell = Shell(guest)
            for first in range(0, size, _FAMILY):
                children = min(_FAMILY, size - first)
                _, said = shell.run(
                    f"/lab/many children={children} pages=1 3>/lab/log & until "
                    "grep -q -e READY -e FAILED /lab/log; do sleep 1; done; tail -n 1 /lab/log",
                    patience=600,
                )
                if said[-1:] != ["READY"]:
                    raise GuestError(f"{size} processes did not begin: {' '.join(said)}")
                shell.run("rm /lab/log")
            rounds = list(audit_rounds(shell, _ROUNDS))
            if len(rounds) < _ROUNDS or shell.status:
                raise GuestError(f"The audits of {size} processes ended with {shell.status}")
            seconds = sorted(one.seconds for one in rounds)[_ROUNDS // 2]
            read = rounds[-1].bytes_read / 2**20
            show(f"{size:6} processes {rounds[-1].vmas:7} VMAs {seconds:6.1f} s {read:7.1f} MiB")

        memory = int(_GUEST + _PROCESS * size)
        lab.run(lab.prepare(replace(plan, memory=memory), []), work)


def show_slowdown(lab: Lab, plan: Plan, seconds: int, show: Say) -> None:
    """Count what a storm does in a guest while nobody looks, and while audit follows audit."""

    def work(guest: Guest) -> None:
        shell = Shell(guest)
        start_storm(shell, _STORM)

        def rate(command: str | None) -> float:
            begun, before = operations(shell)
            if command is None:
                for one in audit_rounds(shell, _ROUNDS):
                    show(f"  a round of {one.seconds:.1f} s, {one.bytes_read / 2**20:.1f} MiB")
            else:
                shell.run(command, patience=600)
            ended, after = operations(shell)
            return (after - before) / (ended - begun)

        idle = f"sleep {seconds}"
        # A program that keeps one processor busy and reads nothing.
        busy = f"timeout {seconds} sh -c 'while :; do :; done'"
        alone, looked, beside = rate(idle), rate(None), rate(busy)
        alone = (alone + rate(idle)) / 2
        show(
            f"the storm does {alone:.0f} operations a second alone, {looked:.0f} "
            f"({looked / alone:.0%}) beside audit after audit, {beside:.0f} ({beside / alone:.0%}) "
            "beside an endless loop"
        )

    lab.run(lab.prepare(plan, []), work)
