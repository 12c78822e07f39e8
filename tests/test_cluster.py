"""Getting hold of a cluster: what is refused at once, since Ray would wait for ever."""

import pytest

from ray_distill.cluster import require_no_other
from ray_distill.config import ConfigError


def test_a_second_cluster_on_the_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[str] = {"127.0.0.1:1"}
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: found)
    require_no_other()
    found.add("127.0.0.1:2")
    with pytest.raises(
        ConfigError, match=r"there are 2 Ray clusters on it \(127\.0\.0\.1:1, 127\.0\.0\.1:2\)"
    ):
        require_no_other()
