"""Debian's Chromium against the page. Skipped, with the reason, where there is no Chromium or no Playwright.

Playwright comes from the environment `page` of the folder QWEN3_CLIENTS (tools/client_envs.py), or from this one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serve.page.fake import Fake, Running

sys.path += [
    str(path) for path in Path(os.environ.get("QWEN3_CLIENTS") or "none").glob("page/lib/python3*/site-packages")
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
# Notes what blocks the main thread for 50 ms or more, from before the page's first script.
WATCH = """
window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration))).observe({type: "longtask"});
"""


@dataclass
class Blocked:
    """The longest task of the main thread in ms. clock: as the page's own observer saw it (0: none of 50 ms). work:
    processor time, which other work on a busy machine does not stretch."""

    clock: float = 0.0
    work: float = 0.0


@dataclass
class Tab:
    """A page under watch. problems: errors of scripts, refused requests, requests that would leave the server."""

    page: Any
    url: str
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error.stack}"))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.problems.append(f"request: {request.url}")

    def open(self, path: str = "/") -> Tab:
        self.page.goto(self.url + path)
        self.page.wait_for_selector("textarea[aria-label=Message]")
        return self

    def until(self, expression: str, seconds: float = 20) -> None:
        """Waits for a JavaScript expression to hold. The page allows no `eval`, which Playwright's own way needs."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"() => Boolean({expression})"):
            assert time.monotonic() < end, f"not in {seconds} s: {expression}"
            time.sleep(0.03)

    def ask(self, text: str, wait: bool = True) -> None:
        """Sends a message; wait: until its answer is complete."""
        before = self.page.evaluate("document.querySelectorAll('.bubble').length")
        self.page.fill("textarea[aria-label=Message]", text)
        self.page.keyboard.press("Enter")
        self.until(f"document.querySelectorAll('.bubble').length > {before}")
        if wait:
            self.over()

    def over(self, seconds: float = 20) -> None:
        self.until(
            "document.querySelector('[aria-label=Send]') && !document.querySelector('[aria-busy=true]')", seconds
        )

    def text(self, selector: str) -> str:
        return self.page.locator(selector).last.inner_text()

    @contextmanager
    def watched(self) -> Iterator[Blocked]:
        """What of this blocked the main thread, known after the block."""
        found = Blocked()
        self.page.evaluate("tasks.length = 0")
        browser = self.page.context.browser
        browser.start_tracing(page=self.page, categories=["toplevel", "disabled-by-default-devtools.timeline"])
        try:
            yield found
            found.clock = max(self.page.evaluate("tasks"), default=0.0)
        finally:
            events = json.loads(browser.stop_tracing())["traceEvents"]
        main = {
            (e["pid"], e["tid"]) for e in events if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"
        }
        found.work = max(e.get("tdur", 0) / 1000 for e in events if (e["pid"], e["tid"]) in main)
        print(f"longest task: {found.clock:.0f} ms by the clock, {found.work:.0f} ms of work")

    @property
    def answer(self) -> str:
        return self.text(".assistant .prose")

    def answers(self) -> list[str]:
        return self.page.locator(".assistant .prose").all_inner_texts()

    def stored(self) -> dict[str, list[dict[str, Any]]]:
        """What IndexedDB holds."""
        return self.page.evaluate("""async () => {
            const done = (r) => new Promise((ok, no) => ((r.onsuccess = () => ok(r.result)), (r.onerror = no)));
            const db = await done(indexedDB.open("qwen3"));
            const all = (name) => done(db.transaction(name).objectStore(name).getAll());
            const found = {chats: await all("chats"), nodes: await all("nodes")};
            db.close();
            return found;
        }""")

    def call(self, module: str, expression: str) -> Any:
        """The value of an expression in which `m` is one of the page's modules."""
        source = f"""async () => {{
            const base = document.querySelector('script[type=module]').src.replace(/[^/]*$/, '');
            const m = await import(base + {json.dumps(module)});
            return {expression};
        }}"""
        return self.page.evaluate(source)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright: tools/client_envs.py FOLDER page, then QWEN3_CLIENTS=FOLDER"
    )
    # The driver's event loop must not outlive these tests: others in this thread have their own.
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="package")
def running() -> Iterator[Running]:
    server = Running()
    yield server
    server.close()


@pytest.fixture
def fake(running: Running) -> Fake:
    running.fake.reset()
    return running.fake


@pytest.fixture
def new_tab(browser: Any, running: Running, fake: Fake) -> Iterator[Callable[..., Tab]]:
    """Makes tabs; in the same profile as an earlier one where that is given, else in a fresh profile. A problem in any
    of them fails the test, unless the test has cleared it."""
    tabs: list[Tab] = []

    def make(beside: Tab | None = None, **options: Any) -> Tab:
        options.setdefault("viewport", {"width": 1100, "height": 760})
        context = beside.page.context if beside else browser.new_context(**options)
        if beside is None:
            context.set_default_timeout(10_000)
            context.add_init_script(WATCH)
        tabs.append(Tab(context.new_page(), running.url))
        return tabs[-1]

    yield make
    problems = [problem for tab in tabs for problem in tab.problems]
    for context in {tab.page.context for tab in tabs}:
        context.close()
    assert problems == []


@pytest.fixture
def tab(new_tab: Callable[..., Tab]) -> Tab:
    return new_tab().open()
