"""A page in headless Chromium, driven by the DevTools protocol."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), "")
STARTS_IN = 60.0  # seconds, on a busy machine


class Page:
    """A page that is open between `__enter__` and `__exit__`. `errors` has what it wrote to the console as an error."""

    def __init__(self, file: Path, width: int = 1400, height: int = 1000, dark: bool = False, scripts: bool = True):
        self.file, self.size, self.dark, self.scripts = file, (width, height), dark, scripts
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.numbers = itertools.count(1)
        self.loop = asyncio.new_event_loop()
        self.session: Any = None  # of aiohttp

    def __enter__(self) -> "Page":
        self.profile = tempfile.mkdtemp()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        command = [CHROMIUM, *flags, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.loop.run_until_complete(self.connect())
            self.open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if self.session:
            self.loop.run_until_complete(self.session.close())
        self.loop.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    async def connect(self) -> None:
        import aiohttp

        port, deadline = Path(self.profile) / "DevToolsActivePort", time.monotonic() + STARTS_IN
        while not (port.exists() and port.read_text().strip()):
            assert time.monotonic() < deadline, "Chromium does not start"
            await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        self.session = aiohttp.ClientSession()
        targets: list[dict] = []
        while not targets:
            async with self.session.get(address) as response:
                targets = [target for target in await response.json() if target["type"] == "page"]
        self.socket = await self.session.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0)

    def open(self) -> None:
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")
        width, height = self.size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not self.scripts)
        self.call("Page.navigate", url=self.file.as_uri())
        deadline = time.monotonic() + STARTS_IN
        while self("document.readyState") != "complete" or self("location.protocol") != "file:":
            assert time.monotonic() < deadline, "the page does not load"

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command."""
        return self.loop.run_until_complete(self.send(method, parameters))

    async def send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self.socket.receive()).data)
            self.note(message.get("method", ""), message.get("params", {}))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])

    def __call__(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def place(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        """A point in the window inside the first element that a selector finds, which is scrolled to."""
        self(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        rect = self(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        return rect["x"] + across * rect["width"], rect["y"] + rect["height"] / 2

    def mouse(self, kind: str, at: tuple[float, float], **more: Any) -> None:
        """Moves or presses the pointer, and waits until the page is drawn again."""
        self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **more)
        self("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def screenshot(self, file: Path, whole: bool = True) -> None:
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12000), "scale": 1}
            data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        else:
            data = self.call("Page.captureScreenshot")["data"]
        file.write_bytes(base64.b64decode(data))
