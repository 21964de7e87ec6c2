"""Learned sizes: bounds, determinism, and the sentences they keep."""

from __future__ import annotations

from controller.core.sizing import GIB, MIB, Ask, Basis, Sizing


def test_nothing_learned_gives_what_is_declared_or_the_default() -> None:
    sizing = Sizing()
    assert sizing.size(Ask("blast"), 64 * GIB).memory_bytes == GIB
    assert sizing.size(Ask("blast"), 64 * GIB).basis is Basis.DEFAULT
    declared = sizing.size(Ask("blast", declared_bytes=300 * MIB), 64 * GIB)
    assert (declared.memory_bytes, declared.basis) == (300 * MIB, Basis.DECLARED)
