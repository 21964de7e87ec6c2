"""The pool against a model: whatever the calls, blocks keep their bytes and room is never lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from allocator.pool import POOL_BYTES_MIN, Block, Pool, PoolExhausted, WrongFree

CAPACITY_BYTES = 4096  # one page of blocks: the smallest pool is often full
SIZES = (
    st.integers(0, 200)
    | st.integers(0, CAPACITY_BYTES + 1)
    | st.sampled_from([1008, 1024, 2064])  # around a whole cell, and where lists stop being exact
)


class Model:
    """Which bytes are taken and what they hold; knows nothing of lists or cells."""

    def __init__(self) -> None:
        self.content: dict[int, bytes] = {}
        self.room: dict[int, int] = {}

    def add(self, address: int, content: bytes) -> None:
        room = max(16, -(-len(content) // 16) * 16)
        for other, taken in self.room.items():
            assert address + room <= other or other + taken <= address, "blocks overlap"
        self.content[address], self.room[address] = content, room

    def remove(self, address: int) -> bytes:
        del self.room[address]
        return self.content.pop(address)

    def used_bytes(self) -> int:
        return sum(self.room.values())


class PoolAgainstModel(RuleBasedStateMachine):
    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(POOL_BYTES_MIN)
        self.model = Model()
        self.stamp = 0

    def write(self, block: Block, size_bytes: int) -> None:
        self.stamp = self.stamp % 255 + 1
        block.view()[:] = bytes([self.stamp]) * size_bytes
        self.model.add(block.address, bytes([self.stamp]) * size_bytes)

    def may_fail(self, size_bytes: int) -> bool:
        """Whether no free block is surely large enough; lists above 2 KiB differ by 1/64."""
        return size_bytes + size_bytes // 64 + 16 > self.pool.statistics().largest_free_bytes

    @rule(target=blocks, size_bytes=SIZES, alignment_bytes=st.sampled_from([16, 16, 64, 256]))
    def allocate(self, size_bytes: int, alignment_bytes: int) -> object:
        try:
            block = self.pool.allocate(size_bytes, alignment_bytes)
        except PoolExhausted:
            assert self.may_fail(size_bytes + alignment_bytes)
            return multiple()
        assert block.address % alignment_bytes == 0
        self.write(block, size_bytes)
        return block

    @rule(target=blocks, block=consumes(blocks), size_bytes=SIZES)
    def reallocate(self, block: Block, size_bytes: int) -> object:
        old = self.model.content[block.address]
        address = block.address
        try:
            self.pool.reallocate(block, size_bytes)
        except PoolExhausted:
            assert size_bytes > len(old)
            assert self.may_fail(size_bytes)
            assert (block.address, bytes(block.view())) == (address, old)
            return block
        kept = min(size_bytes, len(old))
        assert bytes(block.view()[:kept]) == old[:kept]
        assert block.address == address or size_bytes > len(old)
        self.model.remove(address)
        self.write(block, size_bytes)
        return block

    @rule(block=consumes(blocks))
    def free(self, block: Block) -> None:
        assert bytes(block.view()) == self.model.remove(block.address)
        self.pool.free(block)

    @rule(block=blocks, offset=st.integers(1, 4096))
    def free_wrongly(self, block: Block, offset: int) -> None:
        address = block.address + offset
        if address in self.model.room:
            return
        wrong = Block(block._address + offset, 0, block._reset_count)
        count = self.pool.statistics().wrong_free_count
        try:
            self.pool.free(wrong)
            raise AssertionError("a wrong free was believed")
        except WrongFree:
            assert self.pool.statistics().wrong_free_count == count + 1

    @invariant()
    def pool_is_sound_and_counts_what_the_model_counts(self) -> None:
        self.pool.check()
        now = self.pool.statistics()
        assert now.used_bytes == self.model.used_bytes()
        assert now.live_count == len(self.model.room)
        assert now.largest_free_bytes <= now.capacity_bytes - now.used_bytes
        assert now.capacity_bytes == CAPACITY_BYTES

    def teardown(self) -> None:
        self.pool.reset()
        self.pool.check()
        assert self.pool.statistics().largest_free_bytes == CAPACITY_BYTES
        self.pool.close()


PoolAgainstModel.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None
)
TestPoolAgainstModel = PoolAgainstModel.TestCase
