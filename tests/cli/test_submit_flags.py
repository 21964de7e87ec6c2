"""Flags of a submit that place, order and multiply tasks: what is sent, and what is refused."""

from __future__ import annotations

import json

import pytest
from cli.conftest import Mass
from cli.fake_controller import FakeController
from mass.v1 import types_pb2


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
