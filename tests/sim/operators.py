"""The operators of a simulated world: they cordon and drain nodes, and set memory aside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.controllers import Answer, Controller
from sim.timeline import SECOND_NS

from controller.core.errors import MassError
from controller.core.events import (
    NodeCordoned,
    NodeDrained,
    NodeUncordoned,
    ReservationAsked,
    ReservationReleased,
    ReservationRenewed,
)
from controller.core.limits import MIB
from controller.core.model import MemoryReservation

if TYPE_CHECKING:
    from sim.world import World


class Operators:
    """Everybody who decides about nodes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._requests = 0
        self._reservations: dict[int, str] = {}  # those that were answered: id -> request id

    def cordon(self) -> None:
        """Keep a node free."""
        if (found := self._a_node()) is not None:
            controller, node_id = found
            now_ns = self._world.timeline.now_ns()
            answer = Answer(self._world, self._world.laws.node_answered, _gone)
            controller.engine.take(NodeCordoned(now_ns, node_id, "why", "user"), answer)

    def uncordon(self) -> None:
        """Let tasks onto a node again."""
        if (found := self._a_node()) is not None:
            controller, node_id = found
            now_ns = self._world.timeline.now_ns()
            answer = Answer(self._world, self._world.laws.node_answered, _gone)
            controller.engine.take(NodeUncordoned(now_ns, node_id, "user"), answer)

    def drain(self) -> None:
        """Empty a node, with or without a deadline."""
        found = self._a_node()
        if found is None:
            return
        controller, node_id = found
        now_ns = self._world.timeline.now_ns()
        deadline_ns = self._world.chance.choice((0, now_ns, now_ns + 20 * SECOND_NS))
        self._world.say(f"somebody drains {node_id}, deadline {deadline_ns}")
        answer = Answer(self._world, self._world.laws.node_answered, _gone)
        event = NodeDrained(now_ns, node_id, "why", "user", deadline_ns)
        controller.engine.take(event, answer)

    def reserve(self) -> None:
        """Ask for a reservation, ask for one once more, renew one, or give one back."""
        controller, chance = self._world.controller, self._world.chance
        if controller is None:
            return
        now_ns, laws = self._world.timeline.now_ns(), self._world.laws
        ttl_ns = chance.choice((1, 10, 60)) * SECOND_NS
        known = chance.choice(list(self._reservations)) if self._reservations else 0
        wish = chance.choice(("new", "new", "again", "renew", "give back"))
        if wish == "new" or not known:
            self._requests += 1
            request_id = f"reservation-{self._requests}"
        else:
            request_id = self._reservations[known]
        answer = Answer(self._world, self._reserved, _gone)
        if wish == "renew" and known:
            controller.engine.take(ReservationRenewed(now_ns, known, ttl_ns), answer)
        elif wish == "give back" and known:
            del self._reservations[known]
            laws.given_back.add(known)
            answer = Answer(self._world, laws.release_answered, _gone)
            controller.engine.take(ReservationReleased(now_ns, known), answer)
        else:
            size_bytes = chance.choice((64, 512, 1_024)) * MIB
            node_id = chance.choice(("", "node-1"))
            event = ReservationAsked(now_ns, request_id, size_bytes, node_id, ttl_ns, "why", "user")
            controller.engine.take(event, answer)

    def uncordon_all(self) -> None:
        """Let tasks onto every node."""
        controller = self._world.controller
        assert controller is not None
        for node_id in sorted(controller.cluster.nodes):
            now_ns = self._world.timeline.now_ns()
            controller.engine.take(NodeUncordoned(now_ns, node_id, "user"), None)

    def _a_node(self) -> tuple[Controller, str] | None:
        controller = self._world.controller
        if controller is None or not controller.cluster.nodes:
            return None
        return controller, self._world.chance.choice(sorted(controller.cluster.nodes))

    def _reserved(self, reservation: object) -> None:
        assert isinstance(reservation, MemoryReservation)
        self._world.laws.reservation_answered(reservation)
        if not self._world.happens(self._world.rates.call_lost):
            self._reservations[reservation.id] = reservation.request_id


def _gone(error: MassError) -> None:
    """Take a refusal."""
