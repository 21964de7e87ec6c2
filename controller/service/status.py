"""Errors as gRPC status with google.rpc.ErrorInfo; the only place that knows the codes."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from controller.core.errors import (
    Conflict,
    InvalidRequest,
    LimitReached,
    MassError,
    NodeUnavailable,
    NoMemoryFree,
    NotFound,
    PoolIsExhausted,
    ProtocolMismatch,
)
from controller.store.base import StoreError

log = logging.getLogger("mass.service")

DOMAIN = "mass"
CODES: dict[type[MassError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    PoolIsExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NoMemoryFree: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    ProtocolMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    NodeUnavailable: grpc.StatusCode.UNAVAILABLE,
    StoreError: grpc.StatusCode.UNAVAILABLE,
}
DETAILS_KEY = "grpc-status-details-bin"

Method = TypeVar("Method", bound=Callable[..., Any])


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: MassError) -> NoReturn:
    """End a call with the status of an error; clients test its reason, never its text."""
    codes = (CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    code = next(codes, grpc.StatusCode.FAILED_PRECONDITION)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)
    detail = AnyMessage()
    detail.Pack(info)
    status = status_pb2.Status(code=code.value[0], message=error.message, details=[detail])
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    await context.abort(code, error.message)


def answers(method: Method) -> Method:
    """Wrap a unary method: a MassError becomes its status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except MassError as error:
            await abort(context, error)

    return wrapped  # type: ignore[return-value]


def streams(method: Method) -> Method:
    """Wrap a method with a stream of answers: a MassError becomes its status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for answer in method(self, request, context):
                yield answer
        except MassError as error:
            await abort(context, error)

    return wrapped  # type: ignore[return-value]
