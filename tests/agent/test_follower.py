"""Outputs: what is new is shown once, a slow reader skips, old files go and results stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mass.v1 import agent_pb2

from agent import wire
from agent.follower import Follower

KEY = (4, 1)


def begun(work_dir: Path) -> tuple[Follower, Path]:
    """Return a follower and the standard output of a running attempt."""
    follower = Follower(work_dir)
    _, stdout_path, _ = follower.begin(KEY)
    return follower, Path(stdout_path)


def read(follower: Follower, **fields: int) -> agent_pb2.LogChunk:
    request = agent_pb2.ReadLog(request_id=1, task_id=4, attempt=1)
    for name, value in fields.items():
        setattr(request, name, value)
    return follower.answer(request).log


def test_only_outputs_that_grew_are_looked_at(tmp_path: Path) -> None:
    follower, stdout = begun(tmp_path)
    assert follower.look() == []
    stdout.write_bytes(b"a")
    assert follower.look() == [(KEY, wire.STDOUT)]
    assert follower.look() == []


def test_a_slow_stream_skips_to_the_newest_output(tmp_path: Path) -> None:
    follower, stdout = begun(tmp_path)
    stdout.write_bytes(b"old" + b"n" * wire.TAIL_BYTES_MAX)
    message = follower.chunk(KEY, wire.STDOUT)
    assert message is not None
    assert message.output.offset_bytes == 3
    assert message.output.data == b"n" * wire.TAIL_BYTES_MAX
    assert follower.chunk(KEY, wire.STDOUT) is None
    assert follower.chunk((9, 9), wire.STDOUT) is None


def test_the_end_of_a_log_is_only_told_after_the_attempt_has_ended(tmp_path: Path) -> None:
    follower, stdout = begun(tmp_path)
    stdout.write_bytes(b"abc")
    assert (read(follower).data, read(follower).end) == (b"abc", False)
    follower.end(KEY)
    assert read(follower, offset_bytes=1).data == b"bc"
    assert read(follower, offset_bytes=1).end
    assert not read(follower, offset_bytes=0, length_bytes=1).end
    assert read(follower, offset_bytes=99).offset_bytes == 3


def test_a_log_request_is_bounded_and_checked(tmp_path: Path) -> None:
    follower, stdout = begun(tmp_path)
    stdout.write_bytes(b"x" * 500_000)
    assert len(read(follower, length_bytes=1 << 40).data) == wire.LOG_BYTES_MAX
    assert len(read(follower).data) == wire.LOG_BYTES_DEFAULT
    assert len(read(follower, offset_bytes=-1).data) == wire.LOG_BYTES_DEFAULT
    assert read(follower, offset_bytes=-2).error == "offset -2 length 0 cannot be"
    assert read(follower, length_bytes=-1).error == "offset 0 length -1 cannot be"
    assert read(follower, stream=9).error == "output stream 9 is unknown"
    assert "no output of task 5" in read(follower, task_id=5).error


def test_the_tail_of_an_end_is_the_newest_64_kib(tmp_path: Path) -> None:
    follower, stdout = begun(tmp_path)
    assert follower.tail(KEY, wire.STDOUT) == b""
    stdout.write_bytes(b"old" + b"n" * wire.TAIL_BYTES_MAX)
    follower.end(KEY)
    assert follower.tail(KEY, wire.STDOUT) == b"n" * wire.TAIL_BYTES_MAX


def test_outputs_of_the_oldest_ended_attempts_go_and_results_stay(tmp_path: Path) -> None:
    follower = Follower(tmp_path, attempts_kept=2)
    directories = []
    for task_id in range(1, 6):
        directory, stdout_path, _ = follower.begin((task_id, 1))
        directories.append(Path(directory))
        Path(stdout_path).write_bytes(b"x")
    (directories[1] / "result").write_text("mine")
    for task_id in range(1, 5):
        follower.end((task_id, 1))
    assert not directories[0].parent.exists()
    assert [path.name for path in directories[1].iterdir()] == ["result"]
    assert all((directory / "stdout").exists() for directory in directories[2:])


def test_an_earlier_lifes_outputs_count_too(tmp_path: Path) -> None:
    follower, stdout = begun(tmp_path)
    stdout.write_bytes(b"x")
    follower.end(KEY)
    assert Follower(tmp_path, attempts_kept=1).tail(KEY, wire.STDOUT) == b"x"
    Follower(tmp_path, attempts_kept=0)
    assert not stdout.exists()


def test_a_task_that_spoils_its_outputs_harms_only_itself(tmp_path: Path) -> None:
    follower, stdout = begun(tmp_path)
    stdout.symlink_to("/etc/passwd")
    assert follower.look() == [(KEY, wire.STDOUT)]
    assert follower.chunk(KEY, wire.STDOUT) is None
    assert follower.tail(KEY, wire.STDOUT) == b""
    assert "symbolic links" in read(follower).error
    stdout.unlink()
    stdout.parent.rmdir()
    stdout.parent.write_text("a file in the place of the directory")
    assert follower.look() == [(KEY, wire.STDOUT)]
    assert follower.tail(KEY, wire.STDOUT) == b""
    follower.end(KEY)
    Follower(tmp_path, attempts_kept=0)


def attempt_of(follower: Follower, task_id: int, attempt: int = 1) -> Path:
    """Begin an attempt, make its outputs as the launcher does, and return its directory."""
    directory, *outputs = follower.begin((task_id, attempt))
    for path in outputs:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
    return Path(directory)


def ended(follower: Follower, task_id: int) -> Path:
    """Let an attempt begin and end that writes nothing."""
    directory = attempt_of(follower, task_id)
    follower.end((task_id, 1))
    return directory


def test_what_a_silent_attempt_left_serves_the_next_one(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    first = ended(follower, 4)
    inodes = {(first / name).stat().st_ino for name in ("stdout", "stderr")}
    second = attempt_of(follower, 5)
    assert {(second / name).stat().st_ino for name in ("stdout", "stderr")} == inodes
    assert not first.parent.exists()
    # The silent attempt's output is still known to be empty, not unknown.
    assert follower.tail(KEY, wire.STDOUT) == b""
    assert (read(follower).error, read(follower).data, read(follower).end) == ("", b"", True)


@pytest.mark.parametrize("left", ["text", "file", "link", "mode", "directory mode", "attempt"])
def test_what_is_not_as_it_was_made_serves_nobody(tmp_path: Path, left: str) -> None:
    follower = Follower(tmp_path)
    directory = ended(follower, 4)
    stdout = directory / "stdout"
    match left:
        case "text":
            stdout.write_text("late")
        case "file":
            (directory / "error").touch()
        case "link":
            os.link(stdout, tmp_path / "elsewhere")
        case "mode":
            stdout.chmod(0o600)
        case "directory mode":
            directory.chmod(0o700)
        case "attempt":
            attempt_of(follower, 4, attempt=2)
    inode = stdout.stat().st_ino
    other = attempt_of(follower, 5)
    assert stdout.stat().st_ino == inode
    assert sorted(path.name for path in other.iterdir()) == ["stderr", "stdout"]


@pytest.mark.parametrize("mode", ["r", "a"])
def test_outputs_that_somebody_has_open_serve_nobody(tmp_path: Path, mode: str) -> None:
    follower = Follower(tmp_path)
    directory = ended(follower, 4)
    with (directory / "stdout").open(mode):
        attempt_of(follower, 5)
    assert (directory / "stdout").exists()


def test_only_first_attempts_serve_first_attempts(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    directory = ended(follower, 4)
    attempt_of(follower, 5, attempt=2)
    assert directory.exists()
    retried = attempt_of(follower, 6, attempt=2)
    follower.end((6, 2))
    attempt_of(follower, 7)  # takes what task 4 left
    attempt_of(follower, 8)
    assert (directory.exists(), retried.exists()) == (False, True)


def test_files_of_a_running_attempt_stay_when_its_key_has_ended_before(tmp_path: Path) -> None:
    follower = Follower(tmp_path, attempts_kept=1)
    first = attempt_of(follower, 4)
    follower.end(KEY)
    assert attempt_of(follower, 4, attempt=1) == first
    for task_id in (5, 6):
        (attempt_of(follower, task_id) / "stdout").write_text("other")
        follower.end((task_id, 1))
    assert sorted(path.name for path in first.iterdir()) == ["stderr", "stdout"]


def test_what_is_set_aside_is_kept_and_answers_for_no_later_attempt(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert follower.set_aside() is None
    (attempt_of(follower, 4) / "stdout").write_text("old")
    follower.end(KEY)
    ended(follower, 5)
    aside = follower.set_aside()
    assert aside is not None
    assert (Path(aside) / "4" / "1" / "stdout").read_text() == "old"
    assert read(follower).error == "this node keeps no output of task 4 attempt 1"
    _, stdout, _ = follower.begin(KEY)
    assert not Path(stdout).exists()
    assert read(follower).data == b""
    assert (Path(aside) / "5" / "1" / "stdout").exists()
