"""Ends on disk: kept until they are acknowledged, read back after a crash."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from agent.attempt import Ended, GuardStep, GuardStepKind, OomCause, Outcome
from agent.spool import Spool, WorkDirRefused

END = Ended(
    Outcome(exit_code=3, memory_peak_bytes=7, started_at_ns=1, ended_at_ns=2, start_error="é"),
    OomCause.CHILD_ONLY,
    timed_out=True,
    stopped=False,
)
KILLED = Ended(
    Outcome(signal=9), OomCause.UNSPECIFIED, timed_out=False, stopped=True, agent_stopped=True
)

STEP = GuardStep(
    5, GuardStepKind.KILL, (4, 2), 95, 100, 1.5, 0.25, 3.0, task_memory_used_bytes=40, reason="é"
)
GUARDED = Ended(Outcome(signal=9), OomCause.GUARD, timed_out=False, stopped=False, guard=STEP)


def reopened(spool: Spool, work_dir: Path) -> Spool:
    """Return the spool of the next life."""
    spool.close()
    return Spool(work_dir)


def test_ends_are_read_back_in_the_order_of_their_attempts(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for key, end in (((10, 1), KILLED), ((4, 2), GUARDED), ((2, 3), END)):
        spool.save(key, end)
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((2, 3), END), ((4, 2), GUARDED), ((10, 1), KILLED)]
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


def test_a_removed_end_does_not_come_back_beside_one_that_is_owed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.save((1, 1), END)
    spool.save((2, 1), KILLED)
    spool.remove((1, 1))
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((2, 1), KILLED)]
    spool.close()


def test_the_file_is_empty_when_nothing_is_owed_and_bounded_when_something_always_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.spool.FILE_BYTES_MAX", 4_096)
    spool, ends = Spool(tmp_path), tmp_path / "reports" / "ends"
    for task_id in range(1, 200):
        spool.save((task_id, 1), END)
        spool.remove((task_id - 1, 1))
        assert 0 < ends.stat().st_size < 5_000
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((199, 1), END)]
    spool.remove((199, 1))
    assert ends.stat().st_size == 0
    spool.close()


def test_half_a_line_is_dropped_and_damaged_ones_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    spool.save((5, 1), END)
    bad = [b"not json", b'[2, 1, {"exit_code": 0}]', b"7", b"[1, 1, 7]", b"0" * 70_000]
    with (tmp_path / "reports" / "ends").open("ab") as ends:
        ends.write(b"\n".join(bad) + b'\n[6, 1, {"exit')
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((5, 1), END)]
    assert (tmp_path / "reports" / "ends.bad").read_bytes().split(b"\n")[:-1] == bad
    assert caplog.text.count("report set aside") == 5
    spool.save((6, 1), KILLED)
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((5, 1), END), ((6, 1), KILLED)]
    spool.close()


def test_a_full_disk_refuses_an_end_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, write = Spool(tmp_path), os.write
    spool.save((1, 1), END)
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(OSError, match="No space left"):
        spool.save((2, 1), END)
    monkeypatch.undo()
    spool.save((3, 1), KILLED)
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((1, 1), END), ((3, 1), KILLED)]
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


def test_ends_are_read_back_from_a_full_disk_and_the_next_is_kept_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, ends = Spool(tmp_path), tmp_path / "reports" / "ends"
    spool.save((1, 1), END)
    ends.write_bytes(ends.read_bytes() + b'damaged\n[2,1,{"exit_')
    spool = reopened(spool, tmp_path)
    with monkeypatch.context() as full:
        full.setattr(Spool, "_rewrite", _refuse)
        full.setattr(Path, "with_name", _refuse)
        assert spool.load() == [((1, 1), END)]
    spool.save((3, 1), KILLED)
    spool = reopened(spool, tmp_path)
    assert spool.load() == [((1, 1), END), ((3, 1), KILLED)]
    spool.close()


def _refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_spool_knows_of_which_cluster_it_is(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.cluster_id == ""
    spool.join("one")
    spool.join("two")
    spool.close()
    again = Spool(tmp_path)
    assert again.cluster_id == "two"
    again.close()
