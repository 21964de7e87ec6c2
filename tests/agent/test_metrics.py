"""Metrics of one's own: real commands and files, and when a changed value is news."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent import metrics, wire
from agent.config import SettingRefused, read_config
from agent.deadband import is_news
from agent.memory import MemoryReading
from agent.metrics import (
    METRICS_MAX,
    MetricCommand,
    NotMeasured,
    OwnMetrics,
    last_number,
    measure,
    parse_text,
)
from agent.sampler import Sample

FAST_NS = 20_000_000
SAMPLE = Sample(1, MemoryReading(8 << 30, 6 << 30, 0, 0))


@asynccontextmanager
async def measuring(own: OwnMetrics) -> AsyncIterator[OwnMetrics]:
    task = asyncio.create_task(own.run())
    try:
        yield own
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def own(*commands: tuple[str, str], directory: Path | None = None) -> OwnMetrics:
    return OwnMetrics(tuple(MetricCommand(*pair) for pair in commands), directory, FAST_NS)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("81\n", 81.0),
        ("81", 81.0),
        ("used 12 of 40 GB\n7\n", 40.0),
        ("load: 0.25,0.50,1.75", 1.75),
        ("-3", -3.0),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("3. ", 3.0),
        ("eth0 1234", 1234.0),
        ("1234 eth0", 1234.0),
        ("81 %", 81.0),
        ("81%", 81.0),
    ],
)
def test_last_number_on_the_first_line_counts(output: str, expected: float) -> None:
    assert last_number(output) == expected


@pytest.mark.parametrize("output", ["", "\n81\n", "none", "eth0", "1.2.3.4", "1e400", "nan"])
def test_line_without_a_usable_number_measures_nothing(output: str) -> None:
    with pytest.raises(NotMeasured):
        last_number(output)


async def test_command_runs_in_a_shell() -> None:
    assert await measure("echo one 1; echo two 2") == 1.0
    assert await measure("x=40; expr $x + 2 | cat") == 42.0


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo 5; exit 3", "exit code 3"),
        ("kill -9 $$", "signal 9"),
        ("true", "no number on the first line ''"),
        ("no-such-program-at-all", "exit code 127"),
        ("yes 1", "it prints more than 64 KiB"),
    ],
)
async def test_command_that_fails_measures_nothing(command: str, reason: str) -> None:
    with pytest.raises(NotMeasured, match=reason):
        await measure(command)


async def test_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(NotMeasured, match=r"not ended after 0\.2 s"):
        await measure(f"sleep 100 & echo $! > {tmp_path}/child; wait")
    child = int((tmp_path / "child").read_text())
    await until(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    """Tell whether a process is there and no zombie, whoever has to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_command_running_at_the_end_is_killed(tmp_path: Path) -> None:
    async with measuring(own(("a", f"echo $$ > {tmp_path}/pid; sleep 100"))):
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    pid = int((tmp_path / "pid").read_text())
    assert not _runs(pid)


async def test_values_follow_the_commands(tmp_path: Path) -> None:
    source = tmp_path / "value"
    source.write_text("1")
    async with measuring(own(("metric1", f"cat {source}"), ("two", "echo 2"))) as measured:
        await until(lambda: measured.values() == {"metric1": 1.0, "two": 2.0})
        source.write_text("81.5")
        await until(lambda: measured.values().get("metric1") == 81.5)
        source.unlink()
        await until(lambda: measured.values() == {"two": 2.0})
        source.write_text("7")
        await until(lambda: measured.values() == {"metric1": 7.0, "two": 2.0})


async def test_trouble_is_logged_when_it_begins_and_when_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent.metrics")
    count, source = tmp_path / "count", tmp_path / "value"
    command = f"echo x >> {count}; cat {source}"
    async with measuring(own(("metric1", command))) as measured:
        await until(lambda: count.exists() and len(count.read_text().split()) >= 4)
        source.write_text("5")
        await until(lambda: measured.values() == {"metric1": 5.0})
        rounds = len(count.read_text().split())
        await until(lambda: len(count.read_text().split()) >= rounds + 3)
    assert [record.getMessage() for record in caplog.records] == [
        "metric not measured metric=metric1 reason='exit code 1'",
        "metric measured again metric=metric1",
    ]


async def test_slow_command_delays_no_other_and_runs_once_at_a_time(tmp_path: Path) -> None:
    slow = f"test -e {tmp_path}/busy && touch {tmp_path}/twice; touch {tmp_path}/busy; sleep 9"
    async with measuring(own(("slow", slow), ("quick", "date +%s%N"))) as measured:
        await until(lambda: "quick" in measured.values())
        first = measured.values()["quick"]
        await until(lambda: measured.values().get("quick", first) > first)
    assert not (tmp_path / "twice").exists()


async def test_loop_turns_while_a_command_runs() -> None:
    async with measuring(own(("slow", "sleep 9"))):
        begun, turns = time.monotonic(), 0
        while time.monotonic() - begun < 0.1:
            await asyncio.sleep(0)
            turns += 1
    assert turns > 100


NODE_EXPORTER = """\
# HELP backup_age_seconds Time since the last backup.
# TYPE backup_age_seconds gauge
backup_age_seconds 3600.5
queue_depth 12 1700000000000
with_labels{queue="a b"} 7
with:colon 1
not_a_number abc
infinite +Inf
missing NaN
huge 1e300
negative -4
{broken
two words are too many
"""


def test_text_format_gives_what_has_no_labels_and_is_finite() -> None:
    assert dict(parse_text(NODE_EXPORTER)) == {
        "backup_age_seconds": 3600.5,
        "queue_depth": 12.0,
        "negative": -4.0,
    }


async def test_directory_is_read_and_followed(tmp_path: Path) -> None:
    (tmp_path / "a.prom").write_text("one 1\nboth 1\n")
    (tmp_path / "b.prom").write_text("two 2\nboth 2\n")
    (tmp_path / "c.txt").write_text("three 3\n")
    async with measuring(own(directory=tmp_path)) as measured:
        await until(lambda: measured.values() == {"one": 1.0, "two": 2.0, "both": 1.0})
        (tmp_path / "b.new").write_text("two 22\n")
        (tmp_path / "b.new").rename(tmp_path / "b.prom")
        await until(lambda: measured.values() == {"one": 1.0, "two": 22.0, "both": 1.0})
        (tmp_path / "a.prom").unlink()
        await until(lambda: measured.values() == {"two": 22.0})


async def test_file_that_nobody_writes_any_more_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.prom"
    file.write_text("one 1\n")
    async with measuring(own(directory=tmp_path)) as measured:
        await until(lambda: measured.values() == {"one": 1.0})
        old = time.time() - 301
        os.utime(file, (old, old))
        await until(lambda: measured.values() == {})
        file.write_text("one 2\n")
        await until(lambda: measured.values() == {"one": 2.0})
    assert [record.getMessage() for record in caplog.records] == [
        f"metric not measured metric={file} reason='not written for 5 minutes'"
    ]


async def test_command_stands_above_a_file_and_all_are_bounded(tmp_path: Path) -> None:
    lines = [f"m{number:02} {number}\n" for number in range(40)]
    (tmp_path / "a.prom").write_text("".join(lines))
    async with measuring(own(("m01", "echo 100"), ("z", "echo 5"), directory=tmp_path)) as found:
        await until(lambda: found.values().get("m01") == 100.0 and "z" in found.values())
        await until(lambda: len(found.values()) == METRICS_MAX)
        assert found.values()["m30"] == 30.0  # z and m00 to m30
        assert found.names == ("m01", "z")


async def test_missing_directory_and_too_large_file_measure_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "FILE_BYTES_MAX", 10)
    directory = tmp_path / "later"
    async with measuring(own(directory=directory)) as measured:
        await until(lambda: "No such file or directory" in caplog.text)
        directory.mkdir()
        (directory / "a.prom").write_text("one 1\n")
        os.mkfifo(directory / "pipe.prom")
        (directory / "b.prom").write_text("two 2\n" * 3)
        await until(lambda: measured.values() == {"one": 1.0})
        await until(lambda: "larger than 10 B" in caplog.text)
        await until(lambda: "no regular file" in caplog.text)


def test_changed_value_is_news_beyond_one_percent_of_what_was_sent() -> None:
    def news(sent: dict[str, float], now: dict[str, float]) -> bool:
        return is_news(replace(SAMPLE, custom=sent), replace(SAMPLE, custom=now))

    assert not news({"a": 100.0}, {"a": 100.0})
    assert not news({"a": 100.0}, {"a": 100.9})
    assert news({"a": 100.0}, {"a": 101.0})
    assert news({"a": -100.0}, {"a": -101.0})
    assert news({"a": 0.0}, {"a": 1e-9})
    assert not news({"a": 0.0}, {"a": 0.0})
    assert news({"a": 1.0}, {})
    assert news({}, {"a": 0.0})
    assert news({"a": 1.0}, {"b": 1.0})


def test_values_are_in_the_sample_that_is_sent() -> None:
    message = wire.encode_samples([replace(SAMPLE, custom={"metric1": 81.0})])
    assert dict(message.samples.samples[0].custom_metrics) == {"metric1": 81.0}


def settings(*flags: str, **environment: str) -> tuple[tuple[MetricCommand, ...], int]:
    found = read_config(flags, environment).settings
    return found.metrics, found.metric_interval_ns


def test_commands_come_from_flags_and_environment() -> None:
    one, two = MetricCommand("a", "echo 1=1"), MetricCommand("b", "cat f | wc -l")
    assert settings("--metric", "a=echo 1=1", "--metric", "b=cat f | wc -l")[0] == (one, two)
    assert settings(MASS_AGENT_METRIC="a=echo 1=1\n\nb=cat f | wc -l\n")[0] == (one, two)
    assert settings() == ((), 1_000_000_000)


def test_commands_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('metric = ["a=echo 1", "b=cat f"]\nmetric_interval = "10s"\n')
    commands = (MetricCommand("a", "echo 1"), MetricCommand("b", "cat f"))
    assert settings("--config", str(file)) == (commands, 10_000_000_000)
    assert settings("--config", str(file), "--metric", "c=true")[0] == (MetricCommand("c", "true"),)
    file.write_text('metric = ["a=echo 1", "a=echo 2"]\n')
    with pytest.raises(SettingRefused, match=r"agent\.toml:1: metric a is there twice"):
        settings("--config", str(file))


def test_commands_run_each_second_or_as_asked() -> None:
    assert settings("--sample", "200ms")[1] == 1_000_000_000
    assert settings("--metric-interval", "1m")[1] == 60_000_000_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric", "a"], "--metric 'a' must be NAME=COMMAND"),
        (["--metric", "a= "], "--metric 'a= ' must be NAME=COMMAND"),
        (["--metric", "a-b=echo 1"], "--metric 'a-b' must be 1 to 63 letters, digits and '_'"),
        (["--metric", "a=x", "--metric", "a=y"], "--metric a is there twice"),
        (["--metric-interval", "10ms"], "--metric-interval '10ms' must be between 1s and 1h"),
        (["--metric-interval", "10"], "--metric-interval '10' has no unit"),
        (
            [word for number in range(33) for word in ("--metric", f"m{number}=echo")],
            "--metric is there 33 times, at most 32",
        ),
    ],
)
def test_metric_flag_that_cannot_be_meant_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(SettingRefused) as caught:
        settings(*flags)
    assert message in str(caught.value)
