"""Scopes of systemd: what is asked of it, with a program in the place of `busctl`.

None of this has run under a real systemd: it is the words of the call that are tested.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import agent.scope
from agent.group import EnforcementError
from agent.hierarchy import Hierarchy
from agent.scope import Scope, call, enter, unit_name

UNIT = "mass-n1-5.scope"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a busctl that writes down what it is asked in the place of systemd's."""
    said = tmp_path / "asked"
    program = tmp_path / "busctl"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(agent.scope, "BOOTED", tmp_path)
    monkeypatch.setattr(agent.scope, "MOVE_SECONDS_MAX", 0.1)
    return said


def found_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy = Hierarchy(Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup") / name)
    monkeypatch.setattr(agent.scope, "find_hierarchy", lambda _: hierarchy)


def test_scope_is_asked_for_this_process_and_delegated(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_in(UNIT, monkeypatch)
    enter(UNIT)
    words = asked.read_text().splitlines()
    assert words[0] == ("--system" if os.geteuid() == 0 else "--user")
    assert words[1:6] == [
        "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager", "StartTransientUnit",
    ]  # fmt: skip
    assert words[6:] == [
        "ssa(sv)a(sa(sv))", UNIT, "fail", "3",
        "Description", "s", "MASS agent and its tasks",
        "Delegate", "b", "true",
        "PIDs", "au", "1", str(os.getpid()),
        "0",
    ]  # fmt: skip


def test_user_asks_the_users_own_manager() -> None:
    assert call(UNIT, 5, user=True)[:3] == ["busctl", "--user", "call"]
    assert call(UNIT, 5, user=False)[:3] == ["busctl", "--system", "call"]


def test_name_of_a_scope_holds_only_what_systemd_takes() -> None:
    assert unit_name("rack 1/node-2", 5) == "mass-rack_1_node_2-5.scope"


def test_process_that_is_never_moved_is_an_error_in_words(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_in("user.slice/session-3.scope", monkeypatch)
    with pytest.raises(EnforcementError, match=f"not moved into {UNIT} within"):
        enter(UNIT)


def test_refusal_of_systemd_is_told(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_in("user.slice", monkeypatch)
    asked.with_name("busctl").write_text("#!/bin/sh\necho 'Access denied' >&2; exit 1\n")
    with pytest.raises(EnforcementError, match=f"systemd refused {UNIT}: Access denied"):
        enter(UNIT)


def test_scope_is_refused_where_systemd_is_not_pid_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.scope, "BOOTED", tmp_path / "not-there")
    with pytest.raises(EnforcementError, match="PID 1 is not systemd"):
        Scope.probe("n1")


def test_scope_is_not_made_below_a_given_group(tmp_path: Path) -> None:
    with pytest.raises(EnforcementError, match="not below a given group"):
        Scope.probe("n1", tmp_path)
