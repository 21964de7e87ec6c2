"""Settings: what users may write, and the sentence for what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import SettingRefused, parse_duration, parse_settings, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("8G", 8 << 30),
        ("8Gi", 8 << 30),
        ("8GiB", 8 << 30),
        ("8GB", 8_000_000_000),
        ("1.5 GiB", 3 << 29),
        ("512m", 512 << 20),
        ("4KB", 4_000),
        ("2TiB", 2 << 40),
        ("64MiB", 64 << 20),
    ],
)
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "8", "8X", "GiB", "-1G", "8GiBs", "1e3M"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SettingRefused, match="write for example"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [
        ("500ms", 500_000_000),
        ("1s", 1_000_000_000),
        ("10m", 600_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("0.5s", 500_000_000),
        ("1d", 86_400_000_000_000),
    ],
)
def test_durations_have_units(text: str, duration_ns: int) -> None:
    assert parse_duration(text) == duration_ns


@pytest.mark.parametrize("text", ["", "1", "1 s x", "s", "-1s", "1m 1"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(SettingRefused, match="write for example"):
        parse_duration(text)


def test_flags_stand_above_the_environment_and_it_above_defaults(tmp_path: Path) -> None:
    environment = {
        "MASS_CONTROLLER": "localhost:1",
        "MASS_AGENT_NAME": "fromenv",
        "MASS_AGENT_MEMORY": "2GiB",
        "MASS_AGENT_WORK_DIR": str(tmp_path),
    }
    settings = parse_settings(["--name", "flag", "--cpus", "1.5", "--sample", "2s"], environment)
    assert (settings.name, settings.controller) == ("flag", "localhost:1")
    assert settings.memory_capacity_bytes == 2 << 30
    assert (settings.cpus, settings.sample_interval_ns) == (1.5, 2_000_000_000)
    assert settings.work_dir == tmp_path


def test_nothing_needs_to_be_said() -> None:
    settings = parse_settings([], {"XDG_STATE_HOME": "/state"})
    assert settings.controller == "127.0.0.1:7461"
    assert settings.work_dir == Path("/state/mass-agent") / settings.name
    assert (settings.memory_capacity_bytes, settings.cpus) == (None, None)


def test_another_machine_needs_insecure() -> None:
    for address in ("10.0.0.1:7461", "head:7461"):
        with pytest.raises(SettingRefused, match=f"controller {address} is on another machine"):
            parse_settings(["--controller", address], {})
        assert parse_settings(["--controller", address, "--insecure"], {}).controller == address
    for address in ("127.0.0.2:1", "[::1]:7461", "localhost:7461"):
        assert parse_settings(["--controller", address], {}).controller == address


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--name", "a b"], "--name 'a b' must be 1 to 63 letters"),
        (["--name", "x" * 64], "must be 1 to 63 letters"),
        (["--memory", "8"], "--memory '8' has no unit; write for example 8GiB"),
        (["--memory", "1K"], "--memory 1K must be between 16MiB and 1024TiB"),
        (["--cpus", "0"], "--cpus 0 must be above 0"),
        (["--cpus", "nan"], "--cpus nan must be above 0"),
        (["--cpus", "two"], "--cpus 'two' is no number"),
        (["--sample", "1ms"], "--sample 1ms must be between 50ms and 1m"),
        (["--controller", "head"], "--controller 'head' must be HOST:PORT"),
        (["--controller", "localhost:0"], "port 1 to 65535"),
    ],
)
def test_a_refused_setting_is_named_with_its_value(flags: list[str], sentence: str) -> None:
    with pytest.raises(SettingRefused, match=sentence):
        parse_settings(flags, {})
