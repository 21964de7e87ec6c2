"""cgroup v2 on a real kernel: the contract of enforcement and delegation, each test by its name.

The virtual machine is booted once and runs pytest; here each of its results is told. Takes one to
two minutes, since qemu emulates the processor.
"""

from __future__ import annotations

import ast
import functools
import shutil
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.groups import holder_path
from support.machine import Ended, run, why_unavailable

CLONE = Path(__file__).resolve().parents[2]
CONTRACT = CLONE / "tests" / "agent" / "test_enforcement_contract.py"
GUEST = CLONE / "tests" / "vm" / "guest_cgroup2.py"


def names(path: Path) -> list[str]:
    """Return the tests of a file, without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if name.startswith("test_")]


@functools.cache
def results() -> tuple[Ended, dict[str, str]]:
    """Boot the machine, run the tests in it, return what each has to complain, empty if nothing."""
    command = [
        *(
            "env",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
            "MASS_TEST_HOLDER=/run/job/holder",
            sys.executable,
            "-m",
            "pytest",
        ),
        *("-c", "tests/vm/guest.ini", "--junitxml=/run/job/results.xml", "--durations=5"),
        *("-k", "cgroup2", str(CONTRACT), str(GUEST)),
    ]
    with tempfile.TemporaryDirectory(prefix="mass-vm-") as job:
        shutil.copy(holder_path(), Path(job, "holder"))
        ended = run(command, CLONE, Path(job))
        told = Path(job, "results.xml")
        cases = ElementTree.parse(told).getroot().iter("testcase") if told.exists() else ()
        complaints = {
            str(case.get("name")).partition("[")[0]: "\n".join(
                f"{child.tag}: {child.get('message')}\n{child.text}"
                for child in case
                if child.tag in ("failure", "error", "skipped")
            )
            for case in cases
        }
    return ended, complaints


@pytest.mark.parametrize("name", [*names(CONTRACT), *names(GUEST)])
def test_in_the_machine(name: str) -> None:
    if reason := why_unavailable():
        pytest.skip(reason)
    ended, complaints = results()
    assert name in complaints, f"it was not run, pytest ended with {ended.status}:\n{ended.output}"
    assert not complaints[name], complaints[name]
