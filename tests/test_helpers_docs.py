"""The examples in the helpers' documentation are run, over a capture."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from anonvma_inspect import helpers
from anonvma_inspect.helpers import for_each_vma_avc, vma_anon_vma

from .captures import KERNELS, Capture
from .programs import forked_vma, program, vma_at, with_words

GUIDE = Path(__file__).parent.parent / "docs" / "helpers.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

pytestmark = pytest.mark.parametrize("capture", KERNELS, ids=lambda capture: capture.name)


def names(capture: Capture) -> dict[str, Any]:
    """What the examples take for granted."""
    prog = program(capture)
    vma = vma_at(prog, forked_vma(capture))
    entry = next(iter(for_each_vma_avc(vma))).same_vma
    broken = with_words(capture, {entry.next.address_of_().value_(): entry.address_of_().value_()})
    return {
        **{name: getattr(helpers, name) for name in helpers.__all__},
        "path": str(capture.core),
        "prog": prog,
        "vma": vma,
        "anon_vma": vma_anon_vma(vma),
        "broken_vma": vma_at(broken, vma.value_()),
    }


def run(test: doctest.DocTest) -> None:
    output: list[str] = []
    results = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=output.append)
    assert not results.failed, "".join(output)


def test_docstrings(capture: Capture) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    documented = set()
    for module in pkgutil.iter_modules(helpers.__path__, f"{helpers.__name__}."):
        for test in finder.find(importlib.import_module(module.name), extraglobs=names(capture)):
            if test.examples:
                run(test)
                documented.add(test.name.rpartition(".")[2])
    functions = {name for name in helpers.__all__ if name[0].islower()}
    assert documented == functions, "each helper has an example"


def test_guide(capture: Capture) -> None:
    if capture.manifest["kernel"]["config"]["CONFIG_DEBUG_VM"] == "y":
        pytest.skip("structs of a kernel with its own checks have more fields than the guide shows")
    blocks = re.findall(r"^```pycon\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    example = "\n".join(blocks)
    run(doctest.DocTestParser().get_doctest(example, names(capture), GUIDE.name, str(GUIDE), 0))
