"""Settings: what users may write, and the sentence for what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import SettingRefused, parse_settings


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


@pytest.mark.parametrize(
    ("flags", "environment", "guard"),
    [
        ([], {}, True),
        (["--guard", "off"], {}, False),
        (["--guard", "on"], {"MASS_AGENT_GUARD": "off"}, True),
        ([], {"MASS_AGENT_GUARD": "off"}, False),
        ([], {"MASS_AGENT_GUARD": "true"}, True),
    ],
)
def test_the_guard_is_on_unless_it_is_switched_off(
    flags: list[str], environment: dict[str, str], guard: bool
) -> None:
    assert parse_settings(flags, environment).guard is guard


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
        (["--memory", "8"], "--memory '8' has no unit; write 8MiB"),
        (["--memory", "1K"], "--memory '1K' must be between 16MiB and 1PiB"),
        (["--cpus", "0"], "--cpus 0 must be above 0"),
        (["--cpus", "nan"], "--cpus nan must be above 0"),
        (["--cpus", "two"], "--cpus 'two' is no number"),
        (["--sample", "1ms"], "--sample '1ms' must be between 50ms and 1m"),
        (["--controller", "head"], "--controller 'head' must be HOST:PORT"),
        (["--controller", "localhost:0"], "port 1 to 65535"),
    ],
)
def test_a_refused_setting_is_named_with_its_value(flags: list[str], sentence: str) -> None:
    with pytest.raises(SettingRefused, match=sentence):
        parse_settings(flags, {})
