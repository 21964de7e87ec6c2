"""Output files: the newest part is kept, and an offset goes on meaning the same byte."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.output import OutputFile, TrimWay, attempt_paths

BOUND = 256 * 1024
LINE = b"%07d: some words that a task prints\n"
WAYS = list(TrimWay)


def lines(first: int, count: int) -> bytes:
    return b"".join(LINE % number for number in range(first, first + count))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "stdout")


@pytest.fixture
def memory_path() -> Iterator[str]:
    """A path on tmpfs, which cannot collapse."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm is not writable")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield os.path.join(directory, "stdout")


def append(path: str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def output(path: str, way: TrimWay) -> OutputFile:
    """Return a file that is trimmed in one way only, where its file system knows that way."""
    probe = path + "-probe"
    append(probe, b"x" * 2 * BOUND)
    try:
        OutputFile(probe, bytes_max=BOUND, ways=(way,)).trim()
    except OSError as error:
        pytest.skip(f"the file system cannot {way.value}: {error.strerror}")
    return OutputFile(path, bytes_max=BOUND, ways=(way,))


def test_paths_name_task_and_attempt() -> None:
    paths = attempt_paths("/data", 17, 2)
    assert (paths.stdout, paths.stderr) == ("/data/tasks/17/2/stdout", "/data/tasks/17/2/stderr")


def test_file_that_does_not_exist_yet_is_empty(path: str) -> None:
    file = OutputFile(path)
    assert (file.total_bytes, file.first_offset, file.trim()) == (0, 0, 0)
    assert file.tail().data == b""
    assert file.read(500).data == b""


def test_file_within_its_bound_is_left_alone(path: str) -> None:
    append(path, b"x" * BOUND)
    file = OutputFile(path, bytes_max=BOUND)
    assert file.trim() == 0
    assert Path(path).read_bytes() == b"x" * BOUND


@pytest.mark.parametrize("way", WAYS)
def test_trim_keeps_the_newest_part_within_the_bound(path: str, way: TrimWay) -> None:
    written = lines(0, 20_000)
    append(path, written)
    file = output(path, way)
    dropped = file.trim()
    kept = file.read(0, BOUND)
    assert dropped == file.first_offset == kept.offset
    assert kept.data == written[dropped:]
    assert BOUND // 2 < len(kept.data) <= BOUND
    assert os.stat(path).st_blocks * 512 <= BOUND + 8192


@pytest.mark.parametrize("way", WAYS)
def test_trimmed_file_begins_with_how_many_bytes_are_gone(path: str, way: TrimWay) -> None:
    written = lines(0, 20_000)
    append(path, written)
    file = output(path, way)
    dropped = file.trim()
    first_line = Path(path).read_bytes().split(b"\n")[0]
    assert first_line.rstrip() == b"[mass: %d bytes of older output dropped]" % dropped


@pytest.mark.parametrize("way", [TrimWay.COLLAPSE, TrimWay.COPY])
def test_trimmed_file_goes_on_with_a_whole_line(path: str, way: TrimWay) -> None:
    append(path, lines(0, 20_000))
    output(path, way).trim()
    second_line = Path(path).read_bytes().split(b"\n")[1]
    assert second_line + b"\n" == LINE % int(second_line[:7])


@pytest.mark.parametrize("way", WAYS)
def test_offsets_mean_the_same_bytes_after_many_trims(path: str, way: TrimWay) -> None:
    file = output(path, way)
    written = b""
    for round_number in range(12):
        piece = lines(round_number * 3_000, 3_000)
        append(path, piece)
        written += piece
        file.trim()
        assert file.total_bytes == len(written)
        for offset in (file.first_offset, file.first_offset + 1_001, len(written) - 77):
            chunk = file.read(offset, 500)
            assert chunk.offset == offset
            assert chunk.data == written[offset : offset + 500]
    assert file.first_offset > 0


@pytest.mark.parametrize("way", WAYS)
def test_follower_gets_every_byte_once_or_learns_the_gap(path: str, way: TrimWay) -> None:
    file = output(path, way)
    written = b""
    followed = b""
    offset = 0
    for round_number in range(10):
        piece = lines(round_number * 2_000, 2_000)
        append(path, piece)
        written += piece
        while (chunk := file.new_bytes(offset)).data:
            assert chunk.offset == offset
            followed += chunk.data
            offset = chunk.next_offset
        file.trim()
    assert followed == written
    assert file.new_bytes(0).offset == file.first_offset > 0


@pytest.mark.parametrize("way", WAYS)
def test_later_life_finds_the_state_in_the_file(path: str, way: TrimWay) -> None:
    written = lines(0, 20_000)
    append(path, written)
    earlier = output(path, way)
    earlier.trim()
    later = output(path, way)
    assert later.first_offset == earlier.first_offset
    assert later.total_bytes == len(written)
    append(path, lines(20_000, 9_000))
    written += lines(20_000, 9_000)
    assert later.trim() > 0
    assert later.tail(3_000).data == written[-3_000:]


def test_output_without_line_ends_is_trimmed_too(path: str) -> None:
    append(path, b"." * (3 * BOUND))
    file = OutputFile(path, bytes_max=BOUND)
    dropped = file.trim()
    assert file.read(0, BOUND).data == b"." * (3 * BOUND - dropped)


def test_file_system_without_collapse_gives_back_the_memory(memory_path: str) -> None:
    written = lines(0, 20_000)
    append(memory_path, written)
    file = OutputFile(memory_path, bytes_max=BOUND)
    dropped = file.trim()
    assert file.read(0, BOUND).data == written[dropped:]
    assert os.stat(memory_path).st_blocks * 512 <= BOUND + 8192


def test_running_writer_loses_nothing_but_the_oldest(path: str) -> None:
    bound = 1024 * 1024
    script = f"exec >> '{path}'; seq -f %08.0f 0 1199999"
    output(path, TrimWay.COLLAPSE)
    file = OutputFile(path, bytes_max=bound)
    with subprocess.Popen(["/bin/sh", "-c", script]) as writer:
        trims = 0
        while writer.poll() is None:
            trims += file.trim() > 0
            time.sleep(0.001)
    file.trim()
    assert trims > 0
    total = 9 * 1_200_000
    assert file.total_bytes == total
    kept = file.read(0, 2 * bound)
    numbers = [int(line) for line in kept.data.split()]
    assert numbers == list(range(1_200_000 - len(numbers), 1_200_000))
    assert len(numbers) * 9 >= bound // 2


def test_symbolic_link_in_the_place_of_the_file_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x" * (2 * BOUND))
    file = OutputFile(path, bytes_max=BOUND)
    os.symlink(tmp_path / "precious", path)
    with pytest.raises(OSError, match="symbolic"):
        file.trim()
    assert (tmp_path / "precious").stat().st_size == 2 * BOUND


def test_device_as_output_has_nothing_to_keep() -> None:
    file = OutputFile("/dev/null")
    assert (file.trim(), file.tail().data) == (0, b"")
