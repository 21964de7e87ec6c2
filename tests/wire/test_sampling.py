"""How often to sample, from the controller's settings to the agent."""

from __future__ import annotations

import agent.wire
import controller.wire
from controller.core.limits import MILLISECOND_NS, SECOND_NS, Limits


def test_agent_reads_the_intervals_that_the_controller_sends() -> None:
    limits = Limits(sample_interval_ns=250 * MILLISECOND_NS, heartbeat_ns=20 * SECOND_NS)
    message = controller.wire.sampling(limits)
    assert message.WhichOneof("body") == "sampling"
    sampling = agent.wire.decode_sampling(message.sampling)
    assert (sampling.interval_ns, sampling.heartbeat_ns) == (250_000_000, 20_000_000_000)
