"""One agent without processes, to be put against a controller that is played by hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from support.fake_controller import FakeController, FakeRunner

from agent.attempts import Attempts
from agent.connection import Connection
from agent.follower import Follower
from agent.outbox import Outbox
from agent.sampler import Sampler
from agent.spool import Spool
from agent.wire import Identity

IDENTITY = Identity("n1", "i1", "m1", "b1", "0", 1 << 33, 0, 2.0, "fake", ("kill",))


@dataclass
class Agent:
    """One agent with a runner that starts nothing; `work_dir` may be that of an earlier one."""

    controller: FakeController
    work_dir: Path
    boot_ns: int = 10**12

    def __post_init__(self) -> None:
        self.spool = Spool(self.work_dir)
        self.sampler = Sampler(self.work_dir)
        self.attempts = Attempts(
            node_id="n1",
            spool=self.spool,
            follower=Follower(self.work_dir),
            make_runner=FakeRunner,
            environment={"PATH": "/bin", "SECRET": "x"},
        )
        assert isinstance(self.attempts.runner, FakeRunner)
        self.runner = self.attempts.runner
        self.outbox = Outbox(self.attempts, self.sampler)
        self.connection = Connection(
            self.controller.address,
            IDENTITY,
            self.attempts,
            self.outbox,
            boot_clock_ns=lambda: self.boot_ns,
        )
        self.running = asyncio.create_task(self.connection.run())

    async def crash(self) -> None:
        """End without a word; what is on disk stays."""
        self.running.cancel()
        await asyncio.wait({self.running})
        await self.attempts.close()
        self.spool.close()
        self.sampler.close()
