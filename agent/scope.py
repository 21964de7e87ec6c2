"""Holds tasks to their memory in a scope that systemd makes for the agent.

Owns asking systemd for it. The rule kept: groups are systemd's to give where it is PID 1, so an
agent that shares its group with others - started in a login session, say - asks for a scope of
its own with Delegate=yes, is moved into it, and then does there what it does with cgroup v2.

It is asked over D-Bus by `busctl`: as root the system's manager, else the user's, which needs a
session of that user (XDG_RUNTIME_DIR). systemd removes the scope when the agent has ended.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

from agent.cgroup2 import Cgroup2
from agent.group import EnforcementError
from agent.hierarchy import UNIFIED, find_hierarchy

BOOTED = Path("/run/systemd/system")  # there exactly where systemd is PID 1
CALL_SECONDS_MAX = 10.0
MOVE_SECONDS_MAX = 5.0


class Scope(Cgroup2):
    """Enforcement by the kernel; see `agent.enforce.Enforcement` for the contract."""

    name = "scope"

    @classmethod
    def probe(cls, node_name: str, parent: Path | None = None) -> Self:
        """Return it when systemd has given this process a scope in which groups can be made.

        Raises:
            EnforcementError: with what failed, in words; systemd may have made the scope.
        """
        if parent is not None:
            raise EnforcementError("a scope is systemd's to place, not below a given group")
        enter(unit_name(node_name, os.getpid()))
        return super().probe(node_name)


def unit_name(node_name: str, pid: int) -> str:
    """Return the scope's name; what systemd does not take in names is replaced."""
    return f"mass-{re.sub(r'[^A-Za-z0-9:_.]', '_', node_name)}-{pid}.scope"


def call(unit: str, pid: int, *, user: bool) -> list[str]:
    """Return the command that asks for the scope."""
    manager = "org.freedesktop.systemd1"
    properties = [
        ("Description", "s", "MASS agent and its tasks"),
        ("Delegate", "b", "true"),
        ("PIDs", "au", "1", str(pid)),
    ]
    return [
        *("busctl", "--user" if user else "--system", "call"),
        *(manager, "/org/freedesktop/systemd1", f"{manager}.Manager", "StartTransientUnit"),
        *("ssa(sv)a(sa(sv))", unit, "fail"),
        *(str(len(properties)), *(word for words in properties for word in words)),
        "0",
    ]


def enter(unit: str) -> None:
    """Have systemd move this process into a new scope of its own.

    Raises:
        EnforcementError: there is no systemd to ask, or it refused, or the move did not happen.
    """
    if not BOOTED.is_dir():
        raise EnforcementError("PID 1 is not systemd")
    if shutil.which("busctl") is None:
        raise EnforcementError("busctl, which asks systemd, is missing")
    find_hierarchy(UNIFIED)
    command = call(unit, os.getpid(), user=os.geteuid() != 0)
    try:
        asked = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=CALL_SECONDS_MAX
        )
    except subprocess.TimeoutExpired as error:
        raise EnforcementError(f"systemd did not answer in {CALL_SECONDS_MAX:g} s") from error
    if asked.returncode != 0:
        raise EnforcementError(f"systemd refused {unit}: {asked.stderr.strip()}")
    deadline = time.monotonic() + MOVE_SECONDS_MAX
    while find_hierarchy(UNIFIED).own.name != unit:  # its answer comes before the move
        if time.monotonic() > deadline:
            raise EnforcementError(f"not moved into {unit} within {MOVE_SECONDS_MAX:g} s")
        time.sleep(0.01)
