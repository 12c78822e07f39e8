"""Benches: what the metagradient, replicas, seeds and the orchestration cost."""
