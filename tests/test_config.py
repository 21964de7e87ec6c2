"""The controller's configuration: what wins, what is refused with which words, what is shown."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from mass.configfile import FILE_BYTES_MAX, dump

from controller import config
from controller.config import SETTINGS, Config, Settings, changed_keys, load_config
from controller.core.errors import InvalidRequest
from controller.core.model import MemoryLimits

DAY_NS = 24 * 3_600 * 1_000_000_000


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "default.toml")


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "controller.toml"
    file.write_text(text)
    return file


def refusal(tmp_path: Path, text: str) -> str:
    file = write(tmp_path, text)
    with pytest.raises(InvalidRequest) as caught:
        load_config({}, {}, file)
    return caught.value.message.replace(str(file), "FILE")


def test_nothing_needs_to_be_said() -> None:
    assert load_config({}, {}) == Config()


def test_flag_stands_above_environment_above_file_above_default(tmp_path: Path) -> None:
    file = write(tmp_path, "nodes_max = 1\ntasks_running_max = 2\nhistory_tasks_max = 3\n")
    environment = {"MASS_NODES_MAX": "10", "MASS_TASKS_RUNNING_MAX": "20", "MASS_WEBHOOK": ""}
    loaded = load_config({"nodes_max": 100, "webhook": None}, environment, file)
    settings = loaded.settings
    chosen = (settings.nodes_max, settings.tasks_running_max, settings.history_tasks_max)
    assert chosen == (100, 20, 3)
    assert loaded.origins == {
        "nodes_max": "--nodes-max",
        "tasks_running_max": "MASS_TASKS_RUNNING_MAX",
        "history_tasks_max": f"{file}:3",
    }
    assert settings.webhook is None


def test_each_setting_can_stand_in_a_file_and_in_the_environment(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        listen = "127.0.0.1:1"
        http = "[::1]:2"
        data = "data"
        rules = ["a.yaml", "/b.yaml"]
        webhook = "http://127.0.0.1:9/alerts"
        nodes_max = 5
        tasks_running_max = 6
        pool = "1GiB"
        insecure = true
        history_age = "1d12h"
        history_tasks_max = 0
        sample_interval = "500ms"
        user_tasks_max = 7
        fair_share = false
        fair_share_half_life = "1d"
        memory_limits = "elastic"
        overcommit_share = 0.25
        ahead_per_cpu = 3
        """,
    )
    expected = Settings(
        listen="127.0.0.1:1",
        http="[::1]:2",
        data=tmp_path / "data",
        rules=(tmp_path / "a.yaml", Path("/b.yaml")),
        webhook="http://127.0.0.1:9/alerts",
        nodes_max=5,
        tasks_running_max=6,
        pool_bytes=1 << 30,
        insecure=True,
        history_age_ns=3 * DAY_NS // 2,
        history_tasks_max=0,
        sample_interval_ns=500_000_000,
        user_tasks_max=7,
        fair_share=False,
        fair_share_half_life_ns=DAY_NS,
        memory_limits=MemoryLimits.ELASTIC,
        overcommit_share=0.25,
        ahead_per_cpu=3,
    )
    assert load_config({}, {}, file).settings == expected
    environment = {
        "MASS_LISTEN": "127.0.0.1:1",
        "MASS_HTTP": "[::1]:2",
        "MASS_DATA": str(tmp_path / "data"),
        "MASS_RULES": f"{tmp_path / 'a.yaml'}:/b.yaml",
        "MASS_WEBHOOK": "http://127.0.0.1:9/alerts",
        "MASS_NODES_MAX": "5",
        "MASS_TASKS_RUNNING_MAX": "6",
        "MASS_POOL": "1024 MiB",
        "MASS_INSECURE": "yes",
        "MASS_HISTORY_AGE": "36h",
        "MASS_HISTORY_TASKS_MAX": "0",
        "MASS_SAMPLE_INTERVAL": "500ms",
        "MASS_USER_TASKS_MAX": "7",
        "MASS_FAIR_SHARE": "no",
        "MASS_FAIR_SHARE_HALF_LIFE": "1d",
        "MASS_MEMORY_LIMITS": "elastic",
        "MASS_OVERCOMMIT_SHARE": "0.25",
        "MASS_AHEAD_PER_CPU": "3",
    }
    assert load_config({}, environment).settings == expected
    assert {setting.variable for setting in SETTINGS} == environment.keys()
    limits = expected.limits()
    assert (limits.history_age_ns, limits.sample_interval_ns) == (3 * DAY_NS // 2, 500_000_000)


def test_file_is_named_by_flag_then_by_variable_then_by_custom(tmp_path: Path) -> None:
    write(tmp_path, "nodes_max = 1")
    named = {"MASS_CONFIG": str(tmp_path / "controller.toml")}
    assert load_config({}, named).settings.nodes_max == 1
    assert load_config({}, named, Path("/dev/null")).settings == Settings()
    (tmp_path / "default.toml").write_text("nodes_max = 2")
    loaded = load_config({}, {})
    assert (loaded.settings.nodes_max, loaded.file) == (2, tmp_path / "default.toml")
    assert load_config({}, named).settings.nodes_max == 1


def test_service_keeps_its_store_where_systemd_says(tmp_path: Path) -> None:
    loaded = load_config({}, {"STATE_DIRECTORY": "/var/lib/mass:/var/lib/other"})
    assert loaded.settings.data == Path("/var/lib/mass")
    assert loaded.shown()["data"] == ("/var/lib/mass", "STATE_DIRECTORY")
    file = write(tmp_path, 'data = "/elsewhere"')
    assert load_config({}, {"STATE_DIRECTORY": "/s"}, file).settings.data == Path("/elsewhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nlisen = 1", "FILE:2: unknown key 'lisen' - did you mean 'listen'?"),
        ("[controller]\nlisten = 1", "FILE:1: unknown key 'controller'"),
        ("nodes_max = ", "FILE: Invalid value (at end of document)"),
        ('nodes_max = "5"', "FILE:1: nodes_max '5' is no whole number"),
        ("nodes_max = true", "FILE:1: nodes_max True is no whole number"),
        ("nodes_max = 0", "FILE:1: nodes_max 0 is outside 1 to 100000"),
        ("tasks_running_max = 1000001",
         "FILE:1: tasks_running_max 1000001 is outside 1 to 1000000"),
        ("insecure = 1", "FILE:1: insecure 1 is neither true nor false"),
        ("listen = 7461", "FILE:1: listen 7461 is no text; write it in quotes"),
        ('listen = "head"', "FILE:1: listen 'head' is no HOST:PORT with a port of 0 to 65535"),
        ('http = "a:99999"', "FILE:1: http 'a:99999' is no HOST:PORT with a port of 0 to 65535"),
        ('data = ""', "FILE:1: data '' is empty or holds characters that cannot be printed"),
        ('rules = "a.yaml"', "FILE:1: rules 'a.yaml' is no list; write for example"
         ' ["rules.yaml"]'),
        ("rules = [1]", "FILE:1: rules 1 is no text; write it in quotes"),
        ('webhook = "ftp://x"',
         "FILE:1: webhook: --webhook 'ftp://x' is no http:// or https:// address"),
        ("pool = 5", "FILE:1: pool 5 is no size with a unit; write for example"
         ' "512MiB" or "2GiB"'),
        ('pool = "5"', "FILE:1: pool '5' has no unit; write 5MiB or 5MB"),
        ('pool = "2000TiB"', "FILE:1: pool '2000TiB' must be between 1B and 1PiB"),
        ("history_age = 30", "FILE:1: history_age 30 is no duration with a unit; write for"
         ' example "500ms", "1h30m" or "30d"'),
        ('history_age = "30"', "FILE:1: history_age '30' has no unit; write 30s or 30m"),
        ('history_age = "1s"', "FILE:1: history_age '1s' must be between 1m and 3650d"),
        ('sample_interval = "11s"',
         "FILE:1: sample_interval '11s' must be between 50ms and 10s"),
    ],
)  # fmt: skip
def test_refusal_names_file_line_key_value_and_bound(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"nodes_max": 0}, {}, "--nodes-max 0 is outside 1 to 100000"),
        ({}, {"MASS_NODES_MAX": "many"}, "MASS_NODES_MAX 'many' is no whole number"),
        ({}, {"MASS_INSECURE": "maybe"}, "MASS_INSECURE 'maybe' is neither true nor false"),
        ({}, {"MASS_CONFIG": "/no/such"}, "/no/such: the file cannot be read: No such file"),
    ],
)
def test_refusal_names_flag_or_variable(
    flags: dict[str, object], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        load_config(flags, environment)


def test_address_of_the_network_needs_a_word(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'http = "0.0.0.0:7462"')
    assert message.startswith("FILE:1: http 0.0.0.0:7462 is open to the network")
    assert load_config({"insecure": True, "listen": "head:1"}, {}).settings.listen == "head:1"


def test_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(InvalidRequest, match="larger than 1 MiB"):
        load_config({}, {}, file)
    file.write_bytes(b"listen = 1\n# \xff\n")
    with pytest.raises(InvalidRequest, match=r"controller.toml:2: the text is not UTF-8"):
        load_config({}, {}, file)
    file.write_text("listen = " + "[" * 100_000)
    with pytest.raises(InvalidRequest, match=r"controller.toml: "):
        load_config({}, {}, file)


def test_dump_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    flags = {"data": Path('/d "q" ä'), "pool": "3MiB", "history_age": "1h1s", "rules": [Path("r")]}
    loaded = load_config(flags, {"MASS_NODES_MAX": "7"})
    text = dump(loaded.shown())
    assert "nodes_max = 7  # MASS_NODES_MAX\n" in text
    assert "# webhook is not set\n" in text
    assert 'listen = "127.0.0.1:7461"  # default\n' in text
    assert tomllib.loads(text)["pool"] == "3MiB"
    again = load_config({}, {}, write(tmp_path, text.replace('["r"]', '["/r"]')))
    expected = load_config({**flags, "rules": [Path("/r")]}, {"MASS_NODES_MAX": "7"}).settings
    assert again.settings == expected


def test_a_reload_may_change_some_settings_and_not_others() -> None:
    before = Settings()
    after = Settings(webhook="http://x", history_age_ns=DAY_NS, nodes_max=5, data=Path("x"))
    assert changed_keys(before, after) == (["webhook", "history_age"], ["data", "nodes_max"])
    assert changed_keys(before, before) == ([], [])


def test_home_of_nobody_and_a_folder_that_is_closed_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InvalidRequest, match="MASS_DATA '~no-such-user/x' begins with the home of"):
        load_config({}, {"MASS_DATA": "~no-such-user/x"})

    def closed(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", closed)
    with pytest.raises(InvalidRequest, match=r"default\.toml: cannot be looked for: Permission"):
        load_config({}, {})
