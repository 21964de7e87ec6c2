"""The gRPC server: its options, its services, reflection and health."""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from mass.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    alert_pb2,
    alert_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    rule_pb2,
    rule_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)

from controller.engine import Engine
from controller.service.agents import AgentService
from controller.service.events import EventService
from controller.service.inspection import AlertService, NodeService, RuleService
from controller.service.memory import MemoryService
from controller.service.tasks import TaskService

MESSAGE_BYTES_MAX = 16 << 20
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second controller on the port must fail, not share it
    # The core turns streams away at random above its defaults; a fleet connects all at once.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Without it the server sends a ping for each lone message, half the CPU of a sample.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_535),  # bounds what one flooding stream may buffer
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # else 60 s: keepalive waits for the longer of both
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


def service_names() -> tuple[str, ...]:
    """Return the full names of our services."""
    files = (agent_pb2, alert_pb2, event_pb2, memory_pb2, node_pb2, rule_pb2, task_pb2)
    return tuple(
        service.full_name for file in files for service in file.DESCRIPTOR.services_by_name.values()
    )


class Server:
    """The server around an engine."""

    def __init__(self, engine: Engine) -> None:
        self.server = server = grpc.aio.server(options=OPTIONS)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(engine), server)
        task_pb2_grpc.add_TaskServiceServicer_to_server(TaskService(engine), server)
        node_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(engine), server)
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryService(engine), server)
        rule_pb2_grpc.add_RuleServiceServicer_to_server(RuleService(engine), server)
        alert_pb2_grpc.add_AlertServiceServicer_to_server(AlertService(engine), server)
        event_pb2_grpc.add_EventServiceServicer_to_server(EventService(engine), server)
        self.health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        self._names = (*service_names(), health.SERVICE_NAME)
        self._add_reflection()

    def _add_reflection(self) -> None:
        """Serve reflection as v1alpha and as v1: the same messages under both names."""
        _describe_reflection_v1()
        servicer = reflection.aio.ReflectionServicer(
            (*self._names, reflection.SERVICE_NAME, REFLECTION_V1)
        )
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self.server)
        method = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(
            REFLECTION_V1, {"ServerReflectionInfo": method}
        )
        self.server.add_generic_rpc_handlers((handler,))

    async def set_serving(self, serving: bool) -> None:
        """Say by grpc.health.v1 whether we serve, for the server and for each service."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        value = status.SERVING if serving else status.NOT_SERVING
        for name in ("", *self._names):
            await self.health.set(name, value)


def _describe_reflection_v1() -> None:
    """Put the description of reflection v1 beside that of v1alpha, from which it differs by name.

    Without it a client that lists all methods fails at the first service it cannot look up.
    """
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = REFLECTION_V1.rpartition(".")[0]
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
        method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        pool.AddSerializedFile(file.SerializeToString())
