"""Builds a `DataSpec` from a configuration's section `data`."""

from pathlib import Path

from ray_distill.config.config import Config, DataRequest
from ray_distill.data.spec import DataSpec, default_cache, default_root


def data_spec(config: Config | DataRequest) -> DataSpec:
    """The run's real data, with absolute paths, since workers have other working directories."""
    section = config.data
    shared = section.cache is not None and "://" in section.cache
    return DataSpec(
        source=_absolute(section.source),
        test_source=None if section.test_source is None else _absolute(section.test_source),
        root=default_root() if section.root is None else _absolute_path(section.root),
        image_size=section.image_size,
        classes=section.classes,
        limit=section.limit,
        max_broken=section.max_broken,
        preprocessing=section.preprocessing,
        zca_shrinkage=section.zca_shrinkage or 0.0,
        validation_fraction=section.validation_fraction,
        seed=config.seed,
        cache=default_cache() if section.cache is None or shared else Path(_absolute_path(section.cache)),
        shared=section.cache if shared else None,
    )


def _absolute(source: str) -> str:
    """KIND:PATH with an absolute path; a dataset's name unchanged."""
    kind, separator, path = source.partition(":")
    return f"{kind}:{_absolute_path(path)}" if separator else source


def _absolute_path(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())
