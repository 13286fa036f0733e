"""A headless Chromium for tests, driven over its DevTools pipe with nothing but the standard library.

Messages are JSON with a NUL at the end, on descriptors 3 (to the browser) and 4 (from it); no port is opened.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0
"""Seconds for any answer: test machines are busy."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-extensions"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--hide-scrollbars", "--mute-audio"),
)
_BECOME = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""A process takes the two descriptors to their places and becomes the browser."""


def program() -> str | None:
    """Where the browser is, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """A page of the browser, and all that it said and asked for."""

    def __init__(self, to: int, source: int) -> None:
        self.to, self.source = to, source
        self.rest = b""
        self.number = 0
        self.session = ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The browser's answer; AssertionError if it refuses, TimeoutError if it says nothing."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda heard: heard.get("id") == self.number)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    def wait(self, fits: Any) -> dict[str, Any]:
        """The next message that fits; events that come before it are kept."""
        while True:
            heard = self.hear()
            if "method" in heard:
                self.events.append(heard)
            if fits(heard):
                return heard

    def hear(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            if not select.select([self.source], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {PATIENCE:.0f} s")
            more = os.read(self.source, 1 << 16)
            if not more:
                raise ConnectionError("Chromium ended")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        return heard

    def open(self, file: Path, width: int, height: int = 900, media: Mapping[str, str] | None = None) -> None:
        """Load a file in a window of this size in CSS pixels; a narrow one is a phone."""
        phone = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        features = [{"name": name, "value": value} for name, value in (media or {}).items()]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.ask("Page.navigate", url=file.as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.wait(lambda heard: heard.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """One key, down and up."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, whole: bool = False) -> bytes:
        """What is to be seen, as a PNG; with `whole`, the page to its end."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.ask("Page.printToPDF", preferCSSPageSize=True)["data"])

    def requests(self) -> list[str]:
        """What the page asked for since it was opened."""
        return [event["params"]["request"]["url"] for event in self.heard("Network.requestWillBeSent")]

    def complaints(self) -> list[Any]:
        """What the page wrote to its console, errors of the browser about it included."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.heard(*names)]

    def heard(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["method"] in names]


@contextmanager
def chromium(executable: str, home: Path) -> Iterator[Tab]:
    """A browser with one tab, whose profile lies in `home`; it is gone in the end."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # High copies, lest one of them be 3 or 4 and be overwritten by the other's move.
    import fcntl

    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]
    for end in (to_read, from_write):
        os.close(end)
    command = [sys.executable, "-c", _BECOME, *map(str, ends), executable, *_FLAGS, f"--user-data-dir={home}/profile"]
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    with open(home / "chromium.log", "wb") as log:
        process = subprocess.Popen(command, pass_fds=ends, stdout=log, stderr=log, env=environment)
    for end in ends:
        os.close(end)
    try:
        tab = Tab(to_write, from_read)
        yield tab
        tab.session = ""
        tab.ask("Browser.close")
    finally:
        os.close(to_write)
        os.close(from_read)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
