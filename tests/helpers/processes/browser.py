"""Headless Chromium of Debian, driven through chromedriver with the WebDriver protocol; for tests of pages."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of an element's reference


class Browser:
    """One window. Protocol errors raise `RuntimeError` with their message."""

    def __init__(self, driver, profile):
        options = {"binary": shutil.which("chromium"), "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._base = driver
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base = f"{driver}/session/{session['sessionId']}"

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

    def open(self, url):
        self._call("POST", "/url", {"url": str(url)})

    def run(self, script, *arguments):
        """Returns the result of the JavaScript function body `script`."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script, seconds=60):
        """Waits until `return script` is true in the page; returns its value."""
        until = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            if time.monotonic() > until:
                raise AssertionError(f"not true in the page after {seconds} s: {script}")
            time.sleep(0.05)
        return value

    def click(self, selector):
        element = self._call("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]
        self._call("POST", f"/element/{element}/click", {})

    def press(self, key, down=True, up=True):
        """Presses a key by its character (arrows start at U+E012), wherever the focus is."""
        actions = [{"type": kind, "value": key} for kind, wanted in (("keyDown", down), ("keyUp", up)) if wanted]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def resize(self, width, height):
        self._call("POST", "/window/rect", {"width": width, "height": height})

    def dark(self, on):
        """Sets whether the browser reports dark mode."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self._call("POST", "/goog/cdp/execute", command)

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def complaints(self):
        """Returns console messages since the last call: errors, refused scripts, broken pictures."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def requests(self):
        """Returns URLs that pages requested since the last call, without those of the browser's start page."""
        events = [json.loads(entry["message"])["message"] for entry in self._call("POST", "/se/log", {"type": "performance"})]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent if not params["documentURL"].startswith("chrome")]

    def close(self):
        self._call("DELETE", "")


@contextlib.contextmanager
def chromium():
    """Opens a browser for a `with` block; skips the test without Debian's `chromium` and `chromium-driver`."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            started = next(line for line in driver.stdout if "started successfully" in line)
            port = re.search(r"port (\d+)", started)[1]
            browser = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
            driver.wait()
