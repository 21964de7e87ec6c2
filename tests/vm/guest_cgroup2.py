"""What only a machine with cgroup v2 can show; run inside the virtual machine by test_cgroup2.py.

Delegation: who may make groups, and where the agent goes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.enforce import detect

ROOT = Path("/sys/fs/cgroup")
NOBODY = 65_534


def detect_here(user: int) -> list[str]:
    """Return the way and the group we are in then, why not v2, and a task's group; leave none."""
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    found = detect("delegated")
    own = Path("/proc/self/cgroup").read_text().split("::")[1].strip()
    lines = [f"{found.enforcement.name} {own}", found.refused.get("cgroup2", "")]
    if found.enforcement.name != "watchdog":
        group = found.enforcement.prepare()
        found.enforcement.set_limit(group, 50 << 20)
        lines.append(group.join_paths[0])
        found.enforcement.remove(group)
    found.enforcement.close()
    return lines


@pytest.fixture
def service() -> Iterator[Path]:
    """Give a group such as systemd makes for a service with Delegate=yes."""
    (ROOT / "cgroup.subtree_control").write_text("+memory +cpu")
    path = ROOT / "service"
    path.mkdir()
    yield path
    for leaf in [*path.glob("*/"), path]:
        leaf.rmdir()


def delegate(path: Path, user: int) -> None:
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(path / name, user, user)


def detect_in(path: Path, user: int = 0) -> list[str]:
    """Return the same from a process of that user which starts in that group."""
    reader, writer = os.pipe()
    pid = os.fork()  # a new interpreter takes five seconds here
    if pid == 0:
        try:
            (path / "cgroup.procs").write_text("0")
            text = "\n".join(detect_here(user))
        except BaseException as error:
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        lines = told.read().splitlines()
    os.waitpid(pid, 0)
    return lines


def test_agent_alone_in_its_group_moves_into_a_leaf_beside_its_tasks(service: Path) -> None:
    way, refused, group = detect_in(service)
    assert way == "cgroup2 /service/mass-itself"
    assert refused == ""
    assert group.startswith("/sys/fs/cgroup/service/mass-delegated.")


def test_user_to_whom_a_group_is_delegated_needs_no_rights(service: Path) -> None:
    delegate(service, NOBODY)
    way, _, group = detect_in(service, NOBODY)
    assert way == "cgroup2 /service/mass-itself"
    assert group.startswith("/sys/fs/cgroup/service/mass-delegated.")


def test_next_life_in_the_same_leaf_uses_the_same_group(service: Path) -> None:
    (service / "mass-itself").mkdir()
    way, _, group = detect_in(service / "mass-itself")
    assert way == "cgroup2 /service/mass-itself"
    assert group.startswith("/sys/fs/cgroup/service/mass-delegated.")


def test_group_with_others_in_it_is_not_rearranged(service: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        (service / "cgroup.procs").write_text(str(other.pid))
        way, refused = detect_in(service)
        other.kill()
    assert way == "watchdog /service"
    assert "also holds 1 processes that are not the agent's" in refused


def test_user_without_a_delegated_group_gets_the_watchdog(service: Path) -> None:
    way, refused = detect_in(service, NOBODY)
    assert way == "watchdog /service"
    assert "Permission denied" in refused
