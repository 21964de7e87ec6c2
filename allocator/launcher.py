"""Starts processes through parked launchers: the slow part happens before anyone asks.

Owns the compiled `mass-launcher` (see launcher.c for what it does and the bytes it speaks) and a
pool of launchers that wait inside their own prepared place, a cgroup as a rule. The rule kept: a
request is executed at most once. A launcher that dies before it announces exec never ran
anything, so only that case is tried again.

Everything here belongs to one asyncio loop, and the loop's thread must live as long as the
processes: the kernel ends them when the thread that spawned them ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

LOG = logging.getLogger(__name__)

REQUEST_MAGIC = 0x314C534D
REQUEST_BYTES_MAX = 2 * 1024 * 1024  # the bound of launcher.c, and Linux's own default
REQUEST_STRINGS_MAX = 65_536
RLIMITS_MAX = 16
# Joining a group takes 20 ms; a machine that thrashes may need far longer, but not for ever.
READY_TIMEOUT_SECONDS = 20.0
EXEC_TIMEOUT_SECONDS = 20.0
REFILL_PAUSES_SECONDS = (0.2, 1.0, 5.0, 30.0)  # after the first, second, ... failure to park
STARTS_MAX = 2  # one launcher that died parked is answered by one new launcher

_READY, _EXEC, _FAILED = b"R", b"E", b"F"
_SOCKET_FD = 3


class LauncherError(Exception):
    """A process could not be started."""


class LauncherMissing(LauncherError):
    """The compiled mass-launcher is not there; reinstalling helps, trying again does not."""


class RequestRefused(LauncherError):
    """The request breaks a bound or cannot be said to the kernel; trying again does not help."""


class LauncherDied(LauncherError):
    """The launcher ended before exec; nothing of the request ever ran."""


class StepFailed(LauncherError):
    """One step between request and exec failed; nothing of the request ever ran.

    `step` is one of request, receive, stdout, stderr, chdir, rlimit, exec, or a step of parking:
    signals, setsid, oom_score_adj, stdin, join. `code` is the errno.
    """

    def __init__(self, step: str, code: int, subject: str = "") -> None:
        named = f"{step} {subject}" if subject else step
        super().__init__(f"{named}: {os.strerror(code)}")
        self.step = step
        self.code = code


class Place(Protocol):
    """Where a launcher waits: it writes itself into each of these cgroup.procs files, in order."""

    @property
    def join_paths(self) -> Sequence[str]: ...


PlaceT = TypeVar("PlaceT", bound=Place)


@dataclass(frozen=True, slots=True)
class Request:
    """What a parked launcher becomes.

    argv[0] is searched on the PATH of `environment`, which replaces the agent's altogether. The
    output files are opened for append and created with mode 0644; the same path twice is one
    file. `rlimits` are (resource, soft, hard) as in `resource.setrlimit`.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str
    stdout_path: str
    stderr_path: str
    rlimits: tuple[tuple[int, int, int], ...] = ()

    def encode(self) -> bytes:
        """Return the bytes launcher.c reads.

        Raises:
            RequestRefused: empty argv, a NUL byte, a bad variable name, or beyond a bound.
        """
        if not self.argv or not self.argv[0]:
            raise RequestRefused("the command is empty: argv needs a program")
        count = len(self.argv) + len(self.environment)
        if count > REQUEST_STRINGS_MAX:
            raise RequestRefused(
                f"{count} arguments and variables, at most {REQUEST_STRINGS_MAX} are allowed"
            )
        if len(self.rlimits) > RLIMITS_MAX:
            raise RequestRefused(f"{len(self.rlimits)} rlimits, at most {RLIMITS_MAX} are allowed")
        for name in self.environment:
            if not name or "=" in name:
                raise RequestRefused(f"environment variable name {name!r} is empty or contains '='")
        variables = (f"{name}={value}" for name, value in self.environment.items())
        paths = (self.working_directory, self.stdout_path, self.stderr_path)
        parts = [struct.pack("=III", len(self.argv), len(self.environment), len(self.rlimits))]
        parts += [struct.pack("=IQQ", *_unsigned(limit)) for limit in self.rlimits]
        parts += [_encode_string(text) for text in (*paths, *self.argv, *variables)]
        body = b"".join(parts)
        if len(body) > REQUEST_BYTES_MAX:
            raise RequestRefused(
                f"arguments and environment take {len(body)} bytes, "
                f"at most {REQUEST_BYTES_MAX} are allowed"
            )
        return struct.pack("=II", REQUEST_MAGIC, len(body)) + body

    def subject_of(self, step: str) -> str:
        """Return the thing that a failed step was about, for its message."""
        subjects = {
            "stdout": self.stdout_path,
            "stderr": self.stderr_path,
            "chdir": self.working_directory,
            "exec": self.argv[0],
        }
        return subjects.get(step, "")


def _unsigned(limit: tuple[int, int, int]) -> tuple[int, int, int]:
    """Turn RLIM_INFINITY, -1 in Python, into the all-ones word that C means."""
    resource, soft, hard = limit
    return resource, soft & 0xFFFF_FFFF_FFFF_FFFF, hard & 0xFFFF_FFFF_FFFF_FFFF


def _encode_string(text: str) -> bytes:
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise RequestRefused(f"{text[:80]!r} contains a NUL byte")
    return struct.pack("=I", len(encoded)) + encoded + b"\0"


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended; both None when someone else collected the status."""

    exit_code: int | None
    signal: int | None


@dataclass(slots=True)
class ChildProcess:
    """A child of this process, held by a pidfd so that its pid can never mean another process."""

    pid: int
    pidfd: int = field(init=False)

    def __post_init__(self) -> None:
        self.pidfd = os.pidfd_open(self.pid)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back once from the running loop when the process has ended."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self.pidfd)
            callback()

        loop.add_reader(self.pidfd, ended)

    def forget_end(self) -> None:
        """Withdraw on_end."""
        asyncio.get_running_loop().remove_reader(self.pidfd)

    def send_signal(self, number: int) -> None:
        """Signal this very process; nothing happens when it has already ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return  # ended: what the caller wanted, or too late for it

    def collect(self) -> ExitStatus:
        """Collect the status of the ended process and let go of it; to be called once."""
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            result = None
        finally:
            os.close(self.pidfd)
        if result is None:
            return ExitStatus(None, None)
        if result.si_code == os.CLD_EXITED:
            return ExitStatus(result.si_status, None)
        return ExitStatus(None, result.si_status)


class ParkedLauncher(Generic[PlaceT]):
    """One launcher inside its place, ready for one request."""

    def __init__(self, place: PlaceT, process: ChildProcess, channel: socket.socket) -> None:
        self.place = place
        self.process = process
        self._channel = channel

    @classmethod
    async def park(cls, place: PlaceT, executable: str) -> ParkedLauncher[PlaceT]:
        """Spawn a launcher and return it when it waits inside its place.

        Raises:
            LauncherMissing, StepFailed, LauncherDied: the process is gone, the place is free.
        """
        ours, theirs = socket.socketpair()
        try:
            pid = os.posix_spawn(
                executable,
                [os.path.basename(executable), str(os.getpid()), *place.join_paths],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD)],
            )
        except OSError as error:
            ours.close()
            raise LauncherMissing(
                f"{executable} cannot be run ({error.strerror}): the installation is incomplete"
            ) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        launcher = cls(place, ChildProcess(pid), ours)
        try:
            answer = await launcher._receive(READY_TIMEOUT_SECONDS)
            if answer[:1] == _FAILED:
                raise await launcher._failure(answer, ", ".join(place.join_paths))
            if answer != _READY:
                raise LauncherDied(f"launcher {pid} ended before it was ready")
        except BaseException:
            await launcher.dismiss()
            raise
        return launcher

    async def start(self, request: bytes, described: Request) -> ChildProcess:
        """Become the request; return the process when exec has happened.

        On any error the caller owns the launcher still and must dismiss it.

        Raises:
            StepFailed: with the step that failed. LauncherDied: it ended before exec.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(EXEC_TIMEOUT_SECONDS):
                await loop.sock_sendall(self._channel, request)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise LauncherDied(f"launcher {self.process.pid} ended while it was parked") from error
        except TimeoutError as error:
            raise LauncherDied(f"launcher {self.process.pid} does not read its request") from error
        answer = b""
        while True:
            chunk = await self._receive(EXEC_TIMEOUT_SECONDS)
            if not chunk:
                break
            answer += chunk
        if not answer.startswith(_EXEC):
            if answer.startswith(_FAILED):
                raise await self._failure(answer, described)
            raise LauncherDied(f"launcher {self.process.pid} ended before exec")
        if answer != _EXEC:
            raise await self._failure(answer[1:], described)
        self._channel.close()
        return self.process

    async def dismiss(self) -> ExitStatus:
        """End the launcher, or whatever it has become, and wait until it is gone."""
        self._channel.close()
        self.process.send_signal(signal.SIGKILL)
        ended = asyncio.get_running_loop().create_future()
        self.process.on_end(lambda: ended.cancelled() or ended.set_result(None))
        try:
            await asyncio.shield(ended)
        finally:
            if not ended.done():
                self.process.forget_end()
        return self.process.collect()

    async def _receive(self, timeout_seconds: float) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await loop.sock_recv(self._channel, 4096)
        except ConnectionResetError:
            return b""
        except TimeoutError as error:
            raise LauncherDied(
                f"launcher {self.process.pid} said nothing for {timeout_seconds:g} s"
            ) from error

    async def _failure(self, answer: bytes, about: Request | str) -> StepFailed:
        """Read the rest of a failure report and return it as an error."""
        while chunk := await self._receive(EXEC_TIMEOUT_SECONDS):
            answer += chunk
        code = struct.unpack_from("=i", answer, 1)[0] if len(answer) >= 5 else errno.EPROTO
        step = answer[5:].decode("ascii", "replace") or "launcher"
        return StepFailed(step, code, about if isinstance(about, str) else about.subject_of(step))
