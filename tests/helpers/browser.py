"""A headless Chromium, driven by chromedriver over its own protocol (W3C WebDriver: JSON over HTTP)."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.helpers.processes import free_port

PATIENCE_S = 90.0
"""For a page on a busy machine."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1100",
)


def missing() -> str | None:
    """Why there can be no browser here."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(lacking)} on this machine" if lacking else None


def eventually(ask: Callable[[], Any], what: str) -> Any:
    """The first answer that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.3)
    return answer


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        _call(f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that JavaScript returns."""
        return _call(f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        """All that a person can read now."""
        return str(self.run("return document.body.innerText"))

    def wait_for(self, *words: str) -> None:
        """Until all of the words can be read."""
        try:
            eventually(lambda: all(word in self.text() for word in words), str(words))
        except AssertionError as e:
            raise AssertionError(f"{e}; there is: {self.text()}") from None

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(_call(f"{self._session}/screenshot")))


def _call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=PATIENCE_S) as answer:
        return json.loads(answer.read())["value"]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, which ends with the block."""
    port = free_port()
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    at = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with suppress(URLError, ConnectionError):
            return bool(_call(f"{at}/status")["ready"])
        return False

    try:
        eventually(ready, "chromedriver")
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wish = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        session = f"{at}/session/{_call(f'{at}/session', wish)['sessionId']}"
        try:
            yield Browser(session)
        finally:
            urlopen(Request(session, method="DELETE"), timeout=PATIENCE_S).close()
    finally:
        driver.terminate()
        driver.wait()
