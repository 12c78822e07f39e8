"""Dataset distillation by random truncated backpropagation through time (RaT-BPTT), orchestrated by Ray.

The Python interface, all of it imported when first used:

    distill, evaluate, search           what the commands of these names do, returning `Run`, `Evaluation`, `SearchResult`
    load_config, load_search            checked configurations from YAML, dicts or themselves
    DistilledDataset, load_external_set distilled sets, ours and those of other methods
    Callback                            what to do while a distillation runs
    UserError, RunError                 what the caller can fix; what failed on the way

The algorithm itself, torch alone, is `ray_distill.core`. Types are in `__init__.pyi`, so that this module imports nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
"""Kept here, not asked of the installation: on a cluster the package may come as a job's working folder alone."""

_MODULES = {
    "Callback": "distillation.callbacks",
    "Config": "config.config",
    "DistilledDataset": "artifacts.dataset",
    "Evaluation": "evaluation.run",
    "Run": "api",
    "RunError": "errors",
    "SearchConfig": "tuning.config",
    "SearchResult": "api",
    "UserError": "errors",
    "distill": "api",
    "evaluate": "api",
    "load_config": "config.load",
    "load_external_set": "api",
    "load_search": "tuning.config",
    "search": "api",
}

__all__ = ["__version__", *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
