"""NodeService, RuleService and AlertService: what the cluster looks like now."""

from __future__ import annotations

from typing import Any

from mass.v1 import (
    alert_pb2,
    alert_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    rule_pb2,
    rule_pb2_grpc,
    types_pb2,
)

from controller import requests, views
from controller.core.errors import InvalidRequest, NotFound
from controller.core.events import NodeCordoned, NodeDrained, NodeForgotten, NodeUncordoned
from controller.core.nodes import NodeRecord
from controller.engine import Engine
from controller.service.status import answers

REASON_LENGTH_MAX = 500


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """Serves nodes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @answers
    async def ListNodes(  # noqa: N802
        self, request: node_pb2.ListNodesRequest, context: Any
    ) -> node_pb2.ListNodesResponse:
        """Return a page of nodes by id; the token is the id to go on behind."""
        size = requests.page_size(request.page_size)
        await self._engine.settled()
        ids = sorted(i for i in self._engine.cluster.nodes if i > request.page_token)
        page = ids[:size]
        return node_pb2.ListNodesResponse(
            nodes=[self._view(self._find(node_id)) for node_id in page],
            next_page_token=page[-1] if len(ids) > size else "",
        )

    @answers
    async def GetNode(  # noqa: N802
        self, request: node_pb2.GetNodeRequest, context: Any
    ) -> node_pb2.GetNodeResponse:
        """Return one node."""
        await self._engine.settled()
        record = self._find(request.id)
        return node_pb2.GetNodeResponse(node=self._view(record, with_steps=True))

    @answers
    async def CordonNode(  # noqa: N802
        self, request: node_pb2.CordonNodeRequest, context: Any
    ) -> node_pb2.CordonNodeResponse:
        """Keep new tasks off a node."""
        self._check(request)
        now_ns = self._engine.now_ns()
        await self._engine.ask(NodeCordoned(now_ns, request.id, request.reason, request.user))
        return node_pb2.CordonNodeResponse(node=self._view(self._find(request.id)))

    @answers
    async def UncordonNode(  # noqa: N802
        self, request: node_pb2.UncordonNodeRequest, context: Any
    ) -> node_pb2.UncordonNodeResponse:
        """Let new tasks onto a node again."""
        _check_words("user", request.user, self._engine.cluster.limits.name_length_max)
        await self._engine.ask(NodeUncordoned(self._engine.now_ns(), request.id, request.user))
        return node_pb2.UncordonNodeResponse(node=self._view(self._find(request.id)))

    @answers
    async def DrainNode(  # noqa: N802
        self, request: node_pb2.DrainNodeRequest, context: Any
    ) -> node_pb2.DrainNodeResponse:
        """Keep new tasks off a node and wait for those it has."""
        self._check(request)
        now_ns = self._engine.now_ns()
        deadline_ns = 0
        if request.HasField("deadline"):
            wait_ns = request.deadline.ToNanoseconds()
            bound_ns = self._engine.cluster.limits.time_limit_max_ns
            if not 0 < wait_ns <= bound_ns:
                raise InvalidRequest(
                    f"deadline is {wait_ns / 1e9:g} s; it must be above 0, at most"
                    f" {bound_ns // 1_000_000_000} s"
                )
            deadline_ns = now_ns + wait_ns
        event = NodeDrained(now_ns, request.id, request.reason, request.user, deadline_ns)
        await self._engine.ask(event)
        return node_pb2.DrainNodeResponse(node=self._view(self._find(request.id)))

    @answers
    async def ForgetNode(  # noqa: N802
        self, request: node_pb2.ForgetNodeRequest, context: Any
    ) -> node_pb2.ForgetNodeResponse:
        """Remove a node that is gone."""
        await self._engine.ask(NodeForgotten(self._engine.now_ns(), request.id))
        return node_pb2.ForgetNodeResponse()

    def _check(self, request: node_pb2.CordonNodeRequest | node_pb2.DrainNodeRequest) -> None:
        _check_words("reason", request.reason, REASON_LENGTH_MAX)
        _check_words("user", request.user, self._engine.cluster.limits.name_length_max)

    def _find(self, node_id: str) -> NodeRecord:
        record = self._engine.cluster.nodes.get(node_id)
        if record is None:
            raise NotFound(f"no node is called '{node_id}'", node=node_id)
        return record

    def _view(self, record: NodeRecord, with_steps: bool = False) -> types_pb2.Node:
        engine = self._engine
        displayed = engine.scheduler.displayed
        return views.node_view(engine.cluster, displayed, record, engine.now_ns(), with_steps)


class RuleService(rule_pb2_grpc.RuleServiceServicer):
    """Serves the rules in force."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @answers
    async def ListRules(  # noqa: N802
        self, request: rule_pb2.ListRulesRequest, context: Any
    ) -> rule_pb2.ListRulesResponse:
        """Return a page of rules; the token is the number of rules to skip."""
        start, end, token = _slice(request, len(self._engine.cluster.rules.rules))
        displayed = self._engine.scheduler.displayed
        counts: dict[str, tuple[int, int]] = {}
        if displayed is not None:
            counts = {
                result.rule.name: (int(result.holds.sum()), int(result.known.sum()))
                for result in displayed.rules
            }
        rules = self._engine.cluster.rules.rules[start:end]
        return rule_pb2.ListRulesResponse(
            rules=[views.rule_view(rule, *counts.get(rule.name, (0, 0))) for rule in rules],
            next_page_token=token,
        )


class AlertService(alert_pb2_grpc.AlertServiceServicer):
    """Serves alerts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @answers
    async def ListAlerts(  # noqa: N802
        self, request: alert_pb2.ListAlertsRequest, context: Any
    ) -> alert_pb2.ListAlertsResponse:
        """Return a page of alerts, firing ones first; the token is the number to skip."""
        await self._engine.settled()
        alerts = self._engine.cluster.alerts.listing()
        start, end, token = _slice(request, len(alerts))
        return alert_pb2.ListAlertsResponse(
            alerts=[views.alert_view(alert) for alert in alerts[start:end]],
            next_page_token=token,
        )


def _check_words(name: str, text: str, length_max: int) -> None:
    if len(text) > length_max:
        raise InvalidRequest(f"{name} has {len(text)} characters; the bound is {length_max}")


def _slice(
    request: rule_pb2.ListRulesRequest | alert_pb2.ListAlertsRequest, count: int
) -> tuple[int, int, str]:
    """Return where a page begins and ends, and the token of the next one."""
    size = requests.page_size(request.page_size)
    token = request.page_token
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidRequest(f"page_token '{token[:40]}' is none of this list's")
    start = int(token or 0)
    end = min(count, start + size)
    return start, end, str(end) if end < count else ""
