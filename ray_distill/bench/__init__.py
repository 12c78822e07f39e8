"""Benchmarks of the metagradient, of grouped replicas and seeds, and of the orchestration."""
