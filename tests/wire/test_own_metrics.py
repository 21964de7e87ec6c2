"""Metrics of one's own on the wire: declared ones become columns, bad ones are refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from mass.v1 import agent_pb2
from support.harness import POOL_BYTES, SMALL, START_NS

from allocator.pool import Pool
from controller import wire
from controller.core.cluster import Cluster
from controller.core.errors import InvalidRequest
from controller.core.events import NodeJoined
from controller.core.expressions import Window, WindowFunction, parse
from controller.core.limits import GIB, PROTOCOL_VERSION, SECOND_NS
from controller.core.metrics import Scope
from controller.core.nodes import NodeRecord
from controller.core.rules import Rule, RuleSet
from controller.core.scheduler import Scheduler
from controller.core.vocabulary import vocabulary
from controller.pool_size import need

OWN = ("metric1", "queue_depth")
TEXT = "metric1 > 80 and avg(queue_depth, '10s') > 5"
RULES = RuleSet((Rule("High", "test", parse(TEXT, vocabulary(Scope.NODE, OWN))),), OWN)


def hello(**fields: object) -> agent_pb2.Hello:
    return agent_pb2.Hello(
        protocol_version=PROTOCOL_VERSION, node_id="n1", instance_id="i", machine_id="m",
        boot_id="b", agent_version="1", memory_total_bytes=GIB, cpus=1, enforcement="watchdog",
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


class Controller:
    """A cluster of one node, fed through the wire's own code."""

    def __init__(self, pool: Pool) -> None:
        self.cluster = Cluster(SMALL, RULES, pool)
        self.scheduler = Scheduler(self.cluster)
        self.now_ns = START_NS
        self.join()

    @property
    def record(self) -> NodeRecord:
        return self.cluster.nodes["n1"]

    def join(self) -> None:
        event = wire.joined(hello(custom_metrics=["metric1"]), self.now_ns, 1)
        assert isinstance(event, NodeJoined)
        self.scheduler.handle(event)

    def sample(self, values: dict[str, float]) -> None:
        self.now_ns += SECOND_NS
        sample = agent_pb2.Sample(taken_at_unix_ns=self.now_ns, custom_metrics=values)
        batch = agent_pb2.SampleBatch(samples=[sample])
        wire.write_samples(self.cluster, self.record, batch, self.now_ns)

    def latest(self, name: str) -> float:
        return float(self.cluster.history.latest(name, self.now_ns)[0])

    def alerts(self) -> list[str]:
        self.scheduler.run_cycle(self.now_ns)
        return [alert.state.value for alert in self.cluster.alerts.listing()]


@pytest.fixture
def controller() -> Iterator[Controller]:
    """A controller whose rules declare two metrics."""
    with Pool(POOL_BYTES) as pool:
        controller = Controller(pool)
        yield controller
        controller.cluster.check()
        controller.cluster.close()


def test_declared_metrics_are_kept_with_a_history_where_a_window_names_them(
    controller: Controller,
) -> None:
    controller.sample({"metric1": 90.0, "queue_depth": 0.0})
    controller.sample({"metric1": 91.5, "queue_depth": 20.0})
    controller.sample({"metric1": 91.5, "queue_depth": 20.0})
    assert controller.latest("metric1") == 91.5
    window = Window(WindowFunction.AVG, "queue_depth", 10 * SECOND_NS)
    assert controller.cluster.history.window(window, controller.now_ns)[0] == pytest.approx(10.0)
    assert controller.cluster.history.kept == {"queue_depth"}
    assert controller.alerts() == ["FIRING"]


def test_metric_is_no_data_until_reported_and_again_when_it_is_not(controller: Controller) -> None:
    controller.sample({})
    assert math.isnan(controller.latest("metric1"))
    assert controller.alerts() == []
    controller.sample({"metric1": 90.0, "queue_depth": 9.0})
    assert controller.alerts() == ["FIRING"]
    controller.sample({"queue_depth": 9.0})
    assert controller.alerts() == ["NO_DATA"]
    controller.sample({"metric1": 70.0, "queue_depth": 9.0})
    assert controller.alerts() == ["RESOLVED"]


def test_metric_that_no_file_declares_is_ignored_and_told_once(
    controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        controller.sample({"metric1": 1.0, "other": 2.0, "another": 3.0})
    controller.join()
    controller.sample({"other": 2.0})
    assert controller.latest("metric1") != 1.0  # the last sample lacks it
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"metric ignored, no rule file declares it node=n1 metric={name}"
        for name in ("another", "other")
    ]


def test_names_told_as_ignored_are_bounded(
    controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        controller.sample({f"m{number}": 1.0})
    assert len(caplog.records) == len(controller.record.undeclared) == 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric1": math.nan}, "sample.custom_metrics metric1 is nan; it must be -1e+30 to 1e+30"),
        ({"metric1": math.inf}, "sample.custom_metrics metric1 is inf"),
        ({"other": -math.inf}, "sample.custom_metrics other is -inf"),
        ({"metric1": 2e30}, "sample.custom_metrics metric1 is 2e+30"),
        ({"": 1.0}, "sample.custom_metrics '' is not 1 to 63 letters"),
        ({"a-b": 1.0}, "sample.custom_metrics 'a-b' is not 1 to 63 letters"),
        ({"x" * 64: 1.0}, "is not 1 to 63 letters"),
        (
            {f"m{number}": 1.0 for number in range(33)},
            "the number of sample.custom_metrics is 33; it must be 0 to 32",
        ),
    ],
)
def test_metric_that_cannot_be_is_refused(
    controller: Controller, values: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        controller.sample(values)
    assert message in caught.value.message


def test_hello_with_too_many_names_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"hello\.custom_metrics is 33; it must be 0 to 32"):
        wire.joined(hello(custom_metrics=[f"m{number}" for number in range(33)]), 1, 1)


def test_metric_declared_while_running_needs_a_restart(controller: Controller) -> None:
    more = (*OWN, "later")
    rules = RuleSet((Rule("Late", "test", parse("later > 1", vocabulary(Scope.NODE, more))),), more)
    with pytest.raises(InvalidRequest, match="no values of later are kept since the start"):
        controller.cluster.reconfigure(rules, SMALL, controller.now_ns)
    fewer = RuleSet(
        (Rule("Other", "test", parse("metric1 > 5", vocabulary(Scope.NODE, OWN[:1]))),), OWN[:1]
    )
    controller.cluster.reconfigure(fewer, SMALL, controller.now_ns)
    controller.sample({"metric1": 6.0, "queue_depth": 1.0})
    assert controller.alerts() == ["FIRING"]


def test_pool_has_room_for_declared_metrics() -> None:
    plain, own = need(SMALL, RuleSet()), need(SMALL, RULES)
    assert own.columns_bytes - plain.columns_bytes >= 2 * 8 * SMALL.nodes_max
    assert own.histories_bytes > plain.histories_bytes
