"""What only a machine with cgroup v2 can show; run inside the virtual machine by test_cgroup2.py.

Delegation: who may make groups, and where the agent goes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
CLONE = Path(__file__).resolve().parents[2]
NOBODY = 65_534

# Says which way was found and in which group it then is itself, and leaves nothing.
DETECT = (
    "import os, sys\n"
    "from agent.enforce import detect\n"  # before: the user may not be able to read the files
    "if user := int(sys.argv[1]): os.setgroups([]); os.setgid(user); os.setuid(user)\n"
    "found = detect('delegated')\n"
    "print(found.enforcement.name, open('/proc/self/cgroup').read().split('::')[1].strip())\n"
    "print(found.refused.get('cgroup2', ''))\n"
    "if found.enforcement.name != 'watchdog':\n"
    "    group = found.enforcement.prepare()\n"
    "    found.enforcement.set_limit(group, 50 << 20)\n"
    "    print(group.join_paths[0])\n"
    "    found.enforcement.remove(group)\n"
    "found.enforcement.close()\n"
)


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
    script = f'echo 0 > "{path}/cgroup.procs"; exec "$@"'
    command = ["sh", "-c", script, "sh", sys.executable, "-c", DETECT, str(user)]
    ended = subprocess.run(command, check=True, cwd=CLONE, stdout=subprocess.PIPE, text=True)
    return ended.stdout.splitlines()


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
