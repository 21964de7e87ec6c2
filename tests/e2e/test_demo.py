"""The demonstration, whole: what it tells is what has happened, and nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import watchdog_agent

pytestmark = pytest.mark.e2e

SECONDS_MAX = 60.0
SENTENCES = (
    r"node demo is ready",
    r"node demo has .* of which MASS can promise .* limits are enforced by ",
    r"submitted: 'prepare', an array of 6 tasks, 2 at once",
    r"task 1_1 \(prepare\) runs on demo",
    r"task 1_6 \(prepare\) ended SUCCEEDED on demo",
    r"task 8 \(combine\) runs on demo",
    r"task 8 \(combine\) ended SUCCEEDED on demo",
    r"the controller has read its rules again: reloaded .* rules_added=1",
    r"a program that is no task \(process \d+\) takes ",
    r"alert ForeignMemory fires on node demo: programs that are no tasks use ",
    r"mass task why 10 says: asks .* the largest promise is .* foreign_used ",
    r"that was all; controller and agent end",
    r"What was told, and what was seen:",
)
WATCHDOG = """\
import sys
from controller.cli.demo import run_demo
as_told = run_demo(lambda line: print(line, flush=True), print, agent_entry=(sys.argv[1],))
sys.exit(not as_told)
"""
HOLD = """\
import sys, time
block = bytearray(int(sys.argv[1]))
for at in range(0, len(block), 4096): block[at] = 1
print("holding", flush=True)
time.sleep(60)
"""


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a demonstration whose temporary directory is this one."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(directory)},
    )


def left_over(directory: Path) -> list[str]:
    """Return the command lines of processes that belong to a demonstration in this directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if str(directory) in line:
            found.append(line)
    return found


def check_story(out: str) -> None:
    """Assert that the sentences are there in their order."""
    lines = iter(out.splitlines())
    for sentence in SENTENCES:
        assert any(re.search(sentence, line) for line in lines), f"{sentence} is missing in\n{out}"
    # Other programs of this machine may free enough for it before the one of the story ends.
    for sentence in (r"that program has ended", r"task 10 \(large\) ended SUCCEEDED on demo"):
        assert re.search(sentence, out), out
    held = re.findall(r"^(ok|NOT) ", out, re.MULTILINE)
    assert held == ["ok"] * 6, out
    assert re.search(r"ended OUT_OF_MEMORY on demo: outgrew its memory limit", out), out


Entry = Callable[[], tuple[str, ...]]


@pytest.mark.parametrize(
    "entry",
    [
        lambda: ("-m", "controller.cli", "demo"),
        lambda: ("-c", WATCHDOG, str(watchdog_agent.__file__)),
    ],
    ids=["best enforcement", "watchdog"],
)
def test_demonstration_tells_its_story_and_cleans_up(tmp_path: Path, entry: Entry) -> None:
    began = time.monotonic()
    with start(tmp_path, *entry()) as process:
        out, _ = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 0, out
    assert time.monotonic() - began < SECONDS_MAX
    check_story(out)
    if "-c" in entry():
        assert "looks four times a second (the watchdog)" in out
    assert list(tmp_path.iterdir()) == []
    assert left_over(tmp_path) == []


def test_interrupted_demonstration_ends_what_it_started(tmp_path: Path) -> None:
    with start(tmp_path, "-m", "controller.cli", "demo") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "runs on demo" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert left_over(tmp_path) == []


def test_demonstration_tries_again_when_others_spoil_its_measure(tmp_path: Path) -> None:
    ballast = [sys.executable, "-c", HOLD, str(1 << 30)]
    with (
        subprocess.Popen(ballast, stdout=subprocess.PIPE) as other,
        start(tmp_path, "-m", "controller.cli", "demo") as process,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == b"holding\n"
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "a new rule fires" in line:
                other.kill()
        assert process.wait(SECONDS_MAX) == 0, "".join(lines)
    out = "".join(lines)
    assert out.count("other programs have freed memory meanwhile; once more") >= 1, out
    check_story(out)
