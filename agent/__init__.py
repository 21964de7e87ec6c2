"""The agent: samples, runs, reports; the controller is only ever met on the wire."""
