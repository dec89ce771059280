#!/usr/bin/env python3
"""A first use of the chat page, played and timed: install, `qwen3 serve`, the first streamed answer; with pictures.

    QWEN3_CLIENTS=FOLDER python tools/first_use.py     # FOLDER: of tools/client_envs.py, whose `page` has Playwright

Installs this checkout as a package into a fresh environment, drives Debian's Chromium, writes docs/first-use.md and
docs/images/*.png. All times are measured; none is an estimate.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "first-use.md"
IMAGES = ROOT / "docs" / "images"
LARGEST = 150_000  # bytes of a picture
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
SUDOKU = "Please solve:\n1 3 . .\n. 2 3 1\n2 . 4 .\n. 4 . 2"


class Play:
    """The clock, and what was seen at which time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.start = time.perf_counter()
        self.rows: list[tuple[float, float, str]] = []

    def step(self, what: str, since: float) -> None:
        now = time.perf_counter()
        self.rows.append((now - self.start, now - since, what))
        print(f"{now - self.start:7.2f} s  {now - since:6.2f} s  {what}", flush=True)

    def do(self, what: str, *command: str | Path) -> None:
        began = time.perf_counter()
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [str(part) for part in command], cwd=self.home, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"error: {what}: exit {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        self.step(what, began)


def until(what: str, test: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"error: the server ended with {process.returncode} before {what}")
        try:
            if test():
                return
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit(f"error: no {what} within {seconds:.0f} s")


def fetched(address: str) -> bool:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return answer.status == 200


def picture(page: Any, name: str) -> None:
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    if path.stat().st_size > LARGEST:
        sys.exit(f"error: {path} has {path.stat().st_size:,} bytes, more than {LARGEST:,}")


def ask(page: Any, text: str) -> None:
    page.fill("textarea[aria-label=Message]", text)
    page.click("[aria-label=Send]")


def first_answer(play: Play, page: Any, url: str) -> float:
    """What a newcomer does: opens the page, clicks the first example, reads. When the answer began, in seconds."""
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("textarea[aria-label=Message]")
    play.step("the page is there and takes a message", began)
    page.wait_for_selector(".state.ready")
    picture(page, "page-begin")
    clicked = time.perf_counter()
    page.click("text=What is 27 * 14?")
    page.wait_for_selector(".thought-text")
    play.step("click on “What is 27 * 14?”: the first thinking is on the screen", clicked)
    page.wait_for_selector(".assistant .prose p")
    play.step("click: the first word of the answer is on the screen", clicked)
    answered = play.rows[-1][0]
    page.wait_for_selector(".stats")
    play.step("click: the answer is complete", clicked)
    said = page.locator(".prose").inner_text()
    if "378" not in said:
        print(f"note: the model said {said!r}")
    picture(page, "page-answer")
    return answered


def more_pictures(context: Any, page: Any, url: str) -> None:
    """What else the page does, for docs/page.md."""
    page.keyboard.press("Control+Shift+O")
    slider = page.get_by_role("slider", name="Thinking budget")
    for _ in range(3):
        slider.press("ArrowLeft")
    ask(page, SUDOKU)
    page.wait_for_selector(".thought.live .thought-text")
    while len(page.locator(".thought-text").inner_text()) < 300:
        page.wait_for_timeout(50)
    picture(page, "page-thinking")
    page.wait_for_selector(".stats")
    page.keyboard.press("Control+Shift+O")
    page.keyboard.press("Control+,")
    page.click("text=Put examples in")
    page.keyboard.press("Escape")
    ask(page, "Please calculate 27 * 14 with the tool.")
    page.wait_for_selector(".stats")
    if page.locator("text=Approve and run").count():
        picture(page, "page-tool")
        page.click("text=Approve and run")
        page.wait_for_selector(".stats >> nth=1")
    status = context.new_page()
    status.goto(f"{url}/status")
    status.wait_for_selector(".chart")
    status.wait_for_timeout(2500)
    picture(status, "page-status")
    options = {"viewport": {"width": 360, "height": 700}, "color_scheme": "dark", "device_scale_factor": 1}
    phone = context.browser.new_context(**options).new_page()
    phone.goto(url)
    phone.wait_for_selector(".state.ready")
    ask(phone, "Divide 947 by 6.")
    phone.wait_for_selector(".stats")
    phone.click(".thought-toggle")
    picture(phone, "page-phone")


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores shared with other work (load "
        f"{os.getloadavg()[0]:.1f} at the beginning), {memory:.0f} GB, Python {platform.python_version()}"
    )


def written(play: Play, where: str, commit: str, chromium: str, answered: float) -> str:
    rows = "\n".join(f"| {at:.1f} s | {took:.2f} s | {what} |" for at, took, what in play.rows)
    said = (
        f"Played by `tools/first_use.py` at commit {commit} on {where}, with {chromium}. It installs this package into "
        "a fresh environment, starts the server as a user would, opens the page in a fresh profile, clicks the first "
        "example. PyTorch (its CPU build) comes from a package index that is near; over a slow line the installation "
        "takes as long as 200 MB do."
    )
    return f"""# A first use

{textwrap.fill(said, 118)}

**{answered:.0f} seconds from nothing to the first streamed answer**, most of it the installation.

| since the beginning | took | what |
|---|---|---|
{rows}

The page as it opens:

![The page as it opens](images/page-begin.png)

The first answer:

![The first answer, with what it cost](images/page-answer.png)
"""


def main() -> None:
    clients = os.environ.get("QWEN3_CLIENTS", "")
    sys.path += [str(path) for path in Path(clients or "none").glob("page/lib/python3*/site-packages")]
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("error: no Playwright: python tools/client_envs.py FOLDER page, then QWEN3_CLIENTS=FOLDER")
    chromium = shutil.which("chromium") or sys.exit("error: no chromium: apt-get install chromium")
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    where = machine()
    IMAGES.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        home = Path(folder)
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        version = f"Chromium {browser.version}"
        play = Play(home)
        play.do("`python3 -m venv venv`", sys.executable, "-m", "venv", "venv")
        play.do("`pip install '.[serve]'`", home / "venv/bin/pip", "install", "--quiet", f"{ROOT}[serve]")
        began = time.perf_counter()
        command = [str(home / "venv/bin/qwen3"), "serve", "--port", str(port)]
        environment = {"HOME": folder, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            until("answer", lambda: fetched(f"{url}/health"), server)
            play.step("`qwen3 serve`: it answers", began)
            until("model", lambda: fetched(f"{url}/ready"), server)
            play.step("`qwen3 serve`: the model is loaded", began)
            context = browser.new_context(viewport={"width": 1080, "height": 700})
            page = context.new_page()
            answered = first_answer(play, page, url)
            more_pictures(context, page, url)
            browser.close()
            began = time.perf_counter()
            server.send_signal(signal.SIGINT)
            code = server.wait(30)
            play.rows.append(
                (began - play.start, time.perf_counter() - began, f"Ctrl-C: the server has ended, exit code {code}")
            )
        finally:
            server.kill()
        text = written(play, where, commit, version, answered)
    PAGE.write_text(re.sub(r"[ \t]+\n", "\n", text))
    print(f"{PAGE}: {answered:.1f} s to the first answer")


if __name__ == "__main__":
    main()
