"""MemoryService: the controller's own pool, and memory set aside for something that is no task."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from mass.units import told_apart
from mass.v1 import memory_pb2, memory_pb2_grpc

from controller import requests, views
from controller.core.errors import InvalidRequest, NotFound
from controller.core.events import ReservationAsked, ReservationReleased, ReservationRenewed
from controller.core.model import MemoryReservation
from controller.core.sizing import CategorySummary
from controller.engine import Engine
from controller.service.status import answers

PURPOSE_LENGTH_MAX = 200


class MemoryService(memory_pb2_grpc.MemoryServiceServicer):
    """Serves the pool and reservations."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cluster = engine.cluster

    @answers
    async def GetPool(  # noqa: N802
        self, request: memory_pb2.GetPoolRequest, context: Any
    ) -> memory_pb2.GetPoolResponse:
        """Return the pool's statistics and who uses it."""
        return memory_pb2.GetPoolResponse(pool=views.pool_view(self._cluster))

    @answers
    async def CreateReservation(  # noqa: N802
        self, request: memory_pb2.CreateReservationRequest, context: Any
    ) -> memory_pb2.CreateReservationResponse:
        """Set memory of a node aside."""
        limits = self._cluster.limits
        for name, text, bound in (
            ("request_id", request.request_id, limits.request_id_length_max),
            ("purpose", request.purpose, PURPOSE_LENGTH_MAX),
            ("user", request.user, limits.name_length_max),
        ):
            if len(text) > bound:
                raise InvalidRequest(f"{name} has {len(text)} characters; the bound is {bound}")
        if not 1 <= request.memory_bytes <= limits.memory_request_max_bytes:
            asked, most = told_apart(request.memory_bytes, limits.memory_request_max_bytes)
            raise InvalidRequest(f"mem is {asked}; it must be 1 B to {most}")
        event = ReservationAsked(
            self._engine.now_ns(),
            request.request_id,
            request.memory_bytes,
            request.node_id,
            self._ttl_ns(request.ttl),
            request.purpose,
            request.user,
        )
        return memory_pb2.CreateReservationResponse(reservation=await self._ask(event))

    @answers
    async def ListReservations(  # noqa: N802
        self, request: memory_pb2.ListReservationsRequest, context: Any
    ) -> memory_pb2.ListReservationsResponse:
        """Return a page of reservations by id; the token is the id to go on above."""
        size = requests.page_size(request.page_size)
        above = requests.page_before(request.page_token) or 0
        await self._engine.settled()
        known = self._cluster.memory_reservations
        ids = sorted(number for number in known if number > above)
        page = ids[:size]
        return memory_pb2.ListReservationsResponse(
            reservations=[views.reservation_view(known[number]) for number in page],
            next_page_token=str(page[-1]) if len(ids) > size else "",
        )

    @answers
    async def RenewReservation(  # noqa: N802
        self, request: memory_pb2.RenewReservationRequest, context: Any
    ) -> memory_pb2.RenewReservationResponse:
        """Move the end of a reservation."""
        number, ttl_ns = requests.reservation_id(request.id), self._ttl_ns(request.ttl)
        event = ReservationRenewed(self._engine.now_ns(), number, ttl_ns)
        return memory_pb2.RenewReservationResponse(reservation=await self._ask(event))

    @answers
    async def ReleaseReservation(  # noqa: N802
        self, request: memory_pb2.ReleaseReservationRequest, context: Any
    ) -> memory_pb2.ReleaseReservationResponse:
        """Give a reservation back before its end."""
        number = requests.reservation_id(request.id)
        await self._engine.ask(ReservationReleased(self._engine.now_ns(), number))
        return memory_pb2.ReleaseReservationResponse()

    @answers
    async def ListCategories(  # noqa: N802
        self, request: memory_pb2.ListCategoriesRequest, context: Any
    ) -> memory_pb2.ListCategoriesResponse:
        """Return a page of categories by name; the token is the name to go on behind."""
        size = requests.page_size(request.page_size)
        await self._engine.settled()
        summaries = self._summaries()
        known = summaries.keys() | self._cluster.learning.outcomes.keys()
        names = sorted(name for name in known if name > request.page_token)
        page = names[:size]
        return memory_pb2.ListCategoriesResponse(
            categories=[
                views.category_view(self._cluster, name, summaries.get(name)) for name in page
            ],
            next_page_token=page[-1] if len(names) > size else "",
        )

    @answers
    async def GetCategory(  # noqa: N802
        self, request: memory_pb2.GetCategoryRequest, context: Any
    ) -> memory_pb2.GetCategoryResponse:
        """Return what was learned of one category."""
        await self._engine.settled()
        name, cluster = request.name, self._cluster
        summary = self._summaries().get(name)
        known = summary is not None or name in cluster.learning.outcomes
        if not known and name not in cluster.category_tasks:
            raise NotFound(f"no task of category '{name[:200]}' has ended yet", category=name[:200])
        return memory_pb2.GetCategoryResponse(category=views.category_view(cluster, name, summary))

    def _summaries(self) -> dict[str, CategorySummary]:
        return {one.category: one for one in self._cluster.learning.sizing.categories()}

    def _ttl_ns(self, ttl: Duration) -> int:
        limits, ttl_ns = self._cluster.limits, ttl.ToNanoseconds()
        low_ns, high_ns = limits.reservation_ttl_min_ns, limits.reservation_ttl_max_ns
        if not low_ns <= ttl_ns <= high_ns:
            raise InvalidRequest(
                f"ttl is {ttl_ns / 1e9:g} s; it must be {low_ns / 1e9:g} to {high_ns / 1e9:g} s"
            )
        return ttl_ns

    async def _ask(self, event: ReservationAsked | ReservationRenewed) -> memory_pb2.Reservation:
        reservation = await self._engine.ask(event)
        assert isinstance(reservation, MemoryReservation)
        return views.reservation_view(reservation)
