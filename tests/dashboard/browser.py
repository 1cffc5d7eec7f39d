"""Headless Chromium over its debugging pipe: open a page, wait for a condition in it, read it, take a
picture.

The protocol is JSON between NUL bytes on the descriptors 3 and 4 (Chrome DevTools Protocol,
--remote-debugging-pipe).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.waiting import until

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"),
    *("--no-first-run", "--remote-debugging-pipe"),
)


class Tab:
    """One page in the browser."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = os.fdopen(send, "wb", buffering=0)
        self._receive = os.fdopen(receive, "rb")
        self._calls = 0
        self._target = ""
        self._session: str | None = None

    def open(self, url: str, width: int = 1240, height: int = 1500, dark: bool = False) -> None:
        """Returns once the address is being loaded; use `wait` for what it should show."""
        self._session, last = None, self._target
        self._target = self.call("Target.createTarget", url="about:blank")["targetId"]
        if last:
            self.call("Target.closeTarget", targetId=last)
        self._session = self.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        until(lambda: self.evaluate(expression), what=expression)

    def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def call(self, method: str, **params: Any) -> Any:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                assert "result" in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        answer: dict[str, Any] = json.loads(content)
        return answer

    def close(self) -> None:
        with suppress(OSError):
            self._send.close()
        self._receive.close()


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser with a fresh profile, closed with the block."""
    read_theirs, write_ours = os.pipe()
    read_ours, write_theirs = os.pipe()

    def as_three_and_four() -> None:
        first, second = os.dup(read_theirs), os.dup(write_theirs)
        os.dup2(first, 3)
        os.dup2(second, 4)

    process = subprocess.Popen(
        [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}"],
        preexec_fn=as_three_and_four,
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_theirs)
    os.close(write_theirs)
    tab = Tab(write_ours, read_ours)
    try:
        yield tab
    finally:
        tab.close()
        process.terminate()
        process.wait(20)
