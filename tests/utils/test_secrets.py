"""Passwords in URIs: seen by nobody, kept nowhere, and still there for a run that is resumed."""

import json
from pathlib import Path

import pytest

from ray_distill.config.config import ConfigError
from ray_distill.config.load import load_config, parse_config
from ray_distill.data.labelled_images import DataError
from ray_distill.data.paths import fs_path
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.store import TrackingError, open_store
from ray_distill.tracking.tracker import Tracker
from ray_distill.tracking.uri import StoreError, ui_command
from ray_distill.tuning.config import load_search
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.utils.secrets import holds_password, redact

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DIGITS = EXPERIMENTS / "digits_ipc1.yaml"
SEARCH = EXPERIMENTS / "search_window_digits.yaml"
WHOLE = "postgresql://me:geheim@host/db"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (WHOLE, "postgresql://me:***@host/db"),
        ("http://me:ge@he/im@host:5000", "http://me:***@host:5000"),
        (
            "cannot reach s3://key:ge:heim@bucket/x?region=y now",
            "cannot reach s3://key:***@bucket/x?region=y now",
        ),
        (
            "'mysql+pymysql://me:geheim@a/b' and 'http://u:geheim@c'",
            "'mysql+pymysql://me:***@a/b' and 'http://u:***@c'",
        ),
        ("http://host/?user=me&api_token=geheim&x=1", "http://host/?user=me&api_token=***&x=1"),
        ("postgresql://host/db?Password=geheim", "postgresql://host/db?Password=***"),
    ],
)
def test_a_password_is_masked_wherever_it_stands(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert holds_password(text)
    assert not holds_password(shown)
    assert "geheim" not in ui_command(text)


@pytest.mark.parametrize(
    "uri", ["sqlite:////a/b.db", "http://127.0.0.1:5000", "s3://bucket/a?region=b", "folder:a:b@c"]
)
def test_what_holds_none_is_left_alone(uri: str) -> None:
    assert redact(uri) == uri


def test_a_configuration_that_holds_one_is_refused_without_repeating_it() -> None:
    values = load_config(DIGITS).to_dict()
    for section, key, uri in (
        ("data", "source", "parquet:s3://key:geheim@bucket/x"),
        ("data", "source", "parquet:s3://bucket/x?secret_key=geheim"),
        ("data", "root", "s3://key:geheim@bucket"),
        ("tracking", "uri", WHOLE),
        ("tracking", "uri", "http://host?token=geheim"),
        ("tracking", "experiment", [WHOLE]),
    ):
        with pytest.raises(ConfigError, match=rf"{section}\.{key}: ") as caught:
            parse_config(
                values
                | {
                    section: values[section] | {"source": "mnist", key: uri}
                    if key == "root"
                    else values[section] | {key: uri}
                }
            )
        assert "geheim" not in str(caught.value)


def test_a_run_keeps_none_and_asks_for_it_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in `run.json` nor in `config.yaml`; the environment's is taken if it is that of this store."""
    config, folder = load_config(DIGITS), RunDir(tmp_path)
    folder.claim(config, Tracker(WHOLE, "abc"))
    assert not [path for path in tmp_path.iterdir() if "geheim" in path.read_text()]
    assert json.loads(folder.identity.read_text())["uri"] == "postgresql://me:***@host/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", WHOLE)
    assert folder.tracker_to_resume(config) == Tracker(WHOLE, "abc")
    assert folder.mlflow_uri() == WHOLE
    for other in ("postgresql://me:geheim@else/db", "sqlite:///x.db", ""):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        with pytest.raises(ConfigError, match=r"\*\*\*@host/db, and its password is not saved; set \$MLFLOW"):
            folder.tracker_to_resume(config)


def test_a_search_keeps_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, folder = load_search(SEARCH), SearchDir(tmp_path)
    folder.claim(search, Tracker(WHOLE, "abc"))
    assert not [path for path in tmp_path.iterdir() if "geheim" in path.read_text()]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", WHOLE)
    assert folder.tracker_to_resume(search) == Tracker(WHOLE, "abc")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="its password is not saved"):
        folder.tracker_to_resume(search)


def test_what_mlflow_says_of_a_store_that_is_away_is_masked() -> None:
    """It repeats the whole URI in what it raises."""
    away = Tracker("http://me:geheim@127.0.0.1:9", "abc")
    assert "geheim" not in repr(away)
    for error, ask in ((TrackingError, lambda: away.set_tag("a", "b")), (StoreError, away.exists_in_store)):
        with pytest.raises(error, match=r"http://me:\*\*\*@127\.0\.0\.1:9") as caught:
            ask()
        assert "geheim" not in str(caught.value)
    with pytest.raises(StoreError) as caught_open:
        open_store("mysql://me:geheim@127.0.0.1:9/x", "tests")
    assert "geheim" not in str(caught_open.value)


def test_a_place_that_cannot_be_reached_is_named_without_it() -> None:
    with pytest.raises(DataError) as caught:
        fs_path("ftp://me:geheim@host/x")
    assert "geheim" not in str(caught.value)
    assert "ftp://me:***@host/x" in str(caught.value)
