"""Answers as they come: speed, long thoughts, reloads, stops; the bugs other pages have had with them."""

from __future__ import annotations

import time
from collections.abc import Callable

from qwen3.serve.errors import ApiError
from tests.serve.page.conftest import Tab
from tests.serve.page.fake import Fake, words

LIMIT = 100  # ms


def test_200_chunks_a_second(tab: Tab, fake: Fake) -> None:
    with tab.watched() as blocked:
        tab.ask("chunks 800 200")
        lag = time.monotonic() - fake.ended
    assert tab.answer.split() == "".join(words(800)).split()
    assert lag < 2, "the page is behind the stream"
    assert blocked.work < LIMIT


def test_thought_of_100_000_tokens(tab: Tab) -> None:
    with tab.watched() as blocked:
        tab.ask("think 100000 20000", wait=False)
        tab.over(150)
        tab.page.click(".thought-toggle")
        tab.page.wait_for_selector(".thought-text")
        tab.page.click(".thought-toggle")
    assert blocked.work < LIMIT
    assert "100,000 tokens" in tab.text(".thought-toggle")
    with tab.watched() as blocked:
        tab.page.reload()
        tab.page.click(".thought-toggle")
        tab.page.wait_for_selector(".thought-text")
    assert blocked.work < LIMIT
    shown = tab.page.evaluate("document.querySelector('.thought-text').textContent")
    assert shown.split() == "".join(words(100_000)).split()


def test_long_answer_is_not_scanned_again_and_again(tab: Tab, fake: Fake) -> None:
    paragraph = "Some *words* with `code` and **more** of it, [a link](https://example.org) too.\n\n"
    fake.texts["long"] = paragraph * 1000 + "```python\n" + "x = 1\n" * 4000 + "```\n\nEnd."
    with tab.watched() as blocked:
        tab.ask("say long", wait=False)
        tab.over(150)
    assert tab.page.locator(".prose > p").count() == 1001
    assert tab.page.locator(".prose pre").inner_text().count("x = 1") == 4000
    assert blocked.work < LIMIT


def test_a_long_answer_is_loaded_in_parts(tab: Tab, fake: Fake) -> None:
    fake.texts["long"] = "Some *words* with `code` and **more** of it, [a link](https://example.org) too.\n\n" * 6000
    tab.ask("say long", wait=False)
    tab.over(150)
    with tab.watched() as blocked:
        tab.page.reload()
        tab.until("document.querySelectorAll('.prose > p').length === 6000", 60)
    assert blocked.work < LIMIT


def test_reload_while_streaming(tab: Tab, fake: Fake) -> None:
    tab.ask("chunks 2000 100", wait=False)
    tab.until("document.querySelector('.prose').innerText.includes('word120')")
    tab.page.reload()
    tab.page.wait_for_selector(".ending")
    assert "Interrupted" in tab.text(".ending")
    assert "word60" in tab.answer
    assert tab.page.locator(".bubble").inner_text() == "chunks 2000 100"
    kept = tab.answer
    tab.page.click(".ending >> text=Continue")
    tab.over()
    assert tab.answer.startswith(kept[: len(kept) // 2])
    assert tab.answer.endswith("said: chunks 2000 100")
    last = fake.requests[-1]
    assert last["continue_final_message"] is True
    assert last["add_generation_prompt"] is False
    assert last["messages"][-1]["role"] == "assistant"
    assert last["messages"][-1]["content"].startswith("word0 word1 ")
    assert fake.gone == 1


def test_reload_in_the_middle_of_a_thought(tab: Tab, fake: Fake) -> None:
    tab.ask("think 5000 200", wait=False)
    tab.until("document.querySelector('.thought-text')?.innerText.includes('word240')")
    tab.page.reload()
    tab.page.wait_for_selector(".ending")
    tab.page.click(".ending >> text=Continue")
    tab.over()
    sent = fake.requests[-1]["messages"][-1]
    assert sent["content"] == ""
    assert sent["reasoning_content"].startswith("word0 word1 ")


def test_stop(tab: Tab, fake: Fake) -> None:
    tab.ask("chunks 5000 100", wait=False)
    tab.until("document.querySelector('.prose').innerText.includes('word30')")
    tab.page.keyboard.press("Escape")
    tab.over(2)
    assert "Stopped" in tab.text(".ending")
    kept = tab.answer
    assert "word30" in kept
    tab.page.wait_for_timeout(300)
    assert tab.answer == kept
    assert fake.gone == 1


def test_answer_now(tab: Tab, fake: Fake) -> None:
    slider = tab.page.get_by_role("slider", name="Thinking budget")
    while "2,048" not in tab.text(".budget"):  # on a busy machine a page that is still being drawn forgets a key
        slider.fill("6")
        tab.page.wait_for_timeout(100)
    tab.ask("think 5000 100", wait=False)
    tab.page.wait_for_selector(".thought-text")
    tab.until("document.querySelector('.thought-toggle').innerText.includes('of 2,048 tokens')")
    assert tab.page.get_by_role("progressbar", name="Thinking budget").count() == 1
    tab.page.click("text=Answer now")
    tab.over()
    assert tab.answer == "Done thinking."
    assert "ended by “Answer now”" in tab.text(".thought-toggle")
    assert tab.page.locator(".thought-text").count() == 0
    assert fake.requests[0]["thinking"] == {"mode": "on", "budget": 2048}
    assert fake.requests[-1] == {"id": "chatcmpl-1", "action": "answer_now"}


def test_figures(tab: Tab) -> None:
    tab.ask("Hello there")
    stats = tab.text(".stats")
    for part in ("first token", "first answer", "tok/s", "4 thinking + 3 answer tokens", "prompt 20", "16 cached"):
        assert part in stats


def test_pieces_make_one_block(tab: Tab) -> None:
    """Reasoning between pieces of content, a `finish_reason` in the middle, a thought that begins with a space."""
    tab.ask("fragments")
    assert tab.answer == "AB"
    assert tab.page.locator(".thought").count() == 1
    assert [node["reasoning"] for node in tab.stored()["nodes"] if node["role"] == "assistant"] == [" first second"]


def test_a_tag_in_the_answer_is_text(tab: Tab, fake: Fake) -> None:
    fake.texts["tag"] = "The tag <think> opens and </think> closes it.\n\n`<think>` too, and <tool_call> as well. End."
    tab.ask("say tag")
    assert tab.answer == fake.texts["tag"].replace("`", "")
    assert tab.page.locator(".thought").count() == 0


def test_thinking_after_a_tool(tab: Tab, fake: Fake) -> None:
    tab.ask("tool")
    tab.page.click("text=Approve and run")
    tab.over()
    assert tab.page.locator(".thought").count() == 2
    assert tab.answer == "You said: tool"
    sent = fake.requests[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[1]["content"] is None
    assert sent[1]["reasoning_content"] == "I need the calculator."
    assert sent[1]["tool_calls"][0]["function"] == {"name": "calculate", "arguments": '{"expression": "27 * 14"}'}
    assert sent[2] == {"role": "tool", "tool_call_id": "call_1", "content": '{"result":378}'}


def test_history_goes_back_as_it_came(tab: Tab, fake: Fake) -> None:
    """Raw text, no markup, and no thoughts of earlier turns: the server's prefix cache then matches."""
    fake.texts["raw"] = "**bold** <b>x</b>\r\n\n  indented & `code`\n"
    tab.ask("say raw")
    tab.ask("And now?")
    tab.ask("again")
    sent = fake.requests[-1]["messages"]
    assert sent[1] == {"role": "assistant", "content": fake.texts["raw"]}
    assert sent[3] == {"role": "assistant", "content": "You said: And now?"}


def test_lost_connection(tab: Tab, fake: Fake) -> None:
    tab.ask("broken")
    assert "connection" in tab.text(".ending")
    assert tab.answer == "As far as it came"
    assert tab.page.locator(".ending >> text=Continue").count() == 1


def test_error_inside_the_stream(tab: Tab) -> None:
    tab.ask("failing")
    assert "the engine fell over" in tab.text(".ending")
    assert tab.answer == "Half"


def test_refusal_is_told_in_the_servers_words(tab: Tab, fake: Fake) -> None:
    fake.refuse = [ApiError(503, "the queue is full", retry_after=3.0), ApiError(400, "too big", "temperature")]
    tab.ask("Hello")
    assert "the queue is full" in tab.text(".ending")
    assert "3.0 s" in tab.text(".ending")
    tab.page.click("text=Try again")
    tab.page.wait_for_selector("text=too big")
    assert "temperature" in tab.text(".ending")
    tab.page.click("text=Try again")
    tab.over()
    tab.until("document.querySelector('.prose').innerText === 'You said: Hello'")
    assert len([node for node in tab.stored()["nodes"] if node["role"] == "assistant"]) == 1


def test_warnings_are_shown(tab: Tab, fake: Fake) -> None:
    fake.warnings = ["top_k is ignored: temperature is 0"]
    tab.ask("Hello")
    assert tab.text(".warning") == fake.warnings[0]


def test_elsewhere_meanwhile(tab: Tab) -> None:
    """An answer goes on while its user is in another conversation."""
    tab.ask("chunks 150 100", wait=False)
    tab.page.keyboard.press("Control+Shift+O")
    tab.ask("Hello")
    tab.until("!document.querySelector('.sidebar .dot')")
    tab.page.click(".sidebar >> text=chunks 150 100")
    tab.until("document.querySelector('.prose')?.innerText.includes('word149')")


def test_key_prompt(new_tab: Callable[..., Tab], fake: Fake) -> None:
    fake.key = "secret-key"
    tab = new_tab().open()
    tab.page.fill("dialog input", "wrong")
    tab.page.click("text=Use this key")
    tab.page.wait_for_selector("dialog >> text=missing or wrong")
    tab.page.fill("dialog input", "secret-key")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("dialog", state="detached")
    tab.ask("Hello")
    assert tab.answer == "You said: Hello"
    assert tab.page.evaluate("JSON.stringify(localStorage)").find("secret-key") == -1
    tab.page.reload()
    tab.page.wait_for_selector(".prose")
    assert tab.page.locator("dialog").count() == 0
