"""`mass reservation` and `mass task wait --progress` as people and programs read them."""

from __future__ import annotations

import io

import pytest
from cli.fake_controller import task
from mass.v1 import memory_pb2

from controller.cli.output import print_table
from controller.cli.progress import Progress
from controller.cli.records import reservation_record
from controller.cli.reservations import COLUMNS, reservation_row


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_says_how_far_it_is_and_how_long_it_takes() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(stream, clock=lambda: now[0])
    tasks = {str(n): task(str(n)) for n in range(1, 5)}
    now[0] = 5.0
    progress.show(tasks)
    tasks["1"] = task("1", "SUCCEEDED")
    now[0] = 9.0
    progress.show(tasks)  # too soon after the first
    now[0] = 15.0
    progress.show(tasks)
    assert stream.getvalue().splitlines() == [
        "0 of 4 ended, 4 running",
        "1 of 4 ended, 3 running, about 30s left",
    ]


def test_progress_on_a_terminal_stays_in_its_line_and_is_cleared() -> None:
    now = [0.0]
    stream = Terminal()
    progress = Progress(stream, clock=lambda: now[0])
    now[0] = 0.3
    progress.show({"1": task("1")})
    progress.clear()
    assert stream.getvalue() == "\r0 of 1 ended, 1 running\x1b[K\r\x1b[K"


def test_table_of_reservations_shows_the_end_to_the_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = memory_pb2.Reservation(id="1", node_id="n1", memory_bytes=1 << 30)
    made.expires_at.FromNanoseconds(60_123_456_789)
    print_table(COLUMNS, [reservation_row(made)])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "NODE", "MEMORY", "EXPIRES", "USER", "PURPOSE"]
    assert row.split() == ["1", "n1", "1", "GiB", "1970-01-01T00:01:00Z", "-", "-"]


def test_json_of_a_reservation_has_stable_keys() -> None:
    made = memory_pb2.Reservation(id="1", node_id="n1", memory_bytes=1 << 30)
    made.created_at.FromSeconds(0)
    made.expires_at.FromSeconds(60)
    assert reservation_record(made) == {
        "id": "1",
        "node_id": "n1",
        "memory_bytes": 1 << 30,
        "purpose": None,
        "user": None,
        "created_at": "1970-01-01T00:00:00Z",
        "expires_at": "1970-01-01T00:01:00Z",
    }
