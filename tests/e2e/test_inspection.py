"""What standard tools see: reflection, health, and calls without any code of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from support.cluster import Cluster

pytestmark = pytest.mark.e2e

BUF = Path(sys.executable).with_name("buf")
OUR_SERVICES = {
    f"mass.v1.{name}Service" for name in ("Agent", "Task", "Node", "Memory", "Rule", "Alert")
}
needs_buf = pytest.mark.skipif(not BUF.exists(), reason="buf (buf-bin) is not installed")


@pytest.fixture
def channel(shared: Cluster) -> Iterator[grpc.Channel]:
    """A plain channel to the controller."""
    with grpc.insecure_channel(shared.address) as channel:
        yield channel


def curl(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `buf curl` against the controller, its schema taken from reflection."""
    return subprocess.run(
        [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=cluster.directory,
    )


@needs_buf
def test_buf_curl_lists_our_services_by_reflection(shared: Cluster) -> None:
    ran = curl(shared, "--list-services", f"http://{shared.address}")
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) >= OUR_SERVICES
    ran = curl(shared, "--list-methods", f"http://{shared.address}")
    assert "mass.v1.TaskService/SubmitTasks" in ran.stdout.split()


@needs_buf
def test_buf_curl_calls_a_method_without_a_schema_of_its_own(shared: Cluster) -> None:
    ran = curl(
        shared, "--reflect", "-d", "{}", f"http://{shared.address}/mass.v1.NodeService/ListNodes"
    )
    assert ran.returncode == 0, ran.stderr
    (node,) = json.loads(ran.stdout)["nodes"]
    assert node["id"] == "node-1"
    assert node["state"] == "NODE_STATE_READY"
    assert int(node["memoryPromiseBytes"]) > 0


@needs_buf
def test_buf_curl_shows_a_refusal_with_its_reason(shared: Cluster) -> None:
    url = f"http://{shared.address}/mass.v1.TaskService/GetTask"
    ran = curl(shared, "--reflect", "-d", '{"id": "0"}', url)
    assert ran.returncode != 0
    error = json.loads(ran.stderr)
    assert error["code"] == "invalid_argument"
    assert error["message"] == "task id '0' is no integer from 1"
    (detail,) = error["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"


def test_health_is_told_for_the_server_and_each_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", *OUR_SERVICES):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(service="mass.v1.NoService"), timeout=5)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_answer(channel: grpc.Channel, version: str) -> None:
    name = f"grpc.reflection.{version}.ServerReflection"
    call = channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="mass.v1.TaskService"),
    ]
    listed, file = call(iter(requests), timeout=5)
    names = {service.name for service in listed.list_services_response.service}
    assert OUR_SERVICES | {name, "grpc.health.v1.Health"} <= names
    assert file.file_descriptor_response.file_descriptor_proto


def test_http_health_is_all_that_the_page_address_answers(shared: Cluster) -> None:
    with urllib.request.urlopen(f"http://{shared.http}/health", timeout=5) as answer:
        assert (answer.status, answer.read()) == (200, b"SERVING\n")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{shared.http}/other", timeout=5)
    with refused.value as error:
        assert error.code == 404
