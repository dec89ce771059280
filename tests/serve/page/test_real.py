"""The page on the server as it is, with the embedded model: what the fake server only plays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.page.conftest import Tab

pytest.importorskip("torch", reason="the model needs torch")


@pytest.fixture
def real(browser: Any, server: Any) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    tab = Tab(context.new_page(), server.url).open()
    tab.page.wait_for_selector(".top .state.ready", timeout=60_000)
    yield tab
    context.close()
    assert tab.problems == []


def node(tab: Tab) -> dict[str, Any]:
    """The newest answer, as it is stored."""
    answers = [node for node in tab.stored()["nodes"] if node["role"] == "assistant"]
    return max(answers, key=lambda node: node["created"])


def test_ask(real: Tab) -> None:
    real.ask("What is 27 * 14?")
    found = node(real)
    assert found["state"] == "done"
    assert found["content"]
    assert found["reasoning"]
    stats = found["stats"]
    assert 0 < stats["first_token"] < stats["first_answer"] < stats["seconds"]
    assert stats["thinking"] > 10
    assert stats["completion"] > stats["thinking"]
    assert stats["prompt"] > 10
    assert stats["speed"] > 1
    real.ask("Thank you")
    assert node(real)["stats"]["cached"] > 0, "the first turn goes back as it came, so it is cached"
    assert real.page.locator(".warning").count() == 0


def test_budget_and_off(real: Tab) -> None:
    slider = real.page.get_by_role("slider", name="Thinking budget")
    for _ in range(12):
        slider.press("ArrowLeft")
    real.ask("What is 27 * 14?")
    stats = node(real)["stats"]
    assert (stats["budget"], stats["thinking"], stats["ended_by"]) == (32, 32, "budget")
    assert "32 of 32 tokens" in real.text(".thought-toggle")
    assert "ended by the budget" in real.text(".thought-toggle")
    real.page.get_by_role("radio", name="Off").check()
    real.ask("Hello")
    assert node(real)["reasoning"] == ""


def test_answer_now_stop_continue(real: Tab) -> None:
    real.ask("Please solve:\n1 3 . .\n. 2 3 1\n2 . 4 .\n. 4 . 2", wait=False)
    real.page.wait_for_selector(".thought.live")
    real.page.keyboard.press("Alt+a")
    real.over()
    found = node(real)
    assert found["stats"]["ended_by"] in ("client", "natural")  # natural: it was quicker than the key
    assert found["content"]
    real.ask("Count from 1 to 90.", wait=False)
    real.until("document.querySelectorAll('.prose')[1]?.innerText.includes('10, 11')")
    real.page.keyboard.press("Escape")
    real.over()
    partial = node(real)["content"]
    real.page.click(".ending >> text=Continue")
    real.until("!document.querySelector('.ending')")
    real.over(60)
    whole = node(real)["content"]
    assert whole.startswith(partial)
    assert len(whole) > len(partial)
    assert real.page.locator(".warning").count() == 0


def test_tool(real: Tab) -> None:
    real.page.keyboard.press("Control+,")
    real.page.click("text=Put examples in")
    real.page.keyboard.press("Escape")
    real.page.wait_for_selector("dialog", state="detached")
    real.page.get_by_role("radio", name="Off").check()
    for _ in range(6):  # asked like this, the small model called the tool 200 times of 200, thinking 144 times
        real.ask("Please calculate 27 * 14 with the tool.")
        if real.page.locator("text=Approve and run").count():
            break
    real.page.click("text=Approve and run")
    real.until("document.querySelectorAll('.call-answer').length === 1")
    real.over()
    assert "378" in real.text(".call-answer")
    for _ in range(15):  # and repeated the result 55 times of 100
        if "378" in real.answer:
            break
        real.page.click("[aria-label='Another answer'] >> nth=-1")
        real.over()
    assert "378" in real.answer


def test_wrong_settings_are_told(real: Tab) -> None:
    real.page.keyboard.press("Control+,")
    real.page.fill("#set-schema", '{"type": "strange"}')
    real.page.keyboard.press("Escape")
    real.ask("Hello")
    assert real.page.locator(".ending.failed").inner_text()
    assert node(real)["error"]["status"] == 400


def test_status(real: Tab) -> None:
    real.ask("Hello")
    real.page.goto(real.url + "/status")
    real.page.wait_for_selector(".chart")
    real.page.wait_for_timeout(2500)
    assert "embedded" in real.page.locator("table").inner_text()
    assert real.page.locator(".chart polyline.line").first.get_attribute("points")
