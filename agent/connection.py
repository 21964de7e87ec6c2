"""The agent's loop and its only clock: one stream to the controller, over and over.

Owns the connection: hello, back-off, and the lease of attempts. The rule kept: without contact for
the attempt lease all attempts are killed, since the controller may run their tasks elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

import grpc
from mass.v1 import agent_pb2

from agent import wire
from agent.attempt import Acknowledged, LeaseLost, Leaving
from agent.attempts import Attempts
from agent.outbox import Outbox

LOG = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 16 << 20
KEEPALIVE_NS = 30_000_000_000  # a dead peer is noticed after 20 s + 10 s
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # else 60 s: keepalive waits for the longer of both
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),  # else each paced message costs a ping
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),  # a controller is on the own network, a proxy is not meant
    ("grpc.use_local_subchannel_pool", 1),  # back-off is ours: a new channel begins afresh
)
CONNECT = "/mass.v1.AgentService/Connect"
WELCOME_SECONDS_MAX = 10.0
STATUS_SECONDS_MAX = 1.0
LEAVE_LOOK_SECONDS = 0.01
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 10.0
TICK_SECONDS_MAX = 1.0
OUTPUT_INTERVAL_NS = 990_000_000  # a little less than a second, so that no tick of one is missed
LEASE_DEFAULT_NS = 900_000_000_000

# Repeating the same hello cannot help; the process ends and says why.
FATAL_CODES = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION})
# Somebody must do something first; asking often would only fill logs.
SLOW_CODES = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class AgentRefused(Exception):
    """The controller will never take this agent as it is; the message is its sentence."""


class StreamLost(Exception):
    """The stream has ended and a new one is worth trying; `slowly` when somebody must act first."""

    def __init__(self, reason: str, *, slowly: bool = False) -> None:
        super().__init__(reason)
        self.slowly = slowly


def _boot_time_ns() -> int:
    """Return a clock that goes on while the machine sleeps, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


Call = grpc.aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.ControllerMessage]


class Connection:
    """Keeps one agent connected; `run` goes on until it is cancelled, refused or has left."""

    def __init__(
        self,
        controller: str,
        identity: wire.Identity,
        attempts: Attempts,
        outbox: Outbox,
        *,
        chance: random.Random | None = None,
        boot_clock_ns: Callable[[], int] = _boot_time_ns,
    ) -> None:
        """Be ready to run."""
        self._controller = controller
        self._identity = identity
        self._attempts = attempts
        self._lifecycle = attempts.lifecycle
        self._outbox = outbox
        self._chance = chance or random.Random()
        self._boot_clock_ns = boot_clock_ns
        self._broken: asyncio.Future[None] | None = None  # of the open stream
        attempts.disconnect = self._break
        self.connected = False
        self._was_welcome = False  # on any stream
        # Before the first welcome there is nothing that could run elsewhere.
        self._lease_ns = LEASE_DEFAULT_NS
        self._contact_ns = boot_clock_ns()
        self._failures = 0
        self._left = False

    async def run(self) -> None:
        """Stay connected until `leave` has said goodbye.

        Raises:
            AgentRefused: the controller says that this agent can never be taken.
        """
        tasks = {
            asyncio.create_task(self._tick_forever()),
            asyncio.create_task(self._connect_forever()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def leave(self, reason: str, grace_ns: int, seconds_max: float) -> None:
        """Stop every attempt, deliver the ends, say goodbye; return when the stream has ended.

        The goodbye comes last: the controller ends the stream at it. Without a connection the ends
        stay in the spool. Returns after `seconds_max` at the latest.
        """
        self._attempts.handle(Leaving(grace_ns))
        try:
            async with asyncio.timeout(seconds_max):
                while self._lifecycle.live() or (self.connected and self._lifecycle.unacknowledged):
                    await asyncio.sleep(LEAVE_LOOK_SECONDS)
                self._attempts.handle(Leaving(0))
                self._left = True
                self._outbox.say_goodbye(reason)
                while self.connected:
                    await asyncio.sleep(LEAVE_LOOK_SECONDS)
        except TimeoutError:
            LOG.warning("left with ends not saved count=%d", len(self._lifecycle.unacknowledged))

    # One stream.

    async def _connect_forever(self) -> None:
        while True:
            try:
                await self._connect()
            except StreamLost as lost:
                if self._left:
                    return
                delay = self._back_off(lost)
                LOG.warning(
                    "disconnected controller=%s reason=%r retry_seconds=%.1f",
                    self._controller, str(lost), delay,
                )  # fmt: skip
                await asyncio.sleep(delay)

    async def _connect(self) -> None:
        """Hold one stream until it ends. Raises StreamLost, or AgentRefused."""
        async with grpc.aio.insecure_channel(self._controller, CHANNEL_OPTIONS) as channel:
            call: Call = channel.stream_stream(
                CONNECT,
                request_serializer=_serialize,
                response_deserializer=agent_pb2.ControllerMessage.FromString,
            )()
            try:
                welcome = await self._greet(call)
                await self._converse(call, welcome)
            except grpc.aio.AioRpcError as error:
                raise _lost(error, was_welcome=self._was_welcome) from error
            finally:
                call.cancel()

    async def _greet(self, call: Call) -> wire.Welcome:
        """Say hello and return the answer. Raises StreamLost, AgentRefused, AioRpcError."""
        try:
            async with asyncio.timeout(WELCOME_SECONDS_MAX):
                # A stream that has ended already tells why when it is read.
                with contextlib.suppress(asyncio.InvalidStateError):
                    hello = wire.encode_hello(
                        self._identity, self._lifecycle.known(), self._attempts.cluster_id
                    )
                    await call.write(hello)
                first = await call.read()
        except TimeoutError as error:
            raise StreamLost(f"no welcome within {WELCOME_SECONDS_MAX:g} s") from error
        if not isinstance(first, agent_pb2.ControllerMessage):
            raise StreamLost("the controller ended the stream before its welcome")
        if first.WhichOneof("body") != "welcome":
            raise StreamLost("the first message of the controller was no welcome", slowly=True)
        try:
            return wire.decode_welcome(first.welcome)
        except wire.WireError as error:
            if isinstance(error, wire.ProtocolMismatch) and not self._was_welcome:
                raise AgentRefused(str(error)) from error
            raise StreamLost(str(error), slowly=True) from error

    async def _converse(self, call: Call, welcome: wire.Welcome) -> None:
        """Read and write until one side ends. Raises StreamLost, AioRpcError."""
        self._join_cluster(welcome)
        broken = self._broken = asyncio.get_running_loop().create_future()
        sides: list[asyncio.Future[None]] = [broken]
        try:
            self._begin(welcome)
            sides += (
                asyncio.ensure_future(self._read(call)),
                asyncio.ensure_future(self._write(call)),
            )
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._end()
            for side in sides:
                side.cancel()
            await asyncio.wait(sides)
        errors = [side.exception() for side in sides if not side.cancelled()]
        raise next(error for error in errors if error is not None)

    def _join_cluster(self, welcome: wire.Welcome) -> None:
        """Say nothing to a cluster before all is gone that is of another one's tasks."""
        if not welcome.cluster_id:
            return
        try:
            joined = self._attempts.join_cluster(welcome.cluster_id)
        except OSError as error:
            raise StreamLost(f"the cluster cannot be noted: {error}", slowly=True) from error
        if not joined:
            raise StreamLost("attempts of another cluster are still being ended")

    def _begin(self, welcome: wire.Welcome) -> None:
        self._failures = 0
        self.connected = self._was_welcome = True
        self._contact_ns = self._boot_clock_ns()
        self._lease_ns = welcome.attempt_lease_ns
        if welcome.memory_capacity_bytes is not None:
            self._attempts.hold_capacity(welcome.memory_capacity_bytes)
        self._attempts.handle(welcome.event)
        self._outbox.open(welcome.sampling)
        LOG.info(
            "connected controller=%s node=%s unacknowledged=%d",
            self._controller, self._identity.node_id, len(self._lifecycle.unacknowledged),
        )  # fmt: skip

    def _end(self) -> None:
        self.connected = False
        self._outbox.close()
        self._broken = None

    def _break(self, reason: str) -> None:
        LOG.error("stream broken reason=%s", reason)
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(StreamLost(reason))

    def _back_off(self, lost: StreamLost) -> float:
        """Return how long to wait, in seconds: full jitter keeps a fleet apart."""
        if lost.slowly:
            return BACKOFF_MAX_SECONDS
        bound = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(self._failures, 20))
        self._failures += 1
        return self._chance.uniform(0, bound)

    # Down.

    async def _read(self, call: Call) -> None:
        while isinstance(message := await call.read(), agent_pb2.ControllerMessage):
            self._contact_ns = self._boot_clock_ns()
            try:
                self._take(message)
            except wire.WireError as error:
                raise StreamLost(str(error)) from error
        raise StreamLost("the controller ended the stream")

    def _take(self, message: agent_pb2.ControllerMessage) -> None:
        match message.WhichOneof("body"):
            case "assignments":
                for assignment in message.assignments.assignments:
                    self._attempts.handle(wire.decode_assignment(assignment))
            case "acknowledgement":
                self._outbox.note_acknowledgement()
                self._attempts.handle(Acknowledged(message.acknowledgement.sequence))
            case "stop":
                self._attempts.handle(wire.decode_stop(message.stop))
            case "freeze":
                self._attempts.handle(wire.decode_freeze(message.freeze))
            case "sampling":
                self._outbox.set_sampling(wire.decode_sampling(message.sampling), first=False)
            case "read_log":
                self._outbox.request_log(message.read_log)
            case "welcome":
                raise wire.WireError("a second welcome on one stream")
            case None:
                LOG.warning("message of a newer controller ignored controller=%s", self._controller)

    # Up.

    async def _write(self, call: Call) -> None:
        ready = self._outbox.ready
        while True:
            await ready.wait()
            ready.clear()
            while (patience_ns := self._outbox.patience_ns()) > 0:
                timer = asyncio.get_running_loop().call_later(patience_ns / 1e9, ready.set)
                await ready.wait()
                timer.cancel()
                ready.clear()
            while (message := self._outbox.next_message()) is not None:
                try:
                    await call.write(message)
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError) as error:
                    # Why it ended is what the reader is about to learn.
                    await asyncio.sleep(STATUS_SECONDS_MAX)
                    raise StreamLost("the stream ended while it was written to") from error

    # Time.

    async def _tick_forever(self) -> None:
        next_sample_ns = next_look_ns = time.monotonic_ns()
        while True:
            self._check_lease()
            self._outbox.resend()
            now_ns = time.monotonic_ns()
            if now_ns >= next_look_ns:
                self._outbox.follow_outputs()
                next_look_ns = now_ns + OUTPUT_INTERVAL_NS
            if now_ns >= next_sample_ns:
                next_sample_ns = max(next_sample_ns + self._outbox.offer_sample(), now_ns)
            pause_seconds = (next_sample_ns - time.monotonic_ns()) / 1e9
            await asyncio.sleep(min(TICK_SECONDS_MAX, max(0.01, pause_seconds)))

    def _check_lease(self) -> None:
        """End attempts when there was no contact for the lease, also when the machine slept.

        Also what only waits to be started: it may run elsewhere by now.
        """
        now_ns = self._boot_clock_ns()
        silent_ns = now_ns - self._contact_ns
        if silent_ns > self._lease_ns:
            count = sum(not has_ended for _, has_ended in self._lifecycle.known())
            if count:
                LOG.error(
                    "attempt lease lost silent_seconds=%.0f attempts=%d", silent_ns / 1e9, count
                )
                self._attempts.handle(LeaseLost())
        if self.connected:
            # An open stream is contact, though its peer may be gone for as long as the keepalive
            # needs to notice.
            uncertain_ns = min(KEEPALIVE_NS, self._lease_ns // 2)
            self._contact_ns = max(self._contact_ns, now_ns - uncertain_ns)


def _serialize(message: agent_pb2.AgentMessage) -> bytes:
    return message.SerializeToString()


def _lost(error: grpc.aio.AioRpcError, *, was_welcome: bool) -> Exception:
    """Return what a status means for the agent.

    Once it was welcome, on whichever stream, an agent is never refused for good: its tasks would
    die for one message. Their lease says how long they may go on.
    """
    code, sentence = error.code(), error.details() or error.code().name
    if code in FATAL_CODES and not was_welcome:
        return AgentRefused(sentence)
    return StreamLost(sentence, slowly=code in SLOW_CODES or code in FATAL_CODES)
