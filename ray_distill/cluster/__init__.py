"""Ray: connections, a pool of actors, process groups. Importing the package sets the environment that Ray is imported in."""

import os

# Otherwise, in this order: a driver under `uv run` makes Ray build a new environment for its
# workers; Train's controller fetches reports, one by one, only every 2 s; and a research tool reports its usage.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
