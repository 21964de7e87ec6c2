"""Real processes in operation: reloads, what systemd is told, backups, the operators' page."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.conftest import MakeCluster
from support.cluster import Cluster, Daemon, free_port

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"
RULES = "RULES = [{{'expression': '{}', 'alert': '{}'}}]\n"


def rule_names(cluster: Cluster) -> list[str]:
    return [rule["name"] for rule in cluster.mass("rules", "list", "-o", "json").json]


def alert_states(cluster: Cluster) -> dict[str, str]:
    alerts = cluster.mass("alert", "list", "-o", "json").json
    return {alert["name"]: alert["state"] for alert in alerts}


def reload(cluster: Cluster, daemon: Daemon) -> str:
    """Send SIGHUP and return the line that the log then has."""
    before = len(daemon.log())
    os.kill(daemon.pid, signal.SIGHUP)

    def line() -> str:
        written = daemon.log()[before:]
        found = re.search(r"reload(ed|\s+refused).*\n", written)
        return found[0].strip() if found else ""

    return cluster.until(line, f"{daemon.name} says what came of SIGHUP")


def test_reload_takes_rules_and_settings_or_changes_nothing(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    rules, settings = tmp_path / "rules.py", tmp_path / "controller.toml"
    rules.write_text(RULES.format("mem_percent > 0", "Any"))
    settings.write_text('rules = ["rules.py"]\n')
    cluster = make_cluster("--config", str(settings))
    cluster.start_controller()
    cluster.start_agent()
    cluster.wait_ready()
    cluster.until(lambda: alert_states(cluster) == {"Any": "FIRING"}, "the first rule fires")

    rules.write_text(RULES.format("mem_total > 0", "Other"))
    settings.write_text('rules = ["rules.py"]\nhistory_age = "1d"\nsample_interval = "200ms"\n')
    assert reload(cluster, cluster.controller) == (
        "reloaded changed=history_age,sample_interval"
        " rules=1 rules_added=1 rules_removed=1 rules_changed=0"
    )
    assert rule_names(cluster) == ["Other"]
    cluster.until(
        lambda: alert_states(cluster) == {"Any": "RESOLVED", "Other": "FIRING"},
        "alerts follow the rules",
    )

    rules.write_text(RULES.format("mem_totl > 0", "Wrong"))
    settings.write_text('rules = ["rules.py"]\nhistory_age = "2d"\n')
    refused = reload(cluster, cluster.controller)
    assert refused.startswith(f"reload refused, nothing was changed: {rules}:1: ")
    rules.write_text(RULES.format('max(disk_percent, "1m") > 0', "Window"))
    assert "no history of disk_percent is kept" in reload(cluster, cluster.controller)
    settings.write_text('rules = ["rules.py"]\nnodes_max = 5\nwebhook = "http://127.0.0.1:9/"\n')
    assert reload(cluster, cluster.controller) == (
        "reload refused, nothing was changed:"
        " nodes_max cannot change while the controller runs: it needs a restart"
    )
    settings.write_text("rules = \n")
    assert f"nothing was changed: {settings}: " in reload(cluster, cluster.controller)
    assert rule_names(cluster) == ["Other"]
    # What was refused was not taken over by halves: it still differs.
    rules.write_text(RULES.format("mem_total > 0", "Other"))
    settings.write_text('rules = ["rules.py"]\nhistory_age = "2d"\nsample_interval = "200ms"\n')
    assert "changed=history_age rules=1" in reload(cluster, cluster.controller)
    assert cluster.run("true").exit_code == 0


def test_reload_carries_alerts_to_another_webhook(
    make_cluster: MakeCluster, tmp_path: Path, receiver: tuple[str, Callable[[], bytes]]
) -> None:
    address, received = receiver
    rules, settings = tmp_path / "rules.py", tmp_path / "controller.toml"
    rules.write_text(RULES.format("mem_percent < 0", "Never"))
    settings.write_text(f"rules = [{str(rules)!r}]\n")
    cluster = make_cluster("--config", str(settings))
    cluster.start_controller()
    cluster.start_agent()
    cluster.wait_ready()
    settings.write_text(f"rules = [{str(rules)!r}]\nwebhook = 'http://{address}/'\n")
    rules.write_text(RULES.format("mem_percent > 0", "Any"))
    assert "changed=webhook" in reload(cluster, cluster.controller)
    assert b'"alertname": "Any"' in received()


@pytest.fixture
def receiver() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """An address that takes one POST, and a function that waits for its text."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def received() -> bytes:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(20)
                text = b""
                while b'"generatorURL"' not in text:
                    text += connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return text

        yield f"127.0.0.1:{listening.getsockname()[1]}", received


def test_agent_reloads_its_sampling_and_nothing_else(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    settings = tmp_path / "agent.toml"
    settings.write_text('sample = "1s"\n')
    cluster = make_cluster()
    cluster.start_controller()
    agent = cluster.start_agent("node-1", "--config", str(settings))
    cluster.wait_ready()
    settings.write_text('sample = "100ms"\n')
    assert reload(cluster, agent) == "reloaded sample_interval_ns=100000000"
    settings.write_text('sample = "2s"\nmemory = "1GiB"\n')
    assert reload(cluster, agent) == (
        "reload refused, nothing was changed:"
        " memory_capacity_bytes cannot change while the agent runs: it needs a restart"
    )
    settings.write_text('sampel = "2s"\n')
    assert "unknown key 'sampel' - did you mean 'sample'?" in reload(cluster, agent)
    assert cluster.run("true").exit_code == 0


class Manager:
    """A service manager: the socket and what came on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(20)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a service knows it."""
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": "200000"}

    def wait_for(self, first_line: str) -> list[str]:
        """Return the first message that begins so; others are passed over."""
        while True:
            lines = self.socket.recv(4_096).decode().splitlines()
            if lines[0] == first_line:
                return lines


def test_services_tell_systemd_and_their_tasks_do_not(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster()
    of_controller, of_agent = Manager(tmp_path / "c"), Manager(tmp_path / "a")
    cluster.start_controller(**of_controller.environment())
    assert of_controller.wait_for("READY=1") == [
        "READY=1",
        f"STATUS=serving on {cluster.address}",
    ]
    agent = cluster.start_agent()
    agent.kill()
    agent.start(STATE_DIRECTORY=str(tmp_path), **of_agent.environment())
    of_agent.wait_for("READY=1")
    cluster.wait_ready()
    for manager, daemon in ((of_controller, cluster.controller), (of_agent, agent)):
        manager.wait_for("WATCHDOG=1")
        os.kill(daemon.pid, signal.SIGHUP)
        assert manager.wait_for("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        assert manager.wait_for("READY=1")[1].startswith("STATUS=reloaded ")
    task_id = cluster.submit_one("env")
    cluster.wait_ended([task_id])
    output, _ = cluster.output(task_id)
    names = {line.partition(b"=")[0] for line in output.splitlines()}
    assert b"MASS_TASK_ID" in names
    assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID", b"STATE_DIRECTORY"}
    for manager, daemon in ((of_agent, agent), (of_controller, cluster.controller)):
        assert daemon.terminate() == 0
        manager.wait_for("STOPPING=1")
        manager.socket.close()


def test_backup_of_a_busy_controller_can_be_restored_and_served(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster()
    cluster.start_controller()
    cluster.start_agent()
    cluster.wait_ready()
    cluster.run("true", name="first")
    waiting = cluster.submit("sleep", "60", count=200, name="waiting", cpus=1.0)
    file = tmp_path / "copy.db"
    done = cluster.mass("db", "backup", str(file), "--data", str(cluster.data))
    assert done.code == 0, done.err
    later = cluster.submit_one("true", name="later")
    busy = cluster.mass("db", "restore", str(file), "--data", str(cluster.data), "--force")
    assert busy.code == 1
    assert f"is in use by process {cluster.controller.pid}" in busy.err
    assert cluster.controller.terminate() == 0
    done = cluster.mass("db", "restore", str(file), "--data", str(cluster.data), "--force")
    assert done.code == 0, done.err
    cluster.start_controller()
    cluster.wait_ready()
    names = [cluster.client.task(task_id).spec.name for task_id in ("1", waiting[-1])]
    assert names == ["first", "waiting"]
    assert cluster.mass("task", "show", later).code == 3
    cluster.client.cancel(waiting, grace_ns=0)
    assert int(cluster.submit_one("true")) == int(waiting[-1]) + 1_000_001


def blocks(kind: str) -> list[str]:
    """Return the operators' page's blocks of a kind."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, kind
    return found


def test_commands_of_the_operators_page_work_as_they_stand(tmp_path: Path) -> None:
    ports = {"7461": str(free_port()), "7462": str(free_port())}

    def here(text: str) -> str:
        """Return a text with this test's folders and ports in place of the machine's."""
        text = re.sub(r"/(?=(?:etc|var/lib|var/backups)(?:/mass))", f"{tmp_path}/", text)
        return re.sub("746[12]", lambda match: ports[match[0]], text)

    for folder in ("etc/mass", "var/lib/mass", "var/backups", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (*blocks("toml"), *blocks("yaml")):
        name = file.splitlines()[0].removeprefix("# /")
        (tmp_path / name).write_text(here(file))
    for name, module in (("mass", "controller.cli"), ("mass-agent", "agent.main")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        script.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MASS_")}
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    environment["MASS_HTTP"] = f"127.0.0.1:{ports['7462']}"  # the page leaves it at its default
    commands = "\n".join(blocks("sh"))
    done = subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", here(commands)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "controller.toml: 1 rule, a pool of " in done.stdout
    assert 'history_age = "10d"' in done.stdout
    assert "SERVING\n" in done.stdout
    assert "Type=notify" in done.stdout
    assert "INFO mass.controller reloaded changed=nothing rules=1" in done.stderr
    assert "mass-replaced-1.db" in done.stdout
    assert "_mass_completion" in (tmp_path / "etc/mass/completion.bash").read_text()
