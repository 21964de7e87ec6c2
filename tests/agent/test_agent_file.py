"""The agent's configuration file: what wins, what is refused with which words, what is shown."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from mass.configfile import FILE_BYTES_MAX

from agent import config
from agent.config import KEYS, SettingRefused, parse_settings, read_config
from agent.install import show_config
from agent.main import EXIT_OK, EXIT_REFUSED, main


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "default.toml")


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "agent.toml").write_text(text)
    return str(tmp_path / "agent.toml")


def test_flag_stands_above_environment_above_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'controller = "head:1"\nname = "of-file"\nmemory = "1GiB"\ncpus = 3\nsample = "2s"\n'
        'work_dir = "/w"\ninsecure = true\n',
    )
    environment = {"MASS_AGENT_CONFIG": file, "MASS_AGENT_MEMORY": "2GiB", "MASS_AGENT_NAME": "e"}
    settings = parse_settings(["--name", "flag"], environment)
    assert (settings.name, settings.memory_capacity_bytes) == ("flag", 2 << 30)
    assert (settings.controller, settings.cpus) == ("head:1", 3.0)
    assert (settings.sample_interval_ns, settings.work_dir) == (2_000_000_000, Path("/w"))


def test_file_is_named_by_flag_then_by_variable_then_by_custom(tmp_path: Path) -> None:
    named = {"MASS_AGENT_CONFIG": write(tmp_path, 'name = "one"')}
    assert parse_settings([], named).name == "one"
    assert parse_settings(["--config", "/dev/null", "--name", "flag"], named).name == "flag"
    (tmp_path / "default.toml").write_text('name = "two"')
    assert parse_settings([], {}).name == "two"
    assert parse_settings([], named).name == "one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\nnaem = "x"', "FILE:2: unknown key 'naem' - did you mean 'name'?"),
        ("[agent]\nname = 1", "FILE:1: unknown key 'agent'"),
        ("name = 5", "FILE:1: name 5 is not text in quotes"),
        ("cpus = true", "FILE:1: cpus True is not a number or a fraction"),
        ('cpus = "2"', "FILE:1: cpus '2' is not a number or a fraction"),
        ("cpus = 0", "FILE:1: cpus 0 must be above 0 and at most 4096"),
        ("insecure = 1", "FILE:1: insecure 1 is not true or false"),
        ('memory = "8"', "FILE:1: memory '8' has no unit; write 8MiB or 8MB"),
        ('sample = "2h"', "FILE:1: sample '2h' must be between 50ms and 1m"),
        ('name = "a b"', "FILE:1: name 'a b' must be 1 to 63 letters, digits, '.', '_' and '-'"),
        ('controller = "head"', "FILE:1: controller 'head' must be HOST:PORT, port 1 to 65535"),
        ("name = ", "FILE: Invalid value (at end of document)"),
    ],
)
def test_refusal_names_file_line_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingRefused) as caught:
        parse_settings(["--config", file], {})
    assert str(caught.value).replace(file, "FILE") == message


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MASS_AGENT_CPUS": "two"}, "MASS_AGENT_CPUS 'two' is no number"),
        ({"MASS_CONTROLLER": "x"}, "MASS_CONTROLLER 'x' must be HOST:PORT"),
        ({"MASS_AGENT_INSECURE": "maybe"}, "MASS_AGENT_INSECURE 'maybe' is neither true nor"),
        ({"MASS_AGENT_CONFIG": "/no/such"}, "/no/such: the file cannot be read: No such file"),
    ],
)
def test_refusal_names_the_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingRefused, match=f"^{message}"):
        parse_settings([], environment)


def test_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(SettingRefused, match="larger than 1 MiB"):
        parse_settings(["--config", str(file)], {})
    file.write_bytes(b"\n# \xff\n")
    with pytest.raises(SettingRefused, match=r"agent.toml:2: the text is not UTF-8"):
        parse_settings(["--config", str(file)], {})


def test_service_works_below_the_folder_systemd_gives_it() -> None:
    settings = parse_settings(["--name", "n"], {"STATE_DIRECTORY": "/var/lib/mass-agent"})
    assert settings.work_dir == Path("/var/lib/mass-agent/n")


def test_dump_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    environment = {"MASS_AGENT_MEMORY": "2GiB", "HOME": "/h"}
    words = ["--name", "n", "--controller", "localhost:1", "--insecure", "--guard", "off"]
    text = show_config(["dump", *words], environment)
    assert 'memory = "2GiB"  # MASS_AGENT_MEMORY\n' in text
    assert "insecure = true  # --insecure\n" in text
    assert "guard = false  # --guard\n" in text
    assert "# cpus is not set\n" in text
    assert {line.split(" = ")[0] for line in text.splitlines() if "#" not in line[:1]} <= set(KEYS)
    assert tomllib.loads(text)["name"] == "n"
    again = read_config(["--config", write(tmp_path, text)], {})
    assert again.settings == read_config(words, environment).settings


def test_check_says_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, 'name = "n"')
    assert main(["config", "check", file]) == EXIT_OK
    assert capsys.readouterr().out == f"{file}: no mistake found\n"
    assert main(["config", "check", write(tmp_path, "x = 1")]) == EXIT_REFUSED
    assert capsys.readouterr().err == f"mass-agent: {file}:1: unknown key 'x'\n"
    assert main(["config"]) == EXIT_REFUSED
    assert "config needs one of: check, dump" in capsys.readouterr().err
    assert main(["install", "--systemd", "--print"]) == EXIT_OK
    assert "Delegate=yes\n" in capsys.readouterr().out


def test_path_in_a_file_is_relative_to_its_folder(tmp_path: Path) -> None:
    settings = parse_settings(["--config", write(tmp_path, 'work_dir = "work"')], {})
    assert settings.work_dir == tmp_path / "work"
    flags = ["--config", write(tmp_path, 'work_dir = "~"'), "--work-dir", "here"]
    assert parse_settings(flags, {}).work_dir == Path.cwd() / "here"
    with pytest.raises(SettingRefused, match="--work-dir '~no-such-user' begins with the home of"):
        parse_settings(["--work-dir", "~no-such-user"], {})
