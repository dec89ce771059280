"""For everybody: keyboard alone, a narrow phone, a dark room, a screen reader, little motion."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serve.page.conftest import Tab
from tests.serve.page.fake import Fake

RICH = """# Title

Text with `code`, **bold**, [a link](https://example.org) and $x^2$.

| a | long column name | another long column name | and one more of them |
|---|--:|---|---|
| 1 | 2 | averyveryverylongwordwithoutanybreakinit | 4 |

```python
print("a line of code that is certainly longer than any phone is wide, and then some more of it")
```

1. one
   - nested

> quoted

averyveryverylongwordwithoutanybreakinitaveryveryverylongwordwithoutanybreakinitaveryveryverylongword

$$\\int_0^\\infty e^{-x^2} dx = \\frac{\\sqrt{\\pi}}{2} + a + b + c + d + e + f + g + h + i + j + k + l + m + n$$
"""


@pytest.fixture(scope="module")
def axe(browser: Any) -> str:
    """The scanner's source, which travels in a package of the test environment."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-core: tools/client_envs.py FOLDER page, then QWEN3_CLIENTS=FOLDER")
    return (Path(found.origin).parent / "axe.min.js").read_text()


def violations(tab: Tab, axe: str) -> list[str]:
    tab.page.wait_for_timeout(250)  # for transitions: colours in between have no contrast
    tab.page.evaluate(axe)
    found = tab.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{each['id']}: {node['html'][:150]}" for each in found["violations"] for node in each["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 360)])
def test_axe(new_tab: Callable[..., Tab], fake: Fake, axe: str, scheme: str, width: int) -> None:
    fake.texts["rich"] = RICH
    tab = new_tab(viewport={"width": width, "height": 760}, color_scheme=scheme).open()
    assert violations(tab, axe) == []
    tab.ask("say rich")
    tab.page.click("[aria-label='Another answer']")
    tab.until("document.querySelector('.branches')")
    tab.over()
    tab.ask("tool")
    tab.page.click(".thought-toggle")
    assert violations(tab, axe) == []
    tab.page.click("text=Approve and run")
    tab.over()
    tab.ask("think 3000 200", wait=False)
    tab.page.wait_for_selector(".thought.live")
    assert violations(tab, axe) == []
    tab.page.keyboard.press("Escape")
    tab.over()
    tab.page.keyboard.press("ArrowUp")
    tab.page.wait_for_selector(".editor")
    assert violations(tab, axe) == []
    for keys in ("Control+,", "Control+/"):
        tab.page.keyboard.press(keys)
        tab.page.wait_for_selector("dialog")
        assert violations(tab, axe) == []
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector("dialog", state="detached")
    tab.page.click("[title=Models]")
    assert violations(tab, axe) == []
    tab.page.keyboard.press("Escape")
    if width == 360:
        tab.page.click("[aria-label='Show conversations']")
        assert violations(tab, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_status(new_tab: Callable[..., Tab], axe: str, scheme: str) -> None:
    tab = new_tab(color_scheme=scheme)
    tab.page.goto(tab.url + "/status")
    tab.page.wait_for_selector(".chart")
    assert violations(tab, axe) == []


def test_360_pixels(new_tab: Callable[..., Tab], fake: Fake) -> None:
    fake.texts["rich"] = RICH
    tab = new_tab(viewport={"width": 360, "height": 640}).open()
    assert not tab.page.locator(".sidebar").is_visible()

    def wide() -> list[str]:
        """What sticks out sideways, apart from what scrolls inside its own box."""
        return tab.page.evaluate("""() => {
            const inside = 'html, main, main article, .prose > *, .composer, .composer *, .top *, dialog, .toast';
            const found = [...document.querySelectorAll(inside)];
            const scrolls = (el) => el.matches('html, main') && el.scrollWidth > el.clientWidth;
            return found.filter((el) => el.getBoundingClientRect().right > innerWidth + 0.5 || scrolls(el))
                .map((el) => el.outerHTML.slice(0, 120));
        }""")

    assert wide() == []
    tab.ask("say rich")
    assert wide() == []
    tab.ask("tool")
    assert wide() == []
    tab.page.click("[aria-label='Show conversations']")
    tab.page.click(".chat-item a")
    assert not tab.page.locator(".sidebar").is_visible(), "it closes behind a choice"
    tab.page.click("[aria-label=Settings]")
    assert wide() == []
    tab.page.click("dialog [aria-label=Close]")
    tab.page.goto(tab.url + "/status")
    tab.page.wait_for_selector(".chart")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark(new_tab: Callable[..., Tab]) -> None:
    light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128"
    tab = new_tab(color_scheme="dark").open()
    assert tab.page.evaluate(light) is False
    tab.page.keyboard.press("Control+,")
    tab.page.get_by_role("radio", name="Light").check()
    assert tab.page.evaluate(light) is True
    tab.page.reload()
    assert tab.page.evaluate(light) is True
    tab.page.keyboard.press("Control+,")
    tab.page.get_by_role("radio", name="As the system").check()
    assert tab.page.evaluate(light) is False


def test_little_motion(new_tab: Callable[..., Tab]) -> None:
    tab = new_tab(reduced_motion="reduce").open()
    tab.ask("think 2000 200", wait=False)
    tab.page.wait_for_selector(".dot")
    assert tab.page.evaluate("document.getAnimations().length") == 0


def focused(tab: Tab) -> str:
    return tab.page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()")


def tab_to(tab: Tab, name: str) -> None:
    """Presses Tab until the control of that name has the focus, and sees that it shows."""
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if focused(tab) == name:
            style = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style != "none", f"the focus on {name} is invisible"
            return
    raise AssertionError(f"{name} cannot be reached")


def test_keyboard_alone(tab: Tab, fake: Fake) -> None:
    """Everything of a conversation without a pointer."""
    keys = tab.page.keyboard
    assert focused(tab) == "Message"
    keys.type("first")
    keys.press("Shift+Enter")
    keys.type("second line")
    keys.press("Enter")
    tab.until("document.querySelectorAll('.bubble').length === 1")
    tab.over()
    assert fake.requests[0]["messages"][0]["content"] == "first\nsecond line"
    tab_to(tab, "Another answer") if focused(tab) != "Another answer" else None
    keys.press("Enter")
    tab.until("document.querySelector('.branches')")
    tab.over()
    tab_to(tab, "Previous version")
    keys.press("Enter")
    assert tab.text(".branches .figures") == "1/2"
    keys.press("Control+k")
    tab.until("document.activeElement.type === 'search'")
    tab_to(tab, "Rename first")
    keys.press("Enter")
    keys.type("Renamed")
    keys.press("Enter")
    tab.until("document.querySelector('.chat-item a')?.innerText.trim() === 'Renamed'")
    keys.press("Control+Shift+O")
    assert focused(tab) == "Message"
    keys.type("think 5000 100")
    keys.press("Enter")
    tab.page.wait_for_selector(".thought.live")
    keys.press("Alt+a")
    tab.over()
    assert tab.answer == "Done thinking."
    keys.press("Control+,")
    tab.page.wait_for_selector("dialog")
    for _ in range(40):  # the focus stays inside
        keys.press("Tab")
        assert tab.page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    keys.press("Escape")
    tab.page.wait_for_selector("dialog", state="detached")
    assert focused(tab) == "Message", "it goes back to where it was"


def test_announcements_are_few(tab: Tab) -> None:
    """A screen reader hears what begins and ends, not every token."""
    tab.page.evaluate("""() => {
        window.said = [];
        const live = document.querySelector('[role=status].offscreen');
        const watched = {childList: true, characterData: true, subtree: true};
        new MutationObserver(() => said.push(live.textContent)).observe(live, watched);
        window.other = [...document.querySelectorAll('[aria-live], [role=log], [role=alert]')].length;
    }""")
    tab.ask("think 60 200")
    tab.page.wait_for_timeout(100)
    assert tab.page.evaluate("said.filter(Boolean)") == ["Thinking.", "Answering.", "Answer complete."]
    assert tab.page.evaluate("other") == 0


def test_reader_is_left_alone(tab: Tab) -> None:
    """Who scrolls up while text comes is not pulled down; a button leads back."""
    tab.ask("chunks 1200 300", wait=False)
    tab.until("document.querySelector('main').scrollHeight > document.querySelector('main').clientHeight + 300")
    tab.page.mouse.move(600, 300)
    tab.page.mouse.wheel(0, -200)
    tab.page.wait_for_selector("[aria-label='To the end']")
    before = tab.page.evaluate("document.querySelector('main').scrollTop")
    tab.page.wait_for_timeout(500)
    assert abs(tab.page.evaluate("document.querySelector('main').scrollTop") - before) < 2
    tab.page.click("[aria-label='To the end']")
    tab.over()
    assert tab.call("thinking.js", "m.atEnd(document.querySelector('main'))")


def test_copy(new_tab: Callable[..., Tab], fake: Fake) -> None:
    """The answer is copied without its thinking, as the model wrote it; code without its frame."""
    fake.texts["code"] = "Use **this**:\n\n```python\nx = 1\n\ny = 2\n```\n"
    tab = new_tab(permissions=["clipboard-read", "clipboard-write"]).open()
    tab.ask("say code")
    tab.page.click(".assistant [aria-label=Copy]")
    tab.page.wait_for_selector("[aria-label=Copied]")
    assert tab.page.evaluate("navigator.clipboard.readText()") == fake.texts["code"]
    tab.page.click(".copy-code")
    tab.until("document.querySelector('.copy-code').textContent === 'Copied'")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "x = 1\n\ny = 2"


def test_status_page(new_tab: Callable[..., Tab], fake: Fake) -> None:
    fake.key = "secret-key"
    tab = new_tab()
    tab.page.goto(tab.url + "/status")
    tab.page.fill("[aria-label='API key']", "secret-key")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".chart")
    assert tab.page.locator(".chart h2").all_inner_texts() == ["Throughput", "Requests", "KV cache"]
    assert "3" in tab.page.locator(".chart .now").nth(1).inner_text()
    assert "48,211" in tab.page.locator("table").inner_text()
    assert tab.call("status.js", "[m.ceiling(0.2), m.ceiling(3), m.ceiling(10), m.ceiling(101), m.ceiling(600)]") == [
        1, 5, 10, 200, 1000,
    ]  # fmt: skip
