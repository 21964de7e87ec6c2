"""Flags of a submit that place, order and multiply tasks: what is sent, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import Mass
from cli.fake_controller import FakeController, task
from mass.v1 import types_pb2

from controller.cli import spec


def sent(mass: Mass, fake: FakeController, *flags: str) -> types_pb2.TaskSpec:
    outcome = mass("submit", *flags, "--", "true")
    assert outcome.code == 0, outcome.err
    return fake.submits[-1].tasks[0]


def test_array_with_a_bound_is_sent(mass: Mass, fake: FakeController) -> None:
    array = sent(mass, fake, "--array", "0-9,20%3").array
    assert (array.indexes, array.running_max) == ("0-9,20", 3)
    assert sent(mass, fake, "--array", "1-4").array.running_max == 0


def test_dependencies_are_sent_with_their_kinds(mass: Mass, fake: FakeController) -> None:
    after = sent(mass, fake, "--after", "12", "--after", "13:any,14:fail").after
    assert [(wanted.task_id, wanted.kind) for wanted in after] == [
        ("12", types_pb2.DEPENDENCY_KIND_OK),
        ("13", types_pb2.DEPENDENCY_KIND_ANY),
        ("14", types_pb2.DEPENDENCY_KIND_FAIL),
    ]


def test_after_last_names_the_newest_task(mass: Mass, fake: FakeController) -> None:
    fake.tasks["7"], fake.tasks["6"] = task("7", "RUNNING"), task("6", "RUNNING")
    (after,) = sent(mass, fake, "--after", "last:any").after
    assert (after.task_id, after.key, after.kind) == ("7", "", types_pb2.DEPENDENCY_KIND_ANY)


def test_after_last_needs_a_task(mass: Mass) -> None:
    outcome = mass("submit", "--after", "last", "--", "true")
    assert (outcome.code, outcome.err) == (
        3,
        "mass: there is no last task: none was submitted yet\n",
    )


def test_lines_of_a_file_wait_for_keys_before_the_newest_task(
    mass: Mass, fake: FakeController, tmp_path: Path
) -> None:
    fake.tasks["7"] = task("7", "RUNNING")
    file = tmp_path / "tasks"
    line = '{"command": ["a"], "key": "%s", "after": ["last", "b"]}\n'
    file.write_text(line % "a" + line % "b")
    mass("submit", "--from", str(file))
    file.write_text(line % "last" + line % "b")
    mass("submit", "--from", str(file))
    afters = [[(w.task_id, w.key) for w in spec.after] for r in fake.submits for spec in r.tasks]
    assert afters == [[("7", ""), ("", "b")]] * 2 + [[("", "last"), ("", "b")]] * 2


def test_after_what_is_no_task_says_what_may_stand_there(
    mass: Mass, fake: FakeController, tmp_path: Path
) -> None:
    outcome = mass("submit", "--after", "prepare", "--", "true")
    assert outcome.err == "mass: after 'prepare' is no task; write 12 or last\n"
    file = tmp_path / "tasks"
    file.write_text('{"command": ["a"]}\n\n{"command": ["b"], "after": "prepare"}\n')
    outcome = mass("submit", "--from", str(file))
    assert outcome.err == (
        f"mass: {file}, line 3: after 'prepare' is no task; write 12, last or the key of a line\n"
    )
    assert (outcome.code, fake.submits) == (2, [])


def test_node_wishes_are_sent(mass: Mass, fake: FakeController) -> None:
    spec = sent(mass, fake, "--pack", "--gpus", "2", "--constraint", "disk=ssd and cpus>=8")
    assert spec.preference == types_pb2.PREFERENCE_PACK
    assert (spec.gpus, spec.constraint) == (2, "disk=ssd and cpus>=8")
    assert sent(mass, fake, "--spread").preference == types_pb2.PREFERENCE_SPREAD


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--array", "5-1"], "5-1 names no index"),
        (["--array", "1-4%0"], "behind % stands how many may run at once, from 1"),
        (["--array", "1,1"], "names index 1 twice"),
        (["--after", "12:often"], "after '12:often' is not ID, ID:ok, ID:any or ID:fail"),
        (["--constraint", "disk ="], "constraint"),
        (["--gpus", "-1"], "gpus -1 must be between 0 and 1024"),
        (["--spread", "--pack"], "spread and pack exclude each other"),
        (["--stdout", "/tmp/\udcff"], "is not valid UTF-8"),
    ],
)
def test_flag_that_cannot_be_is_refused(
    mass: Mass, fake: FakeController, flags: list[str], words: str
) -> None:
    outcome = mass("submit", *flags, "-o", "json", "--", "true")
    assert (outcome.code, fake.submits) == (2, [])
    assert words in outcome.error["message"]


def test_preference_of_a_file_is_not_undone_by_a_false(mass: Mass, fake: FakeController) -> None:
    line = json.dumps({"command": ["true"], "pack": True, "spread": False})
    assert mass("submit", "--from", "-", stdin=line).code == 0
    assert fake.submits[0].tasks[0].preference == types_pb2.PREFERENCE_PACK


def test_input_that_is_a_directory_counts_the_files_below_it(
    mass: Mass, fake: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "data" / "below"
    below.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"x" * 100_000)
    (tmp_path / "data" / "a").write_bytes(b"x" * 2_000)
    (below / "b").write_bytes(b"x" * 30_000)
    (below / "link").symlink_to(tmp_path / "elsewhere")
    (below / "circle").symlink_to(tmp_path)
    (below / "nowhere").symlink_to(tmp_path / "none")
    data = str(tmp_path / "data")
    assert sent(mass, fake, "--input", data).input_bytes == 132_000
    monkeypatch.setattr(spec, "INPUT_FILES_MAX", 5)
    outcome = mass("submit", "--input", data, "--", "true")
    assert (outcome.code, outcome.err) == (
        2,
        f"mass: input '{data}' holds more than 5 files; say input-size\n",
    )


def test_input_that_is_not_there_is_named(mass: Mass) -> None:
    outcome = mass("submit", "--input", "/none", "--", "true")
    assert outcome.err == "mass: input '/none' cannot be looked at: No such file or directory\n"
