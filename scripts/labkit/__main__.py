"""The command line of the lab: ``scripts/lab``."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from . import manifest
from .capture import Lab
from .cost import show_sizes, show_slowdown
from .errors import LabError
from .faults import APPEND, run_faults
from .fixtures import capture_fixture
from .kdump import dump_names, kdump
from .kernels import KERNELS, fetch, fetch_debuginfo, kernel
from .live import live as run_live
from .makedumpfile import COMPRESSIONS, Filter
from .model import run_scripts
from .programs import WORKLOADS
from .specs import FIXTURES, PARAMETERS, Plan, fixture, plan
from .storm import Series
from .storm import storm as run_storm
from .storm import storms as run_storms
from .system import for_packages, require
from .verdict import audited

__all__ = ("main",)

ROOT = Path(__file__).resolve().parents[2]

_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_NEW_DIRECTORY = click.Path(file_okay=False, path_type=Path)


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--accel",
    type=click.Choice(["tcg", "kvm"]),
    default="tcg",
    show_default=True,
    help="How QEMU runs the guest. KVM that fails gives way to TCG.",
)
@click.option(
    "--timeout", type=float, default=180, show_default=True, help="Seconds for a guest to be ready."
)
@click.pass_context
def cli(context: click.Context, accel: str, timeout: float) -> None:
    """Boot Debian kernels in QEMU, run a workload, dump the guest and take its own word for it."""
    context.obj = Lab(ROOT, _say, accelerator=accel, timeout=timeout)


def _describe(plan: Plan) -> str:
    kind = f" ({plan.kdump.command()})" if plan.kdump else ""
    return f"{plan.name:21} {plan.kernel:10} {plan.workload:9} {' '.join(plan.arguments())}{kind}"


@cli.command("list")
def list_command() -> None:
    """List the fixtures, kernels and workloads."""
    click.echo("Fixtures (name, kernel, workload, parameters):")
    for one in FIXTURES.values():
        click.echo(f"  {_describe(one)}")
    click.echo(f"Kernels: {', '.join(KERNELS)}")
    click.echo("Workloads:")
    for name in WORKLOADS:
        words = " ".join(f"{key}={value}" for key, value in PARAMETERS[name].items())
        click.echo(f"  {name:10} {words} seed=1".rstrip())


@cli.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Capture every fixture.")
@click.option("--keep-core", type=_NEW_FILE, help="Keep the full dump here.")
@click.pass_obj
def capture(lab: Lab, name: str | None, everything: bool, keep_core: Path | None) -> None:
    """Capture a fixture from nothing: fixtures/NAME.core.xz and fixtures/NAME.json."""
    if everything == (name is not None):
        raise click.UsageError("Name one fixture, or say --all.")
    if everything and keep_core is not None:
        raise click.UsageError("--keep-core is for one fixture.")
    for one in FIXTURES.values() if name is None else [fixture(name)]:
        capture_fixture(lab, one, keep_core)


@cli.command()
@click.argument("kernel_name", metavar="KERNEL")
@click.argument("workload")
@click.argument("parameters", metavar="[NAME=NUMBER]...", nargs=-1)
@click.option("-o", "--output", type=_NEW_FILE, required=True, help="The core to write.")
@click.option("--smaps", is_flag=True, help="Also take VmFlags and anonymous sizes.")
@click.option("--pages", is_flag=True, help="Also take which anonymous page is where (pagemap).")
@click.option("--shrink", is_flag=True, help="Let the slab caches give back their spare objects.")
@click.option("--append", default="", help="Words for the kernel's command line.")
@click.option("--memory", type=int, default=256, show_default=True, help="MiB of the guest.")
@click.pass_obj
def dump(
    lab: Lab,
    kernel_name: str,
    workload: str,
    parameters: tuple[str, ...],
    output: Path,
    smaps: bool,
    pages: bool,
    shrink: bool,
    append: str,
    memory: int,
) -> None:
    """Dump a guest in full, with its own word for what is there beside it as .json."""
    kernel(kernel_name)
    one = plan(
        output.stem,
        kernel_name,
        workload,
        parameters,
        smaps=smaps,
        pages=pages,
        shrink=shrink,
        append=append,
        memory=memory,
    )
    made = lab.dump(one, output, shlex.join(["scripts/lab", *sys.argv[1:]]))
    target = output.with_suffix(".json")
    manifest.write(made, target)
    _say(f"Wrote {output} and {target}")


@cli.command("kdump")
@click.argument("kernel_name", metavar="KERNEL")
@click.argument("workload")
@click.argument("parameters", metavar="[NAME=NUMBER]...", nargs=-1)
@click.option("-o", "--output", type=_NEW_FILE, required=True, help="The dump to write.")
@click.option(
    "--compression", type=click.Choice(list(COMPRESSIONS)), default="zlib", show_default=True
)
@click.option("--split", type=click.IntRange(1), default=1, help="Write so many files: FILE.1 ...")
@click.option(
    "-d", "--level", type=click.IntRange(0, 31), default=31, show_default=True, help="The filter."
)
@click.option("--smaps", is_flag=True, help="Also take VmFlags and anonymous sizes.")
@click.option("--memory", type=int, default=256, show_default=True, help="MiB for the workload.")
@click.option(
    "--makedumpfile-suite",
    metavar="SUITE",
    help="Take makedumpfile from this Debian suite. [default: one that suits the kernel]",
)
@click.pass_obj
def kdump_command(
    lab: Lab,
    kernel_name: str,
    workload: str,
    parameters: tuple[str, ...],
    output: Path,
    compression: str,
    split: int,
    level: int,
    smaps: bool,
    memory: int,
    makedumpfile_suite: str | None,
) -> None:
    """Crash a guest; makedumpfile in its capture kernel writes the dump."""
    kernel(kernel_name)
    one = plan(output.stem, kernel_name, workload, parameters, smaps=smaps, memory=memory)
    suites = None if makedumpfile_suite is None else (makedumpfile_suite,)
    how = Filter(compression=compression, level=level, parts=split, suites=suites)
    made = kdump(lab, one, how, output, shlex.join(["scripts/lab", *sys.argv[1:]]))
    target = output.with_suffix(".json")
    manifest.write(made, target)
    _say(f"Wrote {', '.join(map(str, dump_names(output, split)))} and {target}")


@cli.command()
@click.argument("kernel_name", metavar="KERNEL")
@click.argument("parameters", metavar="[NAME=NUMBER]...", nargs=-1)
@click.option("--dumps", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "-o",
    "--output",
    type=_NEW_DIRECTORY,
    required=True,
    help="The directory for the cores.",
)
@click.pass_obj
def storm(
    lab: Lab, kernel_name: str, parameters: tuple[str, ...], dumps: int, output: Path
) -> None:
    """Dump a guest that never rests, several times, at random moments."""
    kernel(kernel_name)
    one = plan(f"storm-{kernel_name}", kernel_name, "storm", parameters)
    cores = run_storm(lab, one, dumps, output, shlex.join(["scripts/lab", *sys.argv[1:]]))
    _say(f"Wrote {len(cores)} dumps to {output}")


# The storm that audits are tried on, unless words say otherwise.
_STORM = ("ksm=1", "quiet=6")
# From inside a guest: so that audits come to the end of a round under emulation.
_LIVE_STORM = ("processes=4", "children=2", "threads=1", "pages=32", "nice=19")


@cli.command("storms")
@click.argument("kernel_name", metavar="KERNEL")
@click.argument("parameters", metavar="[NAME=NUMBER]...", nargs=-1)
@click.option(
    "--dumps",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Until there are so many.",
)
@click.option("--a-boot", type=click.IntRange(1), default=20, show_default=True)
@click.option("--again", is_flag=True, help="Begin anew, do not go on.")
@click.option("--memory", type=int, default=224, show_default=True, help="MiB of the guest.")
@click.option("--keep", type=_NEW_DIRECTORY, help="Keep dumps with errors in this directory.")
@click.option("--poke", is_flag=True, help="Also change words, and see whether that is found.")
@click.pass_obj
def storms_command(
    lab: Lab,
    kernel_name: str,
    parameters: tuple[str, ...],
    dumps: int,
    a_boot: int,
    again: bool,
    memory: int,
    keep: Path | None,
    poke: bool,
) -> None:
    """Audit dumps of guests that never rest, taken at random moments, many a boot.

    Goes on where it was, by .lab/storms-KERNEL.json. Exits 0 only if no audit found an error. With
    --poke, one word at a time is changed in each dump: in a family that no operation touches, and
    in one whose lock is held; and each must be found.
    """
    kernel(kernel_name)
    name = f"storms-{kernel_name}"
    path = lab.cache / f"{name}.json"
    if again:
        path.unlink(missing_ok=True)
    one = plan(name, kernel_name, "storm", (*_STORM, *parameters), memory=memory)
    series = Series.load(path)
    run_storms(
        *(lab, one, series, dumps, audited, click.echo),
        a_boot=a_boot,
        keep=keep,
        poke=_poke if poke else None,
    )
    for line in series.summary(name):
        click.echo(line)
    if series.wrong:
        raise LabError(f"In {series.wrong} of {len(series.rows)} dumps an audit was wrong")


def _poke(core: Path, seed: int) -> Iterator[tuple[str, str, bool]]:
    from .aim import open_scene
    from .aim import poke as poke_dump

    for change, found in poke_dump(open_scene(core), seed):
        yield change.family, str(change), bool(found)


@cli.command()
@click.argument("kernel_name", metavar="KERNEL")
@click.argument("parameters", metavar="[NAME=NUMBER]...", nargs=-1)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Until there are so many.",
)
@click.option("--a-boot", type=click.IntRange(1), default=100, show_default=True)
@click.option("--again", is_flag=True, help="Begin anew, do not go on.")
@click.option("--memory", type=int, default=1024, show_default=True, help="MiB of the guest.")
@click.option("--stress", is_flag=True, help="Run stress-ng as well.")
@click.pass_obj
def live(
    lab: Lab,
    kernel_name: str,
    parameters: tuple[str, ...],
    rounds: int,
    a_boot: int,
    again: bool,
    memory: int,
    stress: bool,
) -> None:
    """Have guests audit themselves by /proc/kcore under a storm, round after round.

    Goes on where it was, by .lab/live-KERNEL.json; a guest in which an error is found is dumped to
    .lab/live. Exits 0 only if there is none.
    """
    kernel(kernel_name)
    name = f"live-{kernel_name}"
    path = lab.cache / f"{name}.json"
    if again:
        path.unlink(missing_ok=True)
    words = (*_STORM, *_LIVE_STORM, *parameters)
    one = plan(name, kernel_name, "storm", words, memory=memory, shell=True, stress=stress)
    history = run_live(
        lab, one, path, rounds, click.echo, a_boot=a_boot, evidence=lab.cache / "live"
    )
    for line in history.summary(name):
        click.echo(line)
    if history.errors:
        raise LabError("What was found, or went wrong, is above; --again begins anew")


@cli.command()
@click.argument("kernel_name", metavar="KERNEL")
@click.argument("sizes", metavar="[PROCESSES]...", nargs=-1, type=click.IntRange(1, 20000))
@click.option("--seconds", type=click.IntRange(5), default=60, show_default=True)
@click.pass_obj
def cost(lab: Lab, kernel_name: str, sizes: tuple[int, ...], seconds: int) -> None:
    """Measure what an audit of the running kernel costs in a guest.

    Its time and what it reads, with so many processes; and by how much a storm is slower while
    audit follows audit, counted for so many seconds.
    """
    one = plan(f"cost-{kernel_name}", kernel_name, "storm", memory=1024, shell=True)
    show_sizes(lab, one, sizes or (100, 1000, 10000), click.echo)
    show_slowdown(lab, one, seconds, click.echo)


@cli.command()
@click.argument("kernel_name", metavar="KERNEL")
@click.argument("parameters", metavar="[NAME=NUMBER]...", nargs=-1)
@click.option("--memory", type=int, default=1024, show_default=True, help="MiB of the guest.")
@click.pass_obj
def poke(lab: Lab, kernel_name: str, parameters: tuple[str, ...], memory: int) -> None:
    """Change words of a running guest from outside; who looks must find it within two rounds.

    In a family that no operation touches, while a storm goes on beside it; looked at by -k in the
    guest, and by --qemu and --gdb from outside. Exits 0 only if all of them find all.
    """
    from .poke import poke as run_poke

    kernel(kernel_name)
    words = (*_STORM, *_LIVE_STORM, "ksm=0", *parameters)
    one = plan(f"poke-{kernel_name}", kernel_name, "storm", words, memory=memory, shell=True)
    outcome = run_poke(lab, one, click.echo)
    missed = sum(one.round is None for one in outcome)
    click.echo(f"{len(outcome)} looks, {missed} in vain")
    if missed or not outcome:
        raise LabError("A word that was changed was not found, or is found after it was put back")


@cli.command()
@click.argument("kernel_name", metavar="KERNEL")
@click.option("-o", "--output", type=_NEW_FILE, required=True, help="The snapshot to write.")
@click.option("--memory", type=int, default=1024, show_default=True, help="MiB of the guest.")
@click.pass_obj
def oops(lab: Lab, kernel_name: str, output: Path, memory: int) -> None:
    """Provoke an oops: change a pointer in a running guest, and have the kernel follow it.

    Writes a snapshot of what that leaves, and beside it, as .json, what was changed and what the
    kernel said.
    """
    from .oops import oops as run_oops

    kernel(kernel_name)
    one = plan(f"oops-{kernel_name}", kernel_name, "many", memory=memory, shell=True)
    run_oops(lab, one, output, shlex.join(["scripts/lab", *sys.argv[1:]]))
    _say(f"Wrote {output}")


@cli.command()
@click.argument("kernel_names", metavar="KERNEL...", nargs=-1, required=True)
@click.option("--scripts", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first script.")
@click.option("--operations", type=click.IntRange(3, 400), default=60, show_default=True)
@click.option(
    "--keep",
    type=_NEW_DIRECTORY,
    help="Keep the dumps in this directory.",
)
@click.pass_obj
def model(
    lab: Lab,
    kernel_names: tuple[str, ...],
    scripts: int,
    seed: int,
    operations: int,
    keep: Path | None,
) -> None:
    """Do random scripts in a guest and on the model of its kernel, and compare the two.

    Exits 0 only if the audits are clean and nothing differs. A script that differs is done again,
    alone, with its own --seed and --scripts 1; with fewer --operations it is the same, cut short.
    """
    for name in kernel_names:
        kernel(name)
    wrong = {}
    for name in kernel_names:
        command = shlex.join(["scripts/lab", *sys.argv[1:]])
        wrong[name] = run_scripts(lab, name, scripts, seed, operations, command, keep)
        _say(f"{name}: {scripts - wrong[name]} of {scripts} scripts came out as in the model")
    if any(wrong.values()):
        raise LabError(
            "The model is not the kernel: "
            + ", ".join(f"{name} differs in {count}" for name, count in wrong.items() if count)
        )


@cli.command()
@click.argument("kernel_name", metavar="KERNEL")
@click.pass_obj
def debuginfo(lab: Lab, kernel_name: str) -> None:
    """Fetch the vmlinux with DWARF of a kernel (about 300 MB); print where it is."""
    require(for_packages())
    wanted = kernel(kernel_name)
    _say(f"{kernel_name}: fetching the debug symbols, unless they are there already")
    click.echo(fetch_debuginfo(wanted, lab.cache))


@cli.command()
@click.option("--kernel", "kernel_name", default="6.12-faults", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="At most.")
@click.option("--operation", type=click.IntRange(1), help="Only the one of this number.")
@click.option("--nth", type=click.IntRange(1), help="Only the failure of this allocation of each.")
@click.option("--memory", type=int, default=96, show_default=True, help="MiB of the guest.")
@click.option(
    "--keep",
    type=_NEW_DIRECTORY,
    help="A directory for dumps with which something is wrong.",
)
@click.pass_obj
def faults(
    lab: Lab,
    kernel_name: str,
    steps: int,
    operation: int | None,
    nth: int | None,
    memory: int,
    keep: Path | None,
) -> None:
    """Let each allocation of fork, split, merge and mremap fail, one at a time; audit each state.

    Exits 0 only if every audit is clean, the kernel complains of nothing, and no object is left
    over.
    """
    from .judge import judge

    kernel(kernel_name)
    words = ["talk=1", f"only={operation or 0}", f"nth={nth or 0}"]
    one = plan(
        f"faults-{kernel_name}", kernel_name, "faults", words, memory=memory, cpus=1, append=APPEND
    )
    wrong = run_faults(lab, one, steps, judge, keep, click.echo)
    if wrong:
        raise LabError(f"{wrong} steps or operations left something wrong")


@cli.command()
@click.option(
    "--kernel",
    "kernel_name",
    metavar="BZIMAGE",
    required=True,
    help="The image, or the name of a kernel of the lab.",
)
@click.option(
    "--vmlinux",
    type=str,
    help="Its symbols, for a kernel that has no BTF. [default: the dump's own]",
)
@click.option("--append", default="", help="Words for the kernel's command line.")
@click.option("--memory", type=int, default=256, show_default=True, help="MiB of the guest.")
@click.option(
    "--keep",
    type=_NEW_DIRECTORY,
    help="A directory for dumps with which something is wrong.",
)
@click.pass_obj
def check(
    lab: Lab, kernel_name: str, vmlinux: str | None, append: str, memory: int, keep: Path | None
) -> None:
    """Boot any kernel, run the workloads in it, and audit it after each and between them.

    Exits 0 if all is well, 1 if something is wrong, and 125 if that cannot be told: as 'git bisect
    run' takes it.
    """
    from .check import UNTESTABLE
    from .check import check as run_check
    from .foreign import any_kernel
    from .judge import judge_with

    try:
        chosen = any_kernel(kernel_name, lab.cache)
    except LabError as error:
        click.echo(f"not tested: {error}")
        sys.exit(UNTESTABLE)
    outcome = run_check(
        *(lab, chosen, judge_with(vmlinux), click.echo), append=append, memory=memory, keep=keep
    )
    for line in outcome.left_out:
        click.echo(f"left out: {line}")
    if outcome.untestable is not None:
        click.echo(f"not tested: {outcome.untestable}")
    verdict = {0: "good", 1: "bad"}.get(outcome.code, "not tested")
    click.echo(
        f"{chosen[1].release}: {verdict}; {outcome.steps} audits, {len(outcome.wrong)} wrong"
    )
    sys.exit(outcome.code)


@cli.command()
@click.argument("old", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("set_name", metavar="SET")
def edits(old: Path, new: Path, set_name: str) -> None:
    """Write a set of edits (of scripts/labkit/kernel-edits) from two trees of a kernel's source."""
    from .edits import write_set

    click.echo(write_set(old, new, set_name))


@cli.command("build")
@click.argument("kernel_name", metavar="KERNEL")
@click.pass_obj
def build_command(lab: Lab, kernel_name: str) -> None:
    """Fetch a kernel, or build it if it is one of our own (some ten minutes); print where it is."""
    wanted = kernel(kernel_name)
    require(for_packages())
    _say(f"{kernel_name}: fetching or building, unless it is there already")
    click.echo(fetch(wanted, lab.cache).vmlinuz)


def main() -> None:
    """Run the command line; a LabError becomes its sentence and its exit code."""
    # Ended politely, the lab still takes its QEMU along.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        cli(prog_name="scripts/lab")
    except LabError as error:
        click.echo(f"lab: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
