"""The thinking: events in, commands out; no clock, no IO, no randomness."""
