"""Memory is set aside for something that is not a task: asked for, renewed, given back, expired.

It counts like a task's reservation in every placement, until its time is over.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mass.units import told_apart

from allocator.ledger import NoRoom
from controller.core.cluster import Cluster
from controller.core.commands import Command, ForgetReservation, Reply, SaveReservation
from controller.core.errors import LimitReached, NoMemoryFree, NotFound
from controller.core.events import ReservationAsked, ReservationReleased, ReservationRenewed
from controller.core.model import MemoryReservation
from controller.core.promise import compute
from controller.core.results import read_metrics

Commands = list[Command]


def on_reservation_asked(cluster: Cluster, event: ReservationAsked) -> Commands:
    """Set memory aside on the node named, or on the one with the most memory left.

    Raises:
        NotFound: there is no such node.
        NoMemoryFree: no node, or not that one, can promise so much now.
        LimitReached: reservations_max reservations are there.
        PoolIsExhausted: the pool has no room for it.
    """
    if event.request_id:
        for known in cluster.memory_reservations.values():
            if known.request_id == event.request_id:
                return [Reply(known)]
    bound = cluster.limits.reservations_max
    if len(cluster.memory_reservations) >= bound:
        raise LimitReached(f"{bound} reservations are there, which is the bound")
    reservation = MemoryReservation(
        id=cluster.next_reservation_id,
        request_id=event.request_id,
        node_id=_choose(cluster, event),
        memory_bytes=event.memory_bytes,
        purpose=event.purpose,
        user=event.user,
        created_at_ns=event.at_ns,
        expires_at_ns=event.at_ns + event.ttl_ns,
    )
    try:
        cluster.set_aside(reservation)
    except NoRoom as error:
        raise _no_memory(event, reservation.node_id, error.free_bytes) from error
    cluster.next_reservation_id += 1
    return [SaveReservation(reservation), Reply(reservation)]


def _choose(cluster: Cluster, event: ReservationAsked) -> str:
    promise = compute(read_metrics(cluster, event.at_ns).memory, cluster.limits).promise
    if event.node_id:
        record = cluster.nodes.get(event.node_id)
        if record is None:
            raise NotFound(f"no node is called '{event.node_id}'", node=event.node_id)
        slot = record.slot
    else:
        opened = cluster.table.open[: cluster.table.count]
        if not opened.any():
            raise NoMemoryFree(f"no node is ready ({len(cluster.nodes)} known)")
        slot = int(np.argmax(np.where(opened, promise, -1)))
    node_id = cluster.table.ids[slot]
    assert node_id is not None
    if promise[slot] < event.memory_bytes:
        raise _no_memory(event, node_id, int(promise[slot]))
    return node_id


def _no_memory(event: ReservationAsked, node_id: str, promise_bytes: int) -> NoMemoryFree:
    which = "" if event.node_id else ", the one with the most memory left,"
    asked, promise = told_apart(event.memory_bytes, max(0, promise_bytes))
    return NoMemoryFree(
        f"the reservation asks {asked}, node {node_id}{which} can promise {promise}",
        node=node_id,
        requested_bytes=event.memory_bytes,
        promise_bytes=max(0, promise_bytes),
    )


def on_reservation_renewed(cluster: Cluster, event: ReservationRenewed) -> Commands:
    """Move the end of a reservation.

    Raises:
        NotFound: there is none with that id, or it has expired.
    """
    reservation = _find(cluster, event.reservation_id)
    reservation = replace(reservation, expires_at_ns=event.at_ns + event.ttl_ns)
    cluster.memory_reservations[reservation.id] = reservation
    return [SaveReservation(reservation), Reply(reservation)]


def on_reservation_released(cluster: Cluster, event: ReservationReleased) -> Commands:
    """Give a reservation back.

    Raises:
        NotFound: there is none with that id, or it has expired.
    """
    _find(cluster, event.reservation_id)
    cluster.give_back(event.reservation_id)
    return [ForgetReservation(event.reservation_id), Reply(event.reservation_id)]


def expire_reservations(cluster: Cluster, now_ns: int) -> Commands:
    """End the reservations whose time is over."""
    due = sorted(i for i, r in cluster.memory_reservations.items() if r.expires_at_ns <= now_ns)
    for reservation_id in due:
        cluster.give_back(reservation_id)
    return [ForgetReservation(reservation_id) for reservation_id in due]


def _find(cluster: Cluster, reservation_id: int) -> MemoryReservation:
    reservation = cluster.memory_reservations.get(reservation_id)
    if reservation is None:
        raise NotFound(
            f"no reservation has the id {reservation_id}, or it has expired",
            reservation=reservation_id,
        )
    return reservation
