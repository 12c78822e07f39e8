"""Folders of runs and searches, their locks, leases and copies in a storage that all machines reach."""
