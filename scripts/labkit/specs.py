"""What can be run: the workloads with their parameters, and the fixtures made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .errors import LabError
from .kernels import KERNELS
from .makedumpfile import Filter
from .programs import WORKLOADS

__all__ = ("FIXTURES", "PARAMETERS", "Plan", "fixture", "plan", "word_options")

#: The parameters of each workload, with what they are when nobody says otherwise.
PARAMETERS: dict[str, dict[str, int]] = {
    "forktree": {"depth": 4, "fan": 3, "slots": 6, "pages": 6, "percent": 40},
    "forkchain": {"chains": 8, "length": 12, "slots": 6, "pages": 4, "percent": 50},
    "vmaops": {"processes": 10, "operations": 120, "pages": 64, "guards": 0},
    "mixed": {},
    "special": {},
    "guards": {},
    "pages": {"pages": 32, "sharing": 3},
    "swap": {"pages": 16},
    "many": {"children": 1000, "pages": 1000},
    "large": {"children": 61, "grandchildren": 23, "pages": 400, "written": 100},
    "storm": {
        "processes": 24,
        "threads": 2,
        "pages": 160,
        "children": 100,
        "ksm": 0,
        "quiet": 0,
        "nice": 0,
        "swap": 0,
    },
    "locks": {"depth": 10, "members": 6, "vmas": 30, "tries": 200},
    "faults": {"talk": 0, "only": 0, "nth": 0, "row": 0, "every": 1},
}


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a guest does."""

    name: str
    kernel: str
    workload: str
    parameters: Mapping[str, int] = field(default_factory=dict)
    seed: int = 1
    #: Also take anonymous kilobytes and VmFlags of each mapping (smaps).
    smaps: bool = False
    #: Also take which anonymous page is where (pagemap), and keep page tables in the snapshot.
    pages: bool = False
    #: Also ask for every mapping of every process (maps): too many in a large guest.
    maps: bool = True
    #: Ask for a word at all: not where nothing comes to rest.
    word: bool = True
    #: Let the allocator give back its spare objects first, so that slabinfo's counts are exact.
    shrink: bool = False
    #: Words for the kernel's command line.
    append: str = ""
    #: Crash the guest, and have makedumpfile write the dump.
    kdump: Filter | None = None
    memory: int = 256
    cpus: int = 2
    #: Modules that the workload needs, besides those that the kernel needs.
    modules: tuple[str, ...] = ()
    #: Further programs for the guest.
    programs: tuple[str, ...] = ()
    #: Run lines that the guest is told (:class:`~.shell.Shell`), with Python and the package in it,
    #: instead of the workload.
    shell: bool = False
    #: In a guest with a shell: have stress-ng as well.
    stress: bool = False

    def arguments(self) -> list[str]:
        """The workload's command line, without its name."""
        return [*(f"{key}={value}" for key, value in self.parameters.items()), f"seed={self.seed}"]

    def with_seed(self, seed: int) -> Plan:
        """The same with another seed."""
        return replace(self, seed=seed)


def plan(name: str, kernel: str, workload: str, words: Sequence[str] = (), **more: object) -> Plan:
    """A plan with the workload's parameters, changed by words such as ``depth=3`` or ``seed=7``."""
    if workload not in WORKLOADS:
        raise LabError(f"No workload is called {workload!r}; there are {', '.join(WORKLOADS)}.")
    parameters = dict(PARAMETERS[workload])
    seed = 1
    for word in words:
        match = re.fullmatch(r"(\w+)=(\d+)", word)
        if match is None or (match.group(1) != "seed" and match.group(1) not in parameters):
            known = ", ".join([*parameters, "seed"])
            raise LabError(
                f"{word!r} is no parameter of {workload}; write NAME=NUMBER with {known}."
            )
        if match.group(1) == "seed":
            seed = int(match.group(2))
        else:
            parameters[match.group(1)] = int(match.group(2))
    made = Plan(
        name=name,
        kernel=kernel,
        workload=workload,
        parameters=parameters,
        seed=seed,
        maps=workload != "large",
        word=workload not in ("storm", "locks"),
        # RAM disks for swap areas.
        modules=("brd",) if workload == "swap" or parameters.get("swap") else (),
    )
    return replace(made, **more)  # type: ignore[arg-type]  # the caller names fields of Plan


def word_options(plan: Plan) -> list[str]:
    """The witness's own arguments for a plan."""
    symbols = KERNELS[plan.kernel].symbols == "guest" and plan.word
    options = {"smaps": plan.smaps, "pages": plan.pages, "shrink": plan.shrink, "symbols": symbols}
    words = [f"{name}=1" for name, wanted in options.items() if wanted]
    words += [f"{name}=0" for name in ("maps", "word") if not getattr(plan, name)]
    return words


# What each workload's word is asked for. KFENCE takes some of the objects out of the ordinary
# slabs, where the kernel has it.
_ASKED: dict[str, dict[str, object]] = {
    "forktree": {"shrink": True},
    "forkchain": {"shrink": True},
    "many": {"shrink": True, "memory": 6144},
    "mixed": {"smaps": True, "append": "kfence.sample_interval=1"},
    "pages": {"smaps": True},
    "special": {"smaps": True},
    "guards": {"smaps": True},
    "vmaops": {"smaps": True},
    "faults": {"smaps": True},
    # Preempted anywhere, where that is a choice.
    "locks": {"append": "preempt=full"},
}

# Kernels by workload; the seed is the place in the list, so that no two are the same.
_CAPTURED = {
    "forktree": ("6.1", "6.12", "5.10", "6.12-rt", "7.2", "6.12-arm64"),
    "forkchain": ("6.1", "6.12", "5.10", "7.3", "7.2", "6.12-rt", "6.12-arm64", "6.1-arm64"),
    "vmaops": ("6.1", "6.12", "5.10", "6.12-rt", "7.2", "7.3", "6.1-arm64"),
    "mixed": ("6.1", "6.12", "7.3", "6.1-arm64"),
    "special": ("5.10", "6.12", "7.3", "6.12-arm64"),
    "pages": ("6.1", "7.2", "7.3", "5.10"),
    "many": ("6.12",),
    "locks": ("6.1", "6.12", "7.3", "6.12-rt", "5.10", "6.12-arm64"),
}

# Dumps by makedumpfile. 1.7.8, the newest, takes some slabs of 7.2 and 7.3 for user pages: there
# those stay in (level 23 is 31 without 8).
_KDUMPED = (
    ("forktree", "6.1", Filter("lzo")),
    ("mixed", "6.12", Filter("zstd")),
    ("vmaops", "7.3", Filter("zlib", level=23)),
)


# With what page tables and folios say, which is no part of other snapshots.
_DEEP = ("6.12", "7.3", "6.12-arm64", "5.10", "6.1", "7.2")

_SWAPPED = ("6.12", "7.3", "6.1", "5.10")

# On kernels of our own.
_OWN: tuple[tuple[str, str, list[str]], ...] = (
    ("vmaops", "7.3-unfaulted", ["guards=25", "processes=8", "pages=32"]),
    ("guards", "7.3-unfaulted", []),
    ("vmaops", "7.3-lazy", ["processes=8", "pages=32"]),
    ("forktree", "7.3-lazy", ["depth=3"]),
    ("forkchain", "7.3-lazy", []),
    ("forktree", "7.3-plain", ["depth=3", "seed=24"]),
)

# Kernels that are preempted in few places, with what makes the best of that.
_WORDS = {("locks", kernel): ["members=0"] for kernel in ("5.10", "6.12-arm64")}


def _fixtures() -> dict[str, Plan]:
    plans = [
        plan(
            f"{workload}-{kernel}",
            kernel,
            workload,
            [f"seed={seed}", *_WORDS.get((workload, kernel), ())],
            **_ASKED[workload],
        )
        for workload, kernels in _CAPTURED.items()
        for seed, kernel in enumerate(kernels, start=1)
    ]
    plans += [
        plan(
            f"deep-pages-{kernel}",
            kernel,
            "pages",
            [f"seed={seed}", "pages=12"],
            smaps=True,
            pages=True,
        )
        for seed, kernel in enumerate(_DEEP, start=21)
    ]
    plans += [
        plan(f"deep-swap-{kernel}", kernel, "swap", [f"seed={seed}"], smaps=True, pages=True)
        for seed, kernel in enumerate(_SWAPPED, start=31)
    ]
    # One in eleven stays of some eleven hundred actors.
    plans.append(
        plan("faults-6.12-faults", "6.12-faults", "faults", ["every=11"], **_ASKED["faults"])
    )
    plans += [
        plan(
            f"kdump-{workload}-{kernel}",
            kernel,
            workload,
            ["seed=11"],
            **_ASKED[workload],
            kdump=how,
        )
        for workload, kernel, how in _KDUMPED
    ]
    plans += [
        plan(
            f"{workload}-{kernel}",
            kernel,
            workload,
            [f"seed={seed}", *words],
            **{**_ASKED[workload], "shrink": True, "memory": 128},
        )
        for seed, (workload, kernel, words) in enumerate(_OWN, start=21)
    ]
    # What the kernel with ANON_VMA_UNFAULTED is compared with: which VMAs have pages matters.
    plans.append(
        plan(
            "guards-7.3-plain",
            "7.3-plain",
            "guards",
            ["seed=22"],
            **{**_ASKED["guards"], "pages": True, "shrink": True, "memory": 128},
        )
    )
    # In which a reference too many is taken.
    plans.append(
        plan(
            "wrong-forkchain-7.3-lazy-posted",
            "7.3-lazy-posted",
            "forkchain",
            ["seed=28"],
            **{**_ASKED["forkchain"], "memory": 128},
        )
    )
    plans.append(
        plan(
            "folios-forktree-7.3-lazy",
            "7.3-lazy",
            "forktree",
            ["depth=2", "seed=29"],
            **{**_ASKED["forktree"], "memory": 128, "smaps": True, "pages": True},
        )
    )
    return {plan.name: plan for plan in plans}


#: The fixtures, by name.
FIXTURES = _fixtures()


def fixture(name: str) -> Plan:
    """The fixture of this name, or a LabError that lists the names."""
    try:
        return FIXTURES[name]
    except KeyError:
        raise LabError(f"No fixture is called {name!r}; there are {', '.join(FIXTURES)}.") from None
