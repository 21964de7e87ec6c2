"""EventService: what happened, as people and programs follow it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from mass.v1 import event_pb2, event_pb2_grpc

from controller.core.errors import InvalidRequest
from controller.engine import Engine
from controller.event_views import event_view
from controller.journal import JournalClosed
from controller.service.status import streams


class EventService(event_pb2_grpc.EventServiceServicer):
    """Serves the journal; everything in it is saved."""

    def __init__(self, engine: Engine) -> None:
        self._journal = engine.journal

    @streams
    async def WatchEvents(  # noqa: N802
        self, request: event_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        """Send the kept events, and with follow each new one until the controller ends."""
        if request.last < 0:
            raise InvalidRequest(f"last is {request.last}; it must be 0 (all) or above")
        if not request.follow:
            for entry in self._journal.read_last(request.last):
                yield event_pb2.WatchEventsResponse(event=event_view(entry))
            return
        with self._journal.follow(request.last) as follower:
            try:
                while True:
                    for entry in await follower.next():
                        yield event_pb2.WatchEventsResponse(event=event_view(entry))
            except JournalClosed as error:
                # Without a reason clients take it for a controller on its way out, and try again.
                await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
