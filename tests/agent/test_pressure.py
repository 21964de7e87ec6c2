"""What a group's directory tells beside its limits: systemd's protocol and oomd's mark."""

from __future__ import annotations

import base64
import errno
import os
from pathlib import Path

import pytest

from agent.group import Group
from agent.pressure import OOMD_MARK, is_marked_by_oomd, pressure_variables


def group_at(*directories: Path) -> Group:
    return Group("g", tuple(str(directory / "cgroup.procs") for directory in directories))


def test_a_group_with_a_pressure_file_is_told_of_by_systemds_protocol(tmp_path: Path) -> None:
    (tmp_path / "memory.pressure").touch()
    variables = pressure_variables(group_at(tmp_path))
    assert variables["MEMORY_PRESSURE_WATCH"] == str(tmp_path / "memory.pressure")
    assert base64.b64decode(variables["MEMORY_PRESSURE_WRITE"]) == b"some 200000 2000000\0"


def test_a_group_without_one_leaves_the_environment_alone(tmp_path: Path) -> None:
    assert pressure_variables(group_at(tmp_path)) == {}
    assert pressure_variables(Group("tree")) == {}


@pytest.mark.parametrize(
    ("mark", "is_marked"), [(b"2", True), (b"0", False), (b"x", False), (None, False)]
)
def test_only_a_count_above_0_is_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: bytes | None, is_marked: bool
) -> None:
    other = tmp_path / "other"

    def getxattr(path: str, name: str) -> bytes:
        assert name == OOMD_MARK
        if path == str(other) or mark is None:
            raise OSError(errno.ENODATA, "No data available")
        return mark

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert is_marked_by_oomd(group_at(other, tmp_path)) is is_marked
