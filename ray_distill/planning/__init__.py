"""Estimates a run's time and memory before it starts, from short probes on this machine."""
