"""What can be run: the workloads with their parameters, and the fixtures made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .errors import LabError
from .kernels import KERNELS
from .programs import WORKLOADS

__all__ = ("FIXTURES", "PARAMETERS", "Plan", "fixture", "plan", "word_options")

#: The parameters of each workload, with what they are when nobody says otherwise.
PARAMETERS: dict[str, dict[str, int]] = {
    "forktree": {"depth": 4, "fan": 3, "slots": 6, "pages": 6, "percent": 40},
    "forkchain": {"chains": 8, "length": 12, "slots": 6, "pages": 4, "percent": 50},
    "vmaops": {"processes": 10, "operations": 120, "pages": 64},
    "mixed": {},
    "special": {},
    "pages": {"pages": 32},
    "many": {"children": 1000, "pages": 1000},
    "large": {"children": 61, "grandchildren": 23, "pages": 400, "written": 100},
    "storm": {"processes": 24, "threads": 2, "pages": 160},
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
    #: Also ask for every mapping of every process (maps): too many in a large guest.
    maps: bool = True
    #: Let the allocator give back its spare objects first, so that slabinfo's counts are exact.
    shrink: bool = False
    #: Words for the kernel's command line.
    append: str = ""
    memory: int = 256
    cpus: int = 2

    def arguments(self) -> list[str]:
        """The workload's command line, without its name."""
        return [*(f"{key}={value}" for key, value in self.parameters.items()), f"seed={self.seed}"]


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
    )
    return replace(made, **more)  # type: ignore[arg-type]  # the caller names fields of Plan


def word_options(plan: Plan) -> list[str]:
    """The witness's own arguments for a plan."""
    symbols = KERNELS[plan.kernel].symbols == "guest"
    options = {"smaps": plan.smaps, "shrink": plan.shrink, "symbols": symbols}
    words = [f"{name}=1" for name, wanted in options.items() if wanted]
    return words if plan.maps else [*words, "maps=0"]


# Both kernels run the same workloads, with other seeds, so that the pair is not the same twice.
# KFENCE takes some of the objects out of the ordinary slabs, where the kernel has it.
def _fixtures() -> dict[str, Plan]:
    plans = []
    for number, kernel in enumerate(KERNELS, start=1):
        plans += [
            plan(f"forktree-{kernel}", kernel, "forktree", [f"seed={number}"], shrink=True),
            plan(f"forkchain-{kernel}", kernel, "forkchain", [f"seed={number}"], shrink=True),
            plan(f"vmaops-{kernel}", kernel, "vmaops", [f"seed={number}"], smaps=True),
            plan(
                f"mixed-{kernel}",
                kernel,
                "mixed",
                [f"seed={number}"],
                smaps=True,
                append="kfence.sample_interval=10",
            ),
        ]
    return {plan.name: plan for plan in plans}


#: The fixtures, by name.
FIXTURES = _fixtures()


def fixture(name: str) -> Plan:
    """The fixture of this name, or a LabError that lists the names."""
    try:
        return FIXTURES[name]
    except KeyError:
        raise LabError(f"No fixture is called {name!r}; there are {', '.join(FIXTURES)}.") from None
