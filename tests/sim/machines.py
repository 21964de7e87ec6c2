"""The machines of a simulated world: a disk that outlives agents, and processes that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.agents import Agent

from agent.attempt import Ended, Key
from controller.core.limits import MIB

if TYPE_CHECKING:
    from sim.processes import Process
    from sim.world import World


class Machine:
    """A machine under the name of one node."""

    def __init__(self, world: World, node_id: str, number: int, cpus: float) -> None:
        self.world = world
        self.node_id = node_id
        self.machine_id = f"machine-{number}"
        self.cpus = cpus
        self.boots = 0
        self.cut_off_until_ns = 0
        self.cluster_id = ""
        self.spool: dict[Key, Ended] = {}
        self.processes: dict[Key, Process] = {}
        self.agent: Agent | None = None
        self.foreign_bytes = world.chance.randint(200, 700) * MIB
        self.boot()

    def boot(self) -> None:
        """Begin a new life of the machine, with an agent."""
        self.boots += 1
        self.start_agent()

    def start_agent(self) -> None:
        """Start an agent where none runs."""
        if self.agent is None:
            self.agent = Agent(self)
            self.agent.connect()

    def agent_dies(self, *, again_ns: int) -> None:
        """Kill the agent: its processes die with it; a new one comes."""
        agent = self.agent
        if agent is None:
            return
        self.world.say(f"{agent.instance_id} dies")
        agent.die()
        self.agent = None
        self.world.timeline.after(again_ns, self.start_agent)

    def power_off(self, *, again_ns: int) -> None:
        """Lose power: what was not synced is gone, and nobody is told."""
        if self.agent is None:
            return
        self.world.say(f"{self.machine_id} loses power")
        if self.agent.link is not None:
            self.agent.link.break_silently()
        self.agent.die()
        self.agent = None
        self.world.laws.disk_lost(self.node_id, self.spool)
        self.spool.clear()
        self.world.timeline.after(again_ns, self._boot_again)

    def cut_off(self, until_ns: int) -> None:
        """Let nothing pass to or from this machine for a while."""
        self.world.say(f"{self.machine_id} is cut off")
        self.cut_off_until_ns = until_ns
        if self.agent is not None and self.agent.link is not None:
            self.agent.link.break_silently()

    def _boot_again(self) -> None:
        if self.agent is None:
            self.boot()
