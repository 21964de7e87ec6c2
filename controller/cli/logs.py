"""Prints a task's output for `mass task logs`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import BinaryIO

from mass.units import told_apart
from mass.v1 import task_pb2, types_pb2

from controller.cli.follow import OutputFollower, copy_output
from controller.cli.output import print_json
from controller.cli.session import Session
from controller.core.errors import InvalidRequest

TAIL_BYTES_MAX = 64 << 10  # as much as the controller keeps of each output


@dataclass(frozen=True, slots=True)
class LogChoice:
    """Which output of which task is wanted; attempt 0 is the latest, tail_bytes 0 is all."""

    task_id: str
    follow: bool
    attempt: int
    tail_bytes: int
    stdout: bool
    stderr: bool

    def requests(self) -> dict[str, task_pb2.ReadTaskLogRequest]:
        """Return one request for each output that is wanted, by the output's name."""
        streams = {
            "stdout": (self.stdout, types_pb2.OUTPUT_STREAM_STDOUT),
            "stderr": (self.stderr, types_pb2.OUTPUT_STREAM_STDERR),
        }
        return {
            name: task_pb2.ReadTaskLogRequest(
                id=self.task_id,
                stream=stream,
                follow=self.follow,
                attempt=self.attempt,
                tail_bytes=self.tail_bytes,
            )
            for name, (wanted, stream) in streams.items()
            if wanted
        }


def print_logs(session: Session, choice: LogChoice) -> None:
    """Print the output; both together go to our stdout and stderr, one alone goes to stdout.

    Raises:
        InvalidRequest: following as JSON, or a tail above 64 KiB.
    """
    if choice.tail_bytes > TAIL_BYTES_MAX:
        tail, most = told_apart(choice.tail_bytes, TAIL_BYTES_MAX)
        raise InvalidRequest(f"tail of {tail} is above the bound of {most}")
    requests = choice.requests()
    if session.json:
        if choice.follow:
            raise InvalidRequest("-f and -o json do not go together; leave out one of them")
        print_json(_collect(session, requests))
        return
    # Checks the id at once: following an unknown task would otherwise fail twice.
    session.client.task(choice.task_id)
    targets: list[tuple[task_pb2.ReadTaskLogRequest, BinaryIO]] = [
        (request, sys.stderr.buffer if name == "stderr" and choice.stdout else sys.stdout.buffer)
        for name, request in requests.items()
    ]
    if not choice.follow:
        for request, sink in targets:
            copy_output(session, request, sink)
        return
    follower = OutputFollower(session, targets)
    follower.join(None)
    if follower.error is not None:
        raise follower.error


def _collect(
    session: Session, requests: dict[str, task_pb2.ReadTaskLogRequest]
) -> dict[str, str | list[str] | None]:
    """Return the outputs as text; what is not UTF-8 is shown with replacement characters."""
    answer: dict[str, str | list[str] | None] = {"stdout": None, "stderr": None}
    notes: list[str] = []
    for name, request in requests.items():
        parts = list(session.client.read_log(request))
        answer[name] = b"".join(data for data, _ in parts).decode(errors="replace")
        notes.extend(note for _, note in parts if note)
    answer["notes"] = notes
    return answer
