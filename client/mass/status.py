"""What an RPC's error means: the controller's refusal, or that it did not answer.

The rule: clients test reasons, never texts. The reason travels as google.rpc.ErrorInfo in the
trailing metadata. The package that has those two messages is not in the base install, so their
fields are described here, in a descriptor pool of our own that cannot clash with that package.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from mass.errors import MassClientError, NotFound, Refused, Unreachable

DETAILS_KEY = "grpc-status-details-bin"
TRY_LATER = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})

_Field = descriptor_pb2.FieldDescriptorProto
_TEXT, _BYTES, _MESSAGE = _Field.TYPE_STRING, _Field.TYPE_BYTES, _Field.TYPE_MESSAGE
# Names, numbers and types as google/rpc/status.proto and error_details.proto have them; a map is
# on the wire a repeated message of key and value.
_MESSAGES: dict[str, list[tuple[str, int, Any, str]]] = {
    "Any": [("type_url", 1, _TEXT, ""), ("value", 2, _BYTES, "")],
    "Status": [("message", 2, _TEXT, ""), ("details", 3, _MESSAGE, "Any")],
    "Entry": [("key", 1, _TEXT, ""), ("value", 2, _TEXT, "")],
    "ErrorInfo": [("reason", 1, _TEXT, ""), ("metadata", 3, _MESSAGE, "Entry")],
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="mass_client_status.proto", package="mass.client.status", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            added = message.field.add(name=field, number=number, type=kind)
            added.label = _Field.LABEL_OPTIONAL
            if of:
                added.type_name = f".{file.package}.{of}"
                added.label = _Field.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()


def is_silence(error: grpc.RpcError) -> bool:
    """Tell whether nobody answered, so that the same call may be made again.

    UNAVAILABLE without a reason comes from the channel or from a controller on its way out; with
    a reason it is the controller's own word, for example about a node that cannot be asked.
    """
    return code_of(error) is grpc.StatusCode.UNAVAILABLE and not error_info(error)[0]


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """Return an RPC error's code."""
    return error.code()


def failure_of(error: grpc.RpcError) -> MassClientError:
    """Return what to raise for an RPC's error."""
    code = code_of(error)
    reason, details = error_info(error)
    said: str = error.details() or ""
    message = said or f"the controller answered {code.name} without a message"
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(message, reason or code.name, details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
        return Unreachable(f"the controller has not answered in time: {message}")
    if code is grpc.StatusCode.CANCELLED and not reason:
        return MassClientError("the call was ended here, because the client was closed")
    return Refused(message, reason or code.name, details, try_later=code in TRY_LATER)


def error_info(error: grpc.RpcError) -> tuple[str, dict[str, str]]:
    """Return reason and details of an RPC's error, both empty when there are none."""
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            for detail in _CLASSES["Status"].FromString(value).details:
                if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                    info = _CLASSES["ErrorInfo"].FromString(detail.value)
                    return info.reason, {entry.key: entry.value for entry in info.metadata}
        except DecodeError:
            # A peer that packs something else still gets its code and its sentence shown.
            return "", {}
    return "", {}
