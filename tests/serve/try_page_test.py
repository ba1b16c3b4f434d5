"""The page in headless Chromium: a chat is streamed into it, and what a model or a user writes is
text and no markup."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

# Chromium reads from its file 3 and writes to its file 4.
PIPES = """
import os, sys
ends = [os.dup(int(end)) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
    os.set_inheritable(place, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium over its own pipe (--remote-debugging-pipe): commands in, answers and events out,
    each ended by a NUL."""

    def __init__(self, folder):
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]

        ends = (theirs_in, theirs_out)
        command = [sys.executable, "-c", PIPES, *map(str, ends), CHROMIUM, *flags]
        self._process = subprocess.Popen(command, pass_fds=ends, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._held, self._numbers = b"", itertools.count(1)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def send(self, method: str, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | getattr(self, "_session", {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._held:
                more = os.read(self._in, 1 << 16)
                assert more, "Chromium has ended"
                self._held += more
            said, _, self._held = self._held.partition(b"\0")
            if (found := json.loads(said)).get("id") == number:
                return found["result"]

    def run(self, script: str):
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30):
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(tmp_path):
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


def test_the_page_may_ask_this_server_alone(server):
    page = httpx.get(server.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'; connect-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_chat_and_a_text_in_the_browser(server, browser, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.send("Emulation.setDeviceMetricsOverride", **size)
    browser.send("Page.navigate", url=server.url)
    browser.wait("document.getElementById('model')?.value === 'tiny'")
    hostile = "<img src=x onerror=document.title=1> Hi"
    fill = "at('temperature').value = 0; at('tokens').value = 24;"
    browser.run(f"{fill} at('prompt').value = {json.dumps(hostile)}; at('ask').requestSubmit()")
    browser.wait("at('send').textContent === 'Send' && at('facts').textContent.includes('tokens in')")
    shown = browser.run("[...document.querySelectorAll('.turn')].map(turn => turn.textContent)")
    messages = [{"role": "user", "content": hostile}]
    said = server.post("/v1/chat/completions", model="tiny", messages=messages, temperature=0, max_tokens=24).json()
    assert shown == [hostile, said["choices"][0]["message"]["content"]]
    assert browser.run("document.title") == "Try the model"
    browser.run("at('form').value = 'text'; at('prompt').value = 'Hello'; at('ask').requestSubmit()")
    browser.wait("at('send').textContent === 'Send' && document.querySelectorAll('.turn').length === 4")
    text = server.post("/v1/completions", model="tiny", prompt="Hello", temperature=0, max_tokens=24).json()
    assert browser.run("[...document.querySelectorAll('.turn')].pop().textContent") == text["choices"][0]["text"]
    assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "nothing stands beside the page"
    browser.run("at('tokens').value = -1; at('prompt').value = 'x'; at('ask').requestSubmit()")
    browser.wait("document.querySelector('.turn.wrong')?.textContent.includes('max_tokens = -1')")
