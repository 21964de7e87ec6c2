"""Children of `mass dev`: ports in use, deaths, ends; with small programs in place of the real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from controller.cli import children
from controller.cli.address import Address
from controller.cli.children import Child, ChildDied, StopSignals
from controller.cli.dev import check_port_is_free, host_name
from controller.core.errors import MassError


def child(tmp_path: Path, code: str) -> Child:
    return Child("agent", [sys.executable, "-c", code], tmp_path / "agent.log")


def test_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MassError) as caught:
            check_port_is_free(Address("127.0.0.1", port), "--listen")
    assert caught.value.message == (
        f"port {port} of 127.0.0.1 cannot be used (Address already in use); end who has it, "
        "or choose another with --listen"
    )
    check_port_is_free(Address("127.0.0.1", port), "--listen")


def test_dead_child_shows_the_end_of_its_log(tmp_path: Path) -> None:
    dying = child(tmp_path, "for n in range(20): print('line', n)\nraise SystemExit(3)")
    dying.wait(StopSignals())
    with pytest.raises(ChildDied) as caught:
        dying.check()
    first, *rest = caught.value.message.splitlines()
    assert first == f"the agent ended with code 3; the end of its log {tmp_path / 'agent.log'}:"
    assert rest == [f"  line {number}" for number in range(10, 20)]


def test_killed_child_names_the_signal_and_an_empty_log(tmp_path: Path) -> None:
    dying = child(tmp_path, "import os; os.kill(os.getpid(), 9)")
    dying.wait(StopSignals())
    with pytest.raises(ChildDied, match=r"was ended by signal 9; .*\n  \(it is empty\)"):
        dying.check()


def test_living_child_is_ended_by_asking(tmp_path: Path) -> None:
    living = child(tmp_path, "import time; time.sleep(60)")
    living.check()
    assert os.getpgid(living.pid) == living.pid, "Ctrl-C in the terminal must not reach it"
    living.terminate()
    assert living.wait(StopSignals())
    with pytest.raises(ChildDied, match="signal 15"):
        living.check()


def test_deaf_child_is_killed_when_asked_for_the_second_time(tmp_path: Path) -> None:
    deaf = child(
        tmp_path,
        "import signal, time; signal.signal(15, signal.SIG_IGN)\nprint('deaf'); time.sleep(60)",
    )
    while (tmp_path / "agent.log").stat().st_size == 0:
        deaf.check()
    deaf.terminate()
    stop = StopSignals()
    stop.ask()
    stop.ask()
    assert not deaf.wait(stop)
    with pytest.raises(ChildDied, match="signal 9"):
        deaf.check()


def test_log_is_added_to_until_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "agent.log"
    log.write_text("before\n")
    child(tmp_path, "print('one')").wait(StopSignals())
    assert log.read_text() == "before\none\n"
    monkeypatch.setattr(children, "LOG_BYTES_MAX", 5)
    child(tmp_path, "print('two')").wait(StopSignals())
    assert log.read_text() == "two\n"


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.e2e
def test_dev_runs_a_task_and_leaves_nothing_behind(tmp_path: Path) -> None:
    listen, http = (f"127.0.0.1:{unused_port()}" for _ in range(2))
    mass = [sys.executable, "-m", "controller.cli"]
    data = tmp_path / "data"
    words = [*mass, "dev", "--listen", listen, "--http", http, "--data", str(data), "--name", "n1"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line == "mass: both are ready; Ctrl-C ends them\n":
                break
        run = [*mass, "run", "-q", "--controller", listen, "--mem", "64MiB", "--"]
        command = ["sh", "-c", "echo hello; echo oh >&2; exit 7"]
        done = subprocess.run(
            [*run, *command], capture_output=True, text=True, check=False, timeout=30
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, "hello\n", "oh\n")
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("task 1 sh FAILED on n1") for line in lines)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
    left = subprocess.run(["pgrep", "-f", str(data)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_signals_are_counted_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignals()
    assert not stop.wait(0)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    assert stop.count == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("host", "name"), [("box.lab.org", "box"), ("a b", "local"), ("", "local")]
)
def test_node_is_named_for_the_host(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert host_name() == name
