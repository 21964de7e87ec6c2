"""`mass config`, `mass db`, `mass install` and the completion of words, without a controller."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.conftest import Mass
from support.stored_values import stored_task

from controller import config
from controller.core.commands import SaveTask
from controller.store.sqlite import SqliteStore

HEAVY = ("rich", "grpc", "numpy", "sqlalchemy")


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "default.toml")
    for name in os.environ:
        if name.startswith("MASS_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "controller.toml").write_text(text)
    return str(tmp_path / "controller.toml")


def test_good_file_is_checked_with_its_rules(mass: Mass, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("RULES = [{'expression': 'load1 > 1', 'alert': 'Busy'}]\n")
    file = write(tmp_path, 'rules = ["rules.py"]\nnodes_max = 10\n')
    done = mass("config", "check", file)
    assert done.code == 0
    assert done.out.startswith(f"{file}: 1 rule, a pool of ")
    assert done.out.endswith("MiB, no mistake found\n")
    shown = mass("config", "check", file, "-o", "json").json
    assert (shown["file"], shown["rules"]) == (file, 1)
    assert shown["pool_bytes"] > 1 << 20
    assert mass("config", "check").out.startswith("no file, environment and defaults: ")


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        (
            "node_max = 5",
            "controller.toml:1: unknown key 'node_max' - did you mean 'nodes_max'?",
            2,
        ),
        ('rules = ["no.yaml"]', "no.yaml: the file cannot be read: No such file or directory", 1),
        ('pool = "1MiB"', "pool is 1 MiB; 1000 nodes and 1000 running tasks need", 2),
    ],
)
def test_bad_file_is_refused_before_anything_starts(
    mass: Mass, tmp_path: Path, text: str, message: str, code: int
) -> None:
    file = write(tmp_path, text)
    done = mass("config", "check", file)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_dump_shows_where_each_value_is_from(
    mass: Mass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "# a comment\nnodes_max = 10\n")
    monkeypatch.setenv("MASS_HISTORY_AGE", "2d")
    lines = mass("config", "dump", file).out.splitlines()
    assert f"nodes_max = 10  # {file}:2" in lines
    assert 'history_age = "2d"  # MASS_HISTORY_AGE' in lines
    assert "insecure = false  # default" in lines
    shown = mass("config", "dump", file, "-o", "json").json
    assert shown["nodes_max"] == {"value": 10, "from": f"{file}:2"}
    assert shown["webhook"] == {"value": None, "from": "default"}


def test_controller_with_a_wrong_setting_ends_with_the_code_for_it(
    mass: Mass, tmp_path: Path
) -> None:
    done = mass("controller", "--config", write(tmp_path, "nodes_max = 0"))
    assert done.code == 2
    (tmp_path / "bad.yaml").write_text("groups: 5\n")
    done = mass("controller", "--data", str(tmp_path / "d"), "--rules", str(tmp_path / "bad.yaml"))
    assert done.code == 2, "systemd is told not to start it again"
    assert not (tmp_path / "d").exists()


def make_store(directory: Path) -> None:
    async def make() -> None:
        store = SqliteStore.open(directory)
        await store.commit([SaveTask(stored_task(1))])
        await store.close()

    asyncio.run(make())


def test_store_is_copied_and_put_back(mass: Mass, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "copy.db"
    make_store(data)
    settings = write(tmp_path, 'data = "data"')
    done = mass("db", "backup", str(file), "--config", settings)
    assert done.out.startswith(f"the store in {data} was copied to {file}, ")
    refused = mass("db", "restore", str(file), "--data", str(data), "-o", "json")
    assert (refused.code, refused.error["reason"]) == (1, "STORE_FAILED")
    broken = write(tmp_path, "nodes_max = 0")
    assert mass("db", "upgrade", "--config", broken).code == 2
    done = mass("db", "restore", str(file), "--config", broken, "--data", str(data), "--force")
    assert done.out.splitlines() == [
        f"{file} was restored to {data}; new tasks begin at id 1000002",
        f"the store that was there is {data / 'mass-replaced-1.db'}",
    ]
    shown = mass("db", "restore", str(file), "--data", str(tmp_path / "new"), "-o", "json").json
    assert shown == {
        "data": str(tmp_path / "new"),
        "revision": shown["revision"],
        "outdated": False,
        "aside": None,
        "next_task_id": 1_000_002,
    }
    assert mass("db", "upgrade", "--data", str(tmp_path / "new")).code == 0


def test_unit_is_written_once_and_a_changed_one_left_alone(mass: Mass, tmp_path: Path) -> None:
    words = ["install", "--systemd", "--user", "--directory", str(tmp_path)]
    path = tmp_path / "mass-controller.service"
    assert mass(*words).out.splitlines() == [
        f"{path} is written",
        "next: systemctl --user daemon-reload && systemctl --user enable --now"
        " mass-controller.service",
    ]
    assert mass("install", "--systemd", "--user", "--print").out == path.read_text()
    path.write_text("changed")
    refused = mass(*words)
    assert (refused.code, path.read_text()) == (1, "changed")
    assert "is there and differs; --force overwrites it" in refused.err
    assert mass(*words, "--force").code == 0
    assert mass("install").code == 2


def run_mass(*words: str, **environment: str) -> str:
    """Run `mass` in a process of its own and return its stdout; see that nothing heavy came."""
    code = (
        "import sys\nfrom controller.cli import main\n"
        "try:\n    main()\n"
        "finally:\n"
        f"    assert not {set(HEAVY)!r} & set(sys.modules), sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )
    assert "AssertionError" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("shell", "mark"),
    [("bash", "complete -o default -F _mass_completion mass"), ("zsh", "#compdef mass"),
     ("fish", "complete --command mass")],
)  # fmt: skip
def test_completion_script_of_each_shell_is_printed(shell: str, mark: str) -> None:
    assert mark in run_mass("completion", shell)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mass no", {"node"}),
        ("mass db ", {"upgrade", "backup", "restore"}),
        ("mass completion z", {"zsh"}),
        ("mass config dump --o", {"--output"}),
    ],
)
def test_words_are_completed(line: str, expected: set[str]) -> None:
    words = line.split(" ")
    out = run_mass(_MASS_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert set(out.split()) == expected


def test_script_for_bash_completes_in_bash(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(run_mass("completion", "bash"))
    (tmp_path / "mass").write_text(f'#!/bin/sh\nexec {sys.executable} -m controller.cli "$@"\n')
    (tmp_path / "mass").chmod(0o755)
    code = (
        f". {script}; COMP_WORDS=(mass conf); COMP_CWORD=1;"
        " _mass_completion mass; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("config\n", "")


def test_errors_of_the_configuration_are_json_when_asked(mass: Mass, tmp_path: Path) -> None:
    done = mass("config", "dump", write(tmp_path, "x = 1"), "-o", "json")
    error = json.loads(done.err)["error"]
    assert (done.code, error["reason"], error["details"]) == (2, "INVALID_REQUEST", {"key": "x"})
