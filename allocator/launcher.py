"""Starts processes through parked launchers: the slow part happens before anyone asks.

Owns the compiled `mass-launcher` (see launcher.c for what it does and the bytes it speaks), which
forks launchers, and a pool of these that wait inside their own prepared place, a cgroup as a rule.
The rule kept: a request is executed at most once. A launcher that dies before it announces exec
never ran anything, so only that case is tried again.

Everything here belongs to one asyncio loop, and the loop's thread must live as long as the
processes: the kernel ends them when the thread that spawned `mass-launcher` ends
(PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from allocator.children import ChildProcess, adopt
from allocator.launch_request import LauncherDied, LauncherMissing, Request, StepFailed

LOG = logging.getLogger(__name__)

# Joining a group takes 20 ms; a machine that thrashes may need far longer, but not for ever.
READY_TIMEOUT_SECONDS = 20.0
EXEC_TIMEOUT_SECONDS = 20.0
REFILL_PAUSES_SECONDS = (0.2, 1.0, 5.0, 30.0)  # after the first, second, ... failure to park
STARTS_MAX = 2  # one launcher that died parked is answered by one new launcher

FORK_TIMEOUT_SECONDS = 5.0  # 0.1 ms as a rule; the loop stands still meanwhile

_FORK, _READY, _EXEC, _FAILED = b"P", b"R", b"E", b"F"
_SOCKET_FD = 3


class Place(Protocol):
    """Where a launcher waits: it writes itself into each of these cgroup.procs files, in order."""

    @property
    def join_paths(self) -> Sequence[str]: ...


PlaceT = TypeVar("PlaceT", bound=Place)


class ForkServer:
    """The one `mass-launcher` process that forks launchers; it is spawned when first needed.

    Forking what is there takes a fifth of executing a program for each launcher. What it forks are
    children of this process. One that has died is replaced.
    """

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._process: ChildProcess | None = None
        self._channel: socket.socket | None = None

    def fork(self, join_paths: Sequence[str]) -> tuple[ChildProcess, socket.socket]:
        """Return a launcher that makes its way into these groups, and the socket to talk to it.

        Raises:
            LauncherMissing: the program is not there or cannot be run.
            StepFailed: the kernel cannot fork now, or not in time.
            LauncherDied: the server died twice in a row.
        """
        order = _FORK + b"".join(os.fsencode(path) + b"\0" for path in join_paths)
        try:
            return self._fork(order)
        except LauncherDied:
            # What it may have forked meanwhile finds its socket closed and ends. Nobody knows its
            # pid, so it stays a zombie until this process ends.
            return self._fork(order)

    def _fork(self, order: bytes) -> tuple[ChildProcess, socket.socket]:
        # One pair for each try: two launchers at one socket would share what is sent to it.
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                pid = self._ask(order, theirs)
            if pid < 0:
                raise StepFailed("fork", -pid)
            ours.setblocking(False)
            return adopt(pid), ours
        except BaseException:
            ours.close()
            raise

    def close(self) -> None:
        """End the server; launchers and tasks stay."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.collect()
            self._process = None

    def _ask(self, order: bytes, theirs: socket.socket) -> int:
        """Return the pid of a new launcher, or the negative errno of why there is none."""
        if self._channel is None:
            self._spawn()
        assert self._channel is not None
        try:
            socket.send_fds(self._channel, [order], [theirs.fileno()])
            answer = self._channel.recv(4)
        except TimeoutError as error:
            # It may still fork, so another try could make two.
            self.close()
            raise StepFailed("fork", errno.ETIMEDOUT) from error
        except OSError as error:
            self.close()
            raise LauncherDied(f"{self._executable} does not fork: {error}") from error
        except BaseException:
            self.close()  # its answer is not read: the next one would be taken for it
            raise
        if len(answer) < 4:
            self.close()
            raise LauncherDied(f"{self._executable} has ended")
        told: int = struct.unpack("=i", answer)[0]
        return told

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.posix_spawn(
                self._executable,
                [os.path.basename(self._executable), str(os.getpid())],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD)],
            )
        except OSError as error:
            ours.close()
            raise LauncherMissing(
                f"{self._executable} cannot be run ({error.strerror}): "
                "the installation is incomplete"
            ) from error
        finally:
            theirs.close()
        ours.settimeout(FORK_TIMEOUT_SECONDS)
        try:
            self._process, self._channel = adopt(pid), ours
        except BaseException:
            ours.close()
            raise


class ParkedLauncher(Generic[PlaceT]):
    """One launcher inside its place; after `start` its process is the task."""

    def __init__(self, place: PlaceT, process: ChildProcess, channel: socket.socket) -> None:
        self.place = place
        self.process = process
        self._channel = channel

    @classmethod
    def fork(cls, place: PlaceT, server: ForkServer) -> ParkedLauncher[PlaceT]:
        """Fork a launcher that makes its way into the place; about 0.1 ms.

        Raises: as `ForkServer.fork`.
        """
        return cls(place, *server.fork(place.join_paths))

    async def ready(self) -> None:
        """Return when the launcher waits inside its place.

        Raises:
            StepFailed: with the step of parking. LauncherDied: it ended on the way.
        """
        answer = await self._receive("park", READY_TIMEOUT_SECONDS)
        if answer.startswith(_FAILED):
            step, code = _parse_failure(await self._receive_rest("park", answer))
            raise StepFailed(step, code, ", ".join(self.place.join_paths) if step == "join" else "")
        if answer != _READY:
            raise LauncherDied(f"launcher {self.process.pid} ended before it was ready")

    async def start(self, request: Request) -> None:
        """Become the request; return when exec has happened.

        Raises:
            RequestRefused: the launcher is unharmed. StepFailed: with the step that failed.
            LauncherDied: it ended before exec, so nothing of the request ever ran.
        """
        encoded = request.encode()
        try:
            await self._send(encoded)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise LauncherDied(f"launcher {self.process.pid} ended while it was parked") from error
        except TimeoutError as error:
            raise StepFailed("receive", errno.ETIMEDOUT) from error
        answer = await self._receive_rest("exec", b"")
        failure = answer.removeprefix(_EXEC)
        if failure:
            step, code = _parse_failure(failure)
            raise StepFailed(step, code, request.subject_of(step))
        if answer != _EXEC:
            raise LauncherDied(f"launcher {self.process.pid} ended before exec")
        self._channel.close()

    def dismiss(self, gone: Callable[[], None]) -> None:
        """Kill the launcher, or what it has become, and call back from the loop when it is gone.

        Not a coroutine, so that nothing is left behind where a caller is cancelled.
        """
        self._channel.close()
        self.process.send_signal(signal.SIGKILL)

        def ended() -> None:
            self.process.collect()
            gone()

        self.process.on_end(ended)

    async def _send(self, encoded: bytes) -> None:
        """Send all of it. Most requests fit into the socket, which then needs no waiting."""
        with contextlib.suppress(BlockingIOError):
            encoded = encoded[self._channel.send(encoded) :]
        if encoded:
            async with asyncio.timeout(EXEC_TIMEOUT_SECONDS):
                await asyncio.get_running_loop().sock_sendall(self._channel, encoded)

    async def _receive_rest(self, waiting_for: str, answer: bytes) -> bytes:
        """Return the answer with all that follows up to the end of the stream.

        Raises:
            StepFailed: the launcher says nothing more, and does not end either.
        """
        loop = asyncio.get_running_loop()
        parts = [answer]
        complete: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            try:
                while chunk := self._channel.recv(4096):
                    parts.append(chunk)
            except BlockingIOError:
                return
            except ConnectionResetError:
                pass  # an end as well
            if not complete.done():
                complete.set_result(None)

        def expire() -> None:
            if not complete.done():
                complete.set_exception(StepFailed(waiting_for, errno.ETIMEDOUT))

        # One watch for the whole answer: it comes in two parts, a good word and the end at exec.
        loop.add_reader(self._channel, readable)
        timer = loop.call_later(EXEC_TIMEOUT_SECONDS, expire)
        try:
            await complete
        finally:
            timer.cancel()
            loop.remove_reader(self._channel)
        return b"".join(parts)

    async def _receive(self, waiting_for: str, timeout_seconds: float) -> bytes:
        """Return the next bytes, empty at the end of the stream.

        A launcher that says nothing is a failed step, not a dead one: it might still exec until
        it is dismissed, so it must not be answered with a second launcher.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.get_running_loop().sock_recv(self._channel, 4096)
        except ConnectionResetError:
            return b""
        except TimeoutError as error:
            raise StepFailed(waiting_for, errno.ETIMEDOUT) from error


def _parse_failure(report: bytes) -> tuple[str, int]:
    """Return (step, errno) of an 'F' report; a torn one means that the launcher was killed."""
    if len(report) < 5 or not report.startswith(_FAILED):
        return "launcher", errno.EPROTO
    code: int = struct.unpack_from("=i", report, 1)[0]
    return report[5:].decode("ascii", "replace"), code


class LauncherPool(Generic[PlaceT]):
    """Keeps `parked` launchers ready and replaces each one that is used.

    `prepare` makes a place, `discard` takes back one whose launcher never became a task and is
    gone. Both run on the loop. A start that finds nothing parked has a launcher forked at once.
    """

    def __init__(
        self,
        prepare: Callable[[], PlaceT],
        discard: Callable[[PlaceT], None],
        *,
        parked: int = 2,
        executable: str | None = None,
    ) -> None:
        self._prepare = prepare
        self._discard = discard
        self._parked_wanted = parked
        self._server = ForkServer(executable or default_executable())
        self._parked: deque[ParkedLauncher[PlaceT]] = deque()
        self._leaving: set[ParkedLauncher[PlaceT]] = set()
        self._failures_in_row = 0
        self._refilling: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def parked_count(self) -> int:
        """Return how many launchers are ready now."""
        return len(self._parked)

    async def open(self) -> None:
        """Park the first launchers.

        Raises:
            LauncherError: the first one could not be parked; nothing is left running.
        """
        try:
            for _ in range(self._parked_wanted):
                self._add(await self._park())
        except BaseException:
            if not self._parked:
                self._server.close()
            raise

    async def start(
        self, prepare_request: Callable[[PlaceT], Request]
    ) -> tuple[ChildProcess, PlaceT]:
        """Start what `prepare_request` returns once it has set up the place it is given.

        Returns the process after exec and its place; both are the caller's from then on.

        Raises:
            RequestRefused, StepFailed, LauncherDied, LauncherMissing, or what `prepare_request`
            raises; nothing of the request runs then.
        """
        for attempt in range(1, STARTS_MAX + 1):
            launcher = await self._take()
            try:
                await launcher.start(prepare_request(launcher.place))
            except BaseException as error:
                self._dismiss(launcher)
                if isinstance(error, LauncherDied) and attempt < STARTS_MAX:
                    LOG.warning("launcher died parked, starting again: %s", error)
                    continue
                raise
            finally:
                # Not earlier: this start would wait for the fork.
                self._refill()
            return launcher.process, launcher.place
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """Dismiss every parked launcher and wait until their places are discarded."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait([self._refilling])
        while self._parked:
            launcher = self._parked.popleft()
            launcher.process.forget_end()
            self._dismiss(launcher)
        try:
            async with asyncio.timeout(READY_TIMEOUT_SECONDS):
                while self._leaving:
                    await asyncio.sleep(0.001)
        finally:
            self._server.close()

    async def _take(self) -> ParkedLauncher[PlaceT]:
        if not self._parked:
            launcher = await self._park()
        else:
            launcher = self._parked.popleft()
            launcher.process.forget_end()
        return launcher

    async def _park(self) -> ParkedLauncher[PlaceT]:
        place = self._prepare()
        try:
            launcher = ParkedLauncher.fork(place, self._server)
        except BaseException:  # no descriptor is left, for example
            self._discard(place)
            raise
        try:
            await launcher.ready()
        except BaseException:
            self._dismiss(launcher)
            raise
        return launcher

    def _add(self, launcher: ParkedLauncher[PlaceT]) -> None:
        def died_parked() -> None:
            self._parked.remove(launcher)
            self._dismiss(launcher)
            self._failures_in_row += 1
            LOG.warning("parked launcher died pid=%d", launcher.process.pid)
            self._refill()

        launcher.process.on_end(died_parked)
        self._parked.append(launcher)

    def _dismiss(self, launcher: ParkedLauncher[PlaceT]) -> None:
        def gone() -> None:
            self._leaving.discard(launcher)
            self._discard(launcher.place)

        self._leaving.add(launcher)
        launcher.dismiss(gone)

    def _refill(self) -> None:
        if self._closed or (self._refilling is not None and not self._refilling.done()):
            return
        self._refilling = asyncio.get_running_loop().create_task(self._fill())

    async def _fill(self) -> None:
        while len(self._parked) < self._parked_wanted:
            if self._failures_in_row:
                pauses = REFILL_PAUSES_SECONDS
                await asyncio.sleep(pauses[min(self._failures_in_row, len(pauses)) - 1])
            try:
                launcher = await self._park()
            except Exception as error:
                # Whatever `prepare` raises as well: the answer to all of it is to try again later,
                # and a start meanwhile makes its own launcher and gets the error itself.
                self._failures_in_row += 1
                LOG.warning("cannot park a launcher: %s", error)
                continue
            self._failures_in_row = 0
            self._add(launcher)


def default_executable() -> str:
    """Return the path of the compiled launcher that was installed beside this module."""
    return str(Path(__file__).with_name("mass-launcher"))
