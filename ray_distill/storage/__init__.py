"""Work folders of runs and searches: lock, lease, identity, and their mirror in a storage. See README.md."""
