"""Streams between agents and the controller, as TCP has them.

The rule kept: within one direction of one stream, order holds and nothing is missing in between.
Everything else may happen: any delay, a break that loses what was under way, an end that either
side learns of much later, words of a dead stream that arrive after those of the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Protocol

from sim.timeline import MILLISECOND_NS, SECOND_NS, Due, Timeline

# An agent notices a dead path by its keepalive within this time; a controller may take longer.
AGENT_NOTICE_MAX_NS = 30 * SECOND_NS
SERVER_NOTICE_MAX_NS = 60 * SECOND_NS


class End(Protocol):
    """One end of a link."""

    def receive(self, data: bytes) -> None:
        """Take a message."""

    def ended(self) -> None:
        """Learn that the stream has ended."""


class Channel:
    """One direction: what is under way, in order."""

    def __init__(self, timeline: Timeline, delay_ns: Callable[[], int]) -> None:
        self._timeline = timeline
        self._delay_ns = delay_ns
        self._under_way: deque[Due] = deque()
        self._last_ns = 0
        self.target: End | None = None

    def send(self, data: bytes) -> None:
        """Send a message; without an end to take it, it is lost."""
        self._enqueue(lambda target: target.receive(data), self._delay_ns())

    def send_end(self, delay_ns: int) -> None:
        """Let the target learn, behind all that is under way, that there is no more."""

        def end(target: End) -> None:
            self.target = None
            target.ended()

        self._enqueue(end, delay_ns)

    def lose(self, chance: Random) -> None:
        """Lose what is under way from a random message on."""
        while self._under_way and self._under_way[0].action is None:
            self._under_way.popleft()
        kept = chance.randint(0, len(self._under_way))
        while len(self._under_way) > kept:
            self._under_way.pop().cancel()

    def _enqueue(self, give: Callable[[End], None], delay_ns: int) -> None:
        self._last_ns = max(self._last_ns, self._timeline.now_ns() + delay_ns)

        def arrive() -> None:
            if self.target is not None:
                give(self.target)

        while self._under_way and self._under_way[0].action is None:
            self._under_way.popleft()
        self._under_way.append(self._timeline.at(self._last_ns, arrive))


class Link:
    """One stream, both directions."""

    def __init__(self, network: Network, up_delay_ns: Callable[[], int]) -> None:
        self._network = network
        self.up = Channel(network.timeline, up_delay_ns)
        self.down = Channel(network.timeline, network.delay_ns)
        self._silent = False

    def send_up(self, data: bytes) -> None:
        """Send from the agent."""
        if not self._silent:
            self.up.send(data)

    def send_down(self, data: bytes) -> None:
        """Send from the controller."""
        if not self._silent:
            self.down.send(data)

    def break_silently(self) -> None:
        """Lose the path: nothing passes any more, and both sides notice by themselves."""
        if self._silent:
            return
        chance = self._network.chance
        self.up.lose(chance)
        self.down.lose(chance)
        self._silent = True
        self.down.send_end(chance.randint(0, AGENT_NOTICE_MAX_NS))
        self.up.send_end(chance.randint(0, SERVER_NOTICE_MAX_NS))

    def close_from_agent(self) -> None:
        """End it on the agent's side; the controller learns of it soon, or late."""
        self.down.target = None
        self._close(self.up)

    def close_from_server(self) -> None:
        """End it on the controller's side; the agent learns of it soon, or late."""
        self.up.target = None
        self._close(self.down)

    def _close(self, other: Channel) -> None:
        if self._silent:
            return
        chance = self._network.chance
        if chance.random() < 0.3:
            other.lose(chance)
        self._silent = True
        late = chance.random() < self._network.late_ratio
        other.send_end(chance.randint(0, 25 * SECOND_NS if late else 5 * MILLISECOND_NS))


class Network:
    """Opens links; decides how long messages take."""

    def __init__(self, timeline: Timeline, chance: Random) -> None:
        self.timeline = timeline
        self.chance = chance
        self.late_ratio = 0.1

    def open(self) -> Link:
        """Return a new link. Some paths are slow for as long as they last."""
        if self.chance.random() < self.late_ratio:
            slow_ns = self.chance.randint(SECOND_NS, 12 * SECOND_NS)
            return Link(self, lambda: self.chance.randint(slow_ns // 2, slow_ns))
        return Link(self, self.delay_ns)

    def delay_ns(self) -> int:
        """Return how long one message takes."""
        draw = self.chance.random()
        if draw < 1 - self.late_ratio:
            return int(draw * 20 * MILLISECOND_NS)
        return self.chance.randint(20 * MILLISECOND_NS, 3 * SECOND_NS)
