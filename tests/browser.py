"""A headless Chromium, driven through the DevTools protocol over a pipe, with nothing but the standard library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
_SECONDS = 60  # a hung browser is an error, not an endless test


def find_browser() -> str | None:
    """The first of the browsers that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser.

    problems: what its console and its log said since the last `open`; requests: the URLs that the page asked for.
    """

    def __init__(self, path: str) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._waiting = b""
        self._profile = tempfile.TemporaryDirectory(prefix="sqlora-browser-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = [*OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"]
        # Chromium reads commands from descriptor 3 and writes answers to 4, each one ended by a zero byte. The pipes'
        # own descriptors must be neither.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", path, *options],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (theirs_in, theirs_out, *ends):
            os.close(descriptor)
        targets = self._command("Target.getTargets", session=None)["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self._command("Target.attachToTarget", session=None, targetId=page, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and delete its profile."""
        try:
            self._command("Browser.close", session=None)
            self._process.wait(_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            for descriptor in (self._in, self._out):
                os.close(descriptor)
            self._profile.cleanup()

    def open(self, file: Path, *, width: int = 1200, height: int = 900, scheme: str = "light", media: str = "") -> None:
        """Load a file in a window of that many CSS pixels; scheme: `light` or `dark`; media: empty or `print`."""
        phone = width < 600
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        self.show_as(scheme=scheme, media=media)
        self.problems.clear()
        self.requests.clear()
        self.command("Page.navigate", url=file.absolute().as_uri())
        self._until("Page.loadEventFired")

    def show_as(self, *, scheme: str = "light", media: str = "") -> None:
        """Prefer another colour scheme or medium from now on."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives; an exception in it fails."""
        answer = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        answer = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        file.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed on A4."""
        answer = self.command("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=False)
        return base64.b64decode(answer["data"])

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol to the page; returns its result."""
        return self._command(method, session=self._session, **parameters)

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _command(self, method: str, *, session: str | None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _until(self, event: str) -> None:
        while self._message().get("method") != event:
            pass

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._in], [], [], _SECONDS)
            read = os.read(self._in, 1 << 20) if ready else b""
            assert read, "the browser ended or hangs"
            self._waiting += read
        line, _, self._waiting = self._waiting.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, parameters: dict[str, Any]) -> None:
        if event == "Log.entryAdded":
            self.problems.append(parameters["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(str([argument.get("value") for argument in parameters["args"]]))
        elif event == "Runtime.exceptionThrown":
            self.problems.append(parameters["exceptionDetails"]["text"])
        elif event == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if urlsplit(url).scheme != "data":
                self.requests.append(url)


if __name__ == "__main__":
    # python tests/browser.py results/report.html docs/report.png: the picture that README shows.
    found = find_browser() or sys.exit(f"error: found none of {', '.join(NAMES)}; expected one. Install it.")
    shown = Browser(found)
    shown.open(Path(sys.argv[1]), width=1200, height=1390)
    shown.screenshot(Path(sys.argv[2]))
    shown.close()
