"""Ends on disk: kept until they are acknowledged, read back after a crash."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent.attempt import Ended, OomCause, Outcome
from agent.spool import Spool, WorkDirRefused

END = Ended(
    Outcome(exit_code=3, memory_peak_bytes=7, started_at_ns=1, ended_at_ns=2, start_error="é"),
    OomCause.CHILD_ONLY,
    timed_out=True,
    stopped=False,
)
KILLED = Ended(Outcome(signal=9), OomCause.UNSPECIFIED, timed_out=False, stopped=True)


def reopened(spool: Spool, work_dir: Path) -> Spool:
    """Return the spool of the next life."""
    spool.close()
    return Spool(work_dir)


def test_ends_are_read_back_in_the_order_of_their_attempts(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for key, end in (((10, 1), KILLED), ((2, 3), END)):
        spool.save(key, end)
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((2, 3), END), ((10, 1), KILLED)]
    spool.close()


def test_a_removed_end_does_not_come_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.save((1, 1), END)
    spool = reopened(spool, tmp_path)
    spool.load()
    spool.remove((1, 1))
    spool.remove((1, 1))
    spool = reopened(spool, tmp_path)
    assert spool.load() == []
    spool.close()


def test_a_half_written_end_is_dropped_and_a_damaged_one_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    reports = tmp_path / "reports"
    (reports / "1.1.json.new").write_text("{")
    (reports / "2.1.json").write_text('{"exit_code": 0}')
    (reports / "3.1.json").write_text("not json")
    (reports / "4.1.json").write_text("0" * 70_000)
    (reports / "x.json").write_text("{}")
    spool.save((5, 1), END)
    assert spool.load() == [((5, 1), END)]
    names = sorted(path.name for path in reports.iterdir())
    assert names == ["2.1.bad", "3.1.bad", "4.1.bad", "5.1.json", "x.bad"]
    assert caplog.text.count("report set aside") == 4
    spool.close()


def test_one_agent_has_a_work_directory(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    message = f"work directory {tmp_path} is used by another agent (process {os.getpid()})"
    with pytest.raises(WorkDirRefused, match=re.escape(message)):
        Spool(tmp_path)
    reopened(spool, tmp_path).close()


def test_a_work_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkDirRefused, match=r"work directory .*file/w: Not a directory"):
        Spool(tmp_path / "file" / "w")
