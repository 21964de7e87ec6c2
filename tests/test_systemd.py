"""The services under systemd: what they tell it, and the units that start them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mass.systemd import Systemd

import agent.install
from agent.config import SettingRefused
from controller import install


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def test_message_is_one_datagram_of_lines(manager: socket.socket, tmp_path: Path) -> None:
    Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")}).tell("READY=1", "STATUS=serving")
    assert manager.recv(1_000) == b"READY=1\nSTATUS=serving"


def test_abstract_address_is_understood() -> None:
    name = f"mass-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(5)
        Systemd({"NOTIFY_SOCKET": f"@{name}"}).tell_reloading()
        first, second = listening.recv(1_000).decode().splitlines()
    assert first == "RELOADING=1"
    key, _, value = second.partition("=")
    assert (key, value.isdigit()) == ("MONOTONIC_USEC", True)


def test_variables_are_taken_from_those_who_come_after() -> None:
    environment = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "2", "WATCHDOG_PID": "1", "HOME": "/"}
    Systemd(environment)
    assert environment == {"HOME": "/"}


def test_manager_that_is_gone_or_was_never_there_is_no_error(tmp_path: Path) -> None:
    Systemd({}).tell("READY=1")
    Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).tell("READY=1")


def test_manager_that_does_not_read_holds_nobody_up(manager: socket.socket, tmp_path: Path) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for _ in range(2_000):  # far more than a socket's queue holds
        systemd.tell("WATCHDOG=1")
    assert manager.recv(1_000) == b"WATCHDOG=1"


async def test_watchdog_is_pinged_at_half_its_interval(
    manager: socket.socket, tmp_path: Path
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"}
    systemd = Systemd(environment)
    assert systemd.watchdog_s == 0.04
    pinging = asyncio.create_task(systemd.ping())
    loop = asyncio.get_running_loop()
    manager.setblocking(False)
    began_s = loop.time()
    for _ in range(3):
        assert await loop.sock_recv(manager, 1_000) == b"WATCHDOG=1"
    assert loop.time() - began_s >= 0.03
    pinging.cancel()


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "/n"},
        {"WATCHDOG_USEC": "40000"},
        {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "soon"},
    ],
)
async def test_nobody_is_pinged_who_does_not_watch_this_process(
    environment: dict[str, str],
) -> None:
    systemd = Systemd(environment)
    assert systemd.watchdog_s == 0
    await asyncio.wait_for(systemd.ping(), 1)


def unit_texts() -> dict[str, str]:
    """Return the four units by a readable name."""
    return {
        "controller": install.unit_text(False),
        "controller of a user": install.unit_text(True),
        "agent": agent.install.unit_text(False),
        "agent of a user": agent.install.unit_text(True),
    }


@pytest.mark.parametrize("name", unit_texts())
def test_unit_reports_its_readiness_and_is_not_started_again_in_vain(name: str) -> None:
    lines = unit_texts()[name].splitlines()
    wanted = {"Type=notify", "Restart=on-failure", "RestartPreventExitStatus=2"}
    assert wanted <= set(lines)
    assert any(line.startswith("WatchdogSec=") for line in lines)
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    program = start.removeprefix("ExecStart=").split()[0]
    assert os.access(program, os.X_OK), start


@pytest.mark.parametrize("name", ["agent", "agent of a user"])
def test_unit_of_the_agent_leaves_the_tasks_to_it(name: str) -> None:
    lines = set(unit_texts()[name].splitlines())
    wanted = {"Delegate=yes", "KillMode=mixed", "OOMPolicy=continue", "TasksMax=infinity"}
    assert wanted <= lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("manager_flag", ["--system", "--user"])
def test_systemd_finds_no_fault_in_the_units(manager_flag: str, tmp_path: Path) -> None:
    user = manager_flag == "--user"
    files = [tmp_path / install.UNIT, tmp_path / agent.install.UNIT]
    files[0].write_text(install.unit_text(user))
    files[1].write_text(agent.install.unit_text(user))
    done = subprocess.run(
        ["systemd-analyze", manager_flag, "verify", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("/opt/mass/bin/mass", "/opt/mass/bin/mass"),
        ("/opt/my mass/mass", '"/opt/my mass/mass"'),
        ("/opt/100%/$x", "/opt/100%%/$$x"),
        ('/a"b', '"/a\\"b"'),
    ],
)
def test_command_is_written_as_units_have_it(word: str, text: str) -> None:
    assert install.quoted(word) == text


def test_changed_unit_is_left_alone_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "system" / install.UNIT
    assert install.write_unit(path, "one\n", force=False)
    assert not install.write_unit(path, "one\n", force=False)
    path.write_text("changed\n")
    with pytest.raises(install.NotInstalled, match="is there and differs; --force overwrites it"):
        install.write_unit(path, "one\n", force=False)
    assert path.read_text() == "changed\n"
    assert install.write_unit(path, "one\n", force=True)
    assert path.read_text() == "one\n"


def test_agent_installs_its_unit_once_and_leaves_a_changed_one_alone(tmp_path: Path) -> None:
    words = ["--systemd", "--directory", str(tmp_path)]
    path = tmp_path / "mass-agent.service"
    assert agent.install.install(words).splitlines() == [
        f"{path} is written",
        "next: systemctl daemon-reload && systemctl enable --now mass-agent.service",
    ]
    assert agent.install.install(words).startswith(f"{path} is as it was\n")
    assert agent.install.install(["--systemd", "--print"]) == path.read_text()
    path.write_text("changed")
    with pytest.raises(SettingRefused, match="is there and differs; --force overwrites it"):
        agent.install.install(words)
    agent.install.install([*words, "--force", "--user"])
    assert path.read_text() == agent.install.unit_text(True)
    with pytest.raises(SettingRefused, match="say --systemd"):
        agent.install.install([])


def test_unit_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.service"
    with pytest.raises(install.NotInstalled, match=r"x\.service cannot be written: "):
        install.write_unit(path, "one\n", force=False)
    with pytest.raises(SettingRefused, match="cannot be written: "):
        agent.install.install(["--systemd", "--directory", str(tmp_path / "file")])
