"""README.md, docs/cli.md, docs/sizing.md: each command runs as it stands, each table is the code's.

The rule: a command that cannot run in a test stands in CANNOT_RUN with the reason, and a new one
fails here until it is listed. The other pages have tests of their own: operators.md in
e2e/test_operation.py, rules.md in test_rules_document.py, python.md in client/test_docs.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, Daemon, free_port
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from controller.cli.categories import COLUMNS
from controller.cli.commands import app
from controller.cli.spec import KEYS
from controller.cli.units import parse_duration, parse_size
from controller.core.constraint import parse_constraint
from controller.core.learning import Learning
from controller.core.limits import Limits
from controller.core.needs import Need
from controller.core.sizing import GIB, MIB, Ask, Basis, SizingLimits
from controller.rulefile import load_rules

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text()
SIZING_PAGE = (ROOT / "docs" / "sizing.md").read_text()
BUF = Path(sys.executable).with_name("buf")
PROGRAMS = {"mass", "mass-agent", "make", "grpcurl", "buf"}

CANNOT_RUN = {
    "make run": "sets up .venv and lives until Ctrl-C; cli/test_dev.py runs `mass dev`",
    "make test": "is this",
    "make demo": "sets up .venv; e2e/test_demo.py runs `mass demo`",
    "grpcurl": "is no package of the environment; `buf curl` asks the same below it",
}

# What each command of the README prints, in their order.
PRINTED = [
    ("mass submit --mem 256MiB", r"task 1\n"),
    ("mass task list", r"(?s)ID .*\n1 +\w+ .*"),
    ("mass task wait 1", r"task 1 SUCCEEDED\n"),
    ("mass task logs 1", r"hello\n"),
    ("mass run --mem 100MiB", r"my exit code becomes yours\n"),
    ("mass submit --mem 100GiB", r"task 3\n"),
    ("mass task why 3", r"(?s)task 3 is PENDING: asks 100 GiB, .*"),
    ("mass rules check FILE", r".*: \d+ rules?, no mistake found\n"),
    ("mass controller --rules FILE", ""),  # serves; it is not waited for
    ("buf curl .* --list-methods", r"(?s).*mass.v1.TaskService/SubmitTasks\n.*"),
    ("buf curl .* -d", r'(?s)\{\n  "nodes": \[.*"id": +"node-1".*'),
]


def commands(text: str) -> list[str]:
    """Return the commands of a page in order: of indented blocks and of `sh` blocks."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```$|((?:^    .*\n)+)", text, re.M | re.S):
        for line in re.sub(r" *\\\n *", " ", "".join(block)).splitlines():
            command = re.split(r" +# ", line.strip())[0]
            if command.split(maxsplit=1)[:1] and command.split()[0] in PROGRAMS:
                found.append(command)
    return found


def reason_not_to_run(command: str) -> str:
    return next((why for start, why in CANNOT_RUN.items() if command.startswith(start)), "")


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A controller with one agent."""
    (tmp_path / "cluster").mkdir()
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_controller()
        cluster.start_agent()
        cluster.wait_ready()
        yield cluster


class Reader:
    """Somebody who types what the README says, with other ports and folders."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        (directory / "bin").mkdir()
        for name, words in (
            ("mass", f"{shlex.quote(sys.executable)} -m controller.cli"),
            ("buf", shlex.quote(str(BUF))),
        ):
            script = directory / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            script.chmod(0o755)
        self.rules = directory / "rules.yaml"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MASS_")},
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
            "MASS_CONTROLLER": cluster.address,
        }

    def here(self, command: str) -> str:
        command = command.replace("FILE", shlex.quote(str(self.rules)))
        return command.replace("127.0.0.1:7461", self.cluster.address)

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", self.here(command)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            env=self.environment,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.cluster.logs())
        return done.stdout

    def serve(self, command: str) -> None:
        """Start a controller of its own as the command says, and ask it for its rules."""
        address = f"127.0.0.1:{free_port()}"
        program, *words = shlex.split(self.here(command))
        assert program == "mass"
        daemon = Daemon(
            "controller", ["-m", "controller.cli", *words], self.directory / "served.log"
        )
        daemon.start(
            MASS_LISTEN=address,
            MASS_HTTP=f"127.0.0.1:{free_port()}",
            MASS_DATA=str(self.directory / "served"),
        )
        try:
            assert "NodeMemoryCritical" in self.run(f"mass rules list --controller {address}")
        finally:
            daemon.terminate()


@pytest.mark.e2e
def test_commands_of_the_readme_work_in_order(cluster: Cluster, tmp_path: Path) -> None:
    reader = Reader(cluster, tmp_path)
    reader.rules.write_text(blocks(README, "yaml")[0])
    expected = iter(PRINTED)
    for command in commands(README):
        if reason_not_to_run(command):
            continue
        start, printed = next(expected, ("", ""))
        assert start, f"{command} has no output here"
        assert re.match(start, command), f"{command} comes before {start}"
        if command.startswith("mass controller"):
            reader.serve(command)
        else:
            out = reader.run(command)
            assert re.fullmatch(printed, out), (command, out)
    assert list(expected) == []


def test_every_reason_not_to_run_a_command_is_of_a_command() -> None:
    found = [command for command in commands(README) if reason_not_to_run(command)]
    assert all(any(one.startswith(start) for one in found) for start in CANNOT_RUN)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {one.split()[1] for one in found if one.startswith("make ")} <= set(targets)


@pytest.mark.parametrize("kind", ["yaml", "python"])
def test_rules_of_the_readme_are_read(kind: str, tmp_path: Path) -> None:
    (text,) = blocks(README, kind)
    path = tmp_path / f"rules.{'py' if kind == 'python' else 'yaml'}"
    path.write_text(text)
    assert len(load_rules([path])) == len(re.findall(r"alert:|'alert':", text))


@pytest.mark.parametrize("page", [README, CLI_PAGE], ids=["README", "cli"])
def test_every_command_in_a_table_is_one(page: str) -> None:
    rows = re.findall(r"^\| `mass ([^|`]+(?:\\\|[^|`]+)*)`([^|]*)\|", page, re.M)
    assert len(rows) >= 15
    called = []
    for first, others in rows:
        words = [word for word in first.split() if re.match(r"[a-z]", word)]
        lasts = words[-1].split("\\|")
        lasts += [name.split()[0] for name in re.findall(r"`([a-z][^`]*)`", others)]
        called += [[*words[:-1], last] for last in lasts]
    for words in called:
        # Behind `completion` stand shells.
        names = words[:1] if words[0] == "completion" else words
        outcome = CliRunner().invoke(app, [*names, "--help"], prog_name="mass")
        assert outcome.exit_code == 0, (names, outcome.output)
        assert f"Usage: mass {' '.join(names)} " in outcome.output


def test_every_command_has_a_row_in_the_readme() -> None:
    rows = set(re.findall(r"^\| `mass ([a-z]+)", README, re.M))
    program = get_command(app)
    assert isinstance(program, TyperGroup)
    assert program.commands.keys() - rows == {"completion"}  # of a shell; docs/cli.md has it


def test_flags_of_the_agent_in_the_readme_are_its_own() -> None:
    row = re.search(r"^\| `mass-agent` \|.*$", README, re.M)
    assert row
    ran = subprocess.run(
        [sys.executable, "-m", "agent.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    flags = set(re.findall(r"--[a-z-]+", row[0]))
    assert {"--guard", "--memory"} <= flags
    assert flags <= set(re.findall(r"--[a-z-]+", ran.stdout))


def test_links_between_the_pages_lead_to_files() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page.name, target)


# docs/cli.md


def test_every_key_of_a_submit_has_its_row_and_its_flag() -> None:
    table = re.search(r"^\| flag \| key in a file .*?\n\n", CLI_PAGE, re.M | re.S)
    assert table
    rows = [re.split(r"(?<!\\)\|", row)[1:3] for row in table[0].splitlines()[2:] if row]
    keys = [key for _, cell in rows for key in re.findall(r"`([a-z-]+)`", cell)]
    assert sorted([*keys, "command"]) == sorted(KEYS)
    flags = [flag for cell, _ in rows for flag in re.findall(r"(?<![\w-])--?[a-z-]+", cell)]
    help_text = CliRunner().invoke(app, ["submit", "--help"], prog_name="mass").output
    for flag in flags:
        assert re.search(rf"(?<![\w-]){flag}\b", help_text), flag


def test_sizes_and_durations_mean_what_the_table_says() -> None:
    gib, gb = 1 << 30, 10**9
    for text, size in (("2G", 2 * gib), ("2Gi", 2 * gib), ("2GiB", 2 * gib), ("2GB", 2 * gb)):
        assert f"`{text}`" in CLI_PAGE
        assert parse_size(text) == size
    row = re.search(r"^\| (`500ms`.*?) \| durations \|\n\| (.*?) \|", CLI_PAGE, re.M)
    assert row
    for text in re.findall(r"`([^`]+)`", row[1] + row[2]):
        assert parse_duration(text, "time") > 0


def test_every_constraint_of_the_page_is_read() -> None:
    text = re.search(r"\*\*constraint\*\* compares.*?parentheses: (.*?) \(there", CLI_PAGE, re.S)
    assert text
    examples = re.findall(r"`([^`]+)`", text[1])
    assert len(examples) >= 4
    for example in examples:
        parse_constraint(example)


@pytest.mark.e2e
def test_files_variables_and_errors_of_the_page_are_those_of_a_controller(
    cluster: Cluster, tmp_path: Path
) -> None:
    count = 0
    for number, block in enumerate(re.findall(r'(?:^    \{"command".*\n)+', CLI_PAGE, re.M)):
        file = tmp_path / f"tasks-{number}.jsonl"
        file.write_text(block)
        ran = cluster.mass("submit", "--from", str(file))
        ids = [str(count + line + 1) for line in range(len(block.splitlines()))]
        assert (ran.code, ran.out.split(), ran.err) == (0, ids, "")
        count += len(ids)
    assert count == 5
    error = re.search(r'^    (\{"error".*\})$', CLI_PAGE, re.M)
    assert error
    ran = cluster.mass("task", "show", "77", "-o", "json")
    assert (ran.code, ran.out, ran.err) == (3, "", f"{error[1]}\n")
    ran = cluster.mass("submit", "-q", "--wait", "--mem", "32MiB", "--array", "3", "--", "env")
    assert ran.code == 0, ran
    ran = cluster.mass("task", "logs", f"{count + 1}_3")
    told = set(re.findall(r"`(MASS_[A-Z_]+)`", CLI_PAGE.partition("finds in its environment")[2]))
    shown = {line.partition("=")[0] for line in ran.out.splitlines()}
    assert {name for name in shown if name.startswith("MASS_")} == told, ran


# docs/sizing.md


def reason_of(
    learning: Learning,
    category: str,
    input_bytes: int | None = None,
    declared_bytes: int | None = None,
    reached_bytes: int = 0,
    failures: int = 0,
) -> str:
    """Return the sentence of a task's size in which the sizes are left out: they may be tuned."""
    need = Need(category, input_bytes, declared_bytes, None, reached_bytes, failures)
    return without_sizes(learning.decide(need).reason)


def without_sizes(text: str) -> str:
    return re.sub(r"\d[\d.]* [KMGT]?i?B", "SIZE", text)


def test_sentences_about_sizes_are_those_that_are_made() -> None:
    learning = Learning(Limits())
    learning.offer(0, 64 * GIB)
    made = [
        reason_of(learning, "blast"),
        reason_of(learning, "blast", declared_bytes=3 * GIB),
    ]
    sizing, minute_ns = learning.sizing, 60_000_000_000
    for peak_mib in (830, 910, 880, 1010, 870, 950, 1100, 900, 860, 990, 940, 920):
        sizing.observe(Ask("align"), peak_mib * MIB, minute_ns)
    made.append(reason_of(learning, "align"))
    made.append(reason_of(learning, "align", reached_bytes=800 * MIB, failures=1))
    for input_gib in (1, 8, 2, 6, 3, 12, 4, 10, 5):
        ask = Ask("index", input_gib * GIB)
        sizing.observe(ask, input_gib * 320 * MIB, input_gib * minute_ns)
    made.append(reason_of(learning, "index", input_bytes=2 * GIB))
    made.append(reason_of(learning, "merge"))
    for second in (1, 2, 4, 8):
        sizing.observe_live(Ask("load"), (600 + 12 * second) * MIB, second * 1_000_000_000)
    made.append(reason_of(learning, "load"))
    told = re.findall(r"^    (from .*)$", SIZING_PAGE, re.M)
    assert sorted(map(without_sizes, told)) == sorted(made)


def test_every_basis_of_a_size_has_its_row() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", SIZING_PAGE, re.M)
    assert sorted(rows) == sorted(basis.value for basis in Basis)


def test_what_is_kept_of_a_category_is_what_the_page_says() -> None:
    kept = re.search(r"newest runs that succeeded \((\d+) of them\)", SIZING_PAGE)
    read = re.search(r"the newest (\d+) ended attempts of each category", SIZING_PAGE)
    assert kept
    assert read
    assert int(kept[1]) == SizingLimits().runs_max
    assert int(read[1]) == Limits().category_attempts_max


def test_columns_of_the_categories_are_explained() -> None:
    assert [name for name in COLUMNS[1:] if f"`{name}`" not in SIZING_PAGE] == []
