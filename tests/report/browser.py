"""A page in headless Chromium, driven through its debugging pipe: no driver package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: The browsers that speak the protocol, by the names of their commands.
COMMANDS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: The descriptors that --remote-debugging-pipe reads from and writes to.
READS, WRITES = 3, 4
#: Seconds that an answer may take, on a machine under load.
PATIENCE = 60


def command() -> str | None:
    """The browser of this machine, or None where there is none."""
    return next((found for name in COMMANDS if (found := shutil.which(name))), None)


class Browser:
    """One tab."""

    def __init__(self, send: Any, receive: int) -> None:
        self._send, self._receive = send, receive
        self._number = 0
        self._received = b""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of one command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, file: Path, width: int, scheme: str = "light", height: int = 900) -> None:
        """Load the file in a window of that width, in the colour scheme `light` or `dark`."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", url=file.resolve().as_uri())
        # Asked again and again: where scripts are off, no promise of the page is ever kept.
        for _ in range(200):
            ready = "document.readyState === 'complete' && document.querySelector('h1') !== null"
            if self.evaluate(ready):
                return
            time.sleep(0.05)
        raise AssertionError(f"{file} is not loaded")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """What is in the window, as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))

    def _read(self) -> Any:
        """The next message. They end in a zero byte."""
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._receive], [], [], PATIENCE)
            assert ready, f"the browser has not answered for {PATIENCE} s"
            more = os.read(self._receive, 2**16)
            assert more, "the browser has ended"
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser, ended with the block."""
    found = command()
    assert found is not None, "no browser"
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def descriptors() -> None:
            # In the child, before the browser starts. First out of the way of the two numbers.
            reads, writes = os.dup(to_read), os.dup(to_write)
            os.dup2(reads, READS)
            os.dup2(writes, WRITES)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                   "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
                   f"--user-data-dir={profile}"]  # fmt: skip
        process = subprocess.Popen(
            [found, *options],
            preexec_fn=descriptors,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        try:
            with os.fdopen(send, "wb") as out:
                yield Browser(out, receive)
        finally:
            os.close(receive)
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
