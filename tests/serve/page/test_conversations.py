"""Conversations: edits, branches, tools, two tabs, files, a browser that refuses to store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serve.page.conftest import Tab
from tests.serve.page.fake import Fake


def test_edit_makes_a_branch(tab: Tab, fake: Fake) -> None:
    tab.ask("one")
    tab.ask("two")
    tab.page.keyboard.press("ArrowUp")
    tab.page.fill(".editor textarea", "two, changed")
    tab.page.keyboard.press("Enter")
    tab.until("document.querySelectorAll('.bubble').length === 2")
    tab.over()
    assert tab.page.locator(".bubble").all_inner_texts() == ["one", "two, changed"]
    assert tab.answer == "You said: two, changed"
    assert [m["content"] for m in fake.requests[-1]["messages"]] == ["one", "You said: one", "two, changed"]
    assert tab.page.locator(".branches .figures").all_inner_texts() == ["2/2"]
    tab.page.click("[aria-label='Previous version']")
    assert tab.page.locator(".bubble").all_inner_texts() == ["one", "two"]
    assert tab.answer == "You said: two"
    tab.page.reload()
    tab.page.wait_for_selector(".bubble")
    assert tab.page.locator(".bubble").all_inner_texts() == ["one", "two"]
    tab.page.click("[aria-label='Next version']")
    assert tab.answer == "You said: two, changed"


def test_another_answer(tab: Tab, fake: Fake) -> None:
    tab.ask("one")
    tab.page.click("[aria-label='Another answer']")
    tab.until("document.querySelector('.branches')")
    tab.over()
    assert tab.text(".branches .figures") == "2/2"
    assert fake.requests[0]["messages"] == fake.requests[1]["messages"]
    assert len(tab.stored()["nodes"]) == 3


SLOW_STORE = """
const open = IDBFactory.prototype.open;
IDBFactory.prototype.open = function (...how) {
  const late = new EventTarget();
  setTimeout(() => {
    const request = open.apply(this, how);
    for (const name of ["onupgradeneeded", "onsuccess", "onerror"])
      request[name] = () => { late.result = request.result; late[name]?.(); };
  }, 500);
  return late;
};
"""


def test_a_message_sent_at_once_is_kept_by_a_slow_store(new_tab: Callable[..., Tab], fake: Fake) -> None:
    tab = new_tab()
    tab.page.add_init_script(SLOW_STORE)
    tab.open().ask("early")
    tab.page.reload()
    tab.page.wait_for_selector(".bubble")
    assert tab.answers() == ["You said: early"]


def test_continue_a_whole_answer(tab: Tab, fake: Fake) -> None:
    fake.texts["start"] = "The beginning"
    tab.ask("say start")
    tab.page.click("[aria-label='Continue this answer']")
    tab.until("document.querySelector('.prose').innerText.includes('You said')")
    tab.over()
    assert tab.answer == "The beginningYou said: say start"
    assert "thinking" not in fake.requests[-1]


def test_tool_denied_and_answered_by_hand(tab: Tab, fake: Fake) -> None:
    tab.ask("tool")
    assert json.loads(tab.text(".call pre")) == {"expression": "27 * 14"}
    assert len(fake.requests) == 1, "nothing goes on before the user has said so"
    tab.page.click(".call >> text=Deny")
    tab.until("document.querySelectorAll('.assistant').length === 2")
    tab.over()
    assert "did not allow" in fake.requests[-1]["messages"][-1]["content"]
    tab.page.click("[aria-label='Another answer'] >> nth=0")
    tab.until("document.querySelectorAll('.call-form').length === 1")
    tab.over()
    tab.page.fill(".call textarea", "about 400")
    tab.page.click("text=Send this result")
    tab.until("document.querySelectorAll('.assistant').length === 2")
    tab.over()
    assert fake.requests[-1]["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "about 400"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("27 * 14", 378), ("2 + 3 * (4 - 1) ** 2", 29), ("-3 - -2", -1), ("7 / 2", 3.5), ("2^3^2", 512)],
)
def test_calculator(tab: Tab, text: str, value: float) -> None:
    assert tab.call("tools.js", f"m.calculate({json.dumps(text)})") == value


def test_calculator_runs_no_code(tab: Tab) -> None:
    for text in ("alert(1)", "1 +", "(1", "constructor", "1 2", ""):
        assert (
            tab.call("tools.js", f"(() => {{ try {{ m.calculate({json.dumps(text)}) }} catch {{ return 'no' }} }})()")
            == "no"
        )


def test_settings_reach_the_server(tab: Tab, fake: Fake) -> None:
    tab.page.keyboard.press("Control+,")
    tab.page.fill("#set-system", "Be brief.")
    tab.page.fill("label:has-text('Temperature') input", "0.2")
    tab.page.fill("label:has-text('Seed') input", "7")
    tab.page.fill("#set-schema", '{"type": "object"}')
    tab.page.fill("#set-tools", '[{"type": "function"')
    assert tab.page.locator("#set-tools[aria-invalid=true]").count() == 1
    tab.page.click("dialog [aria-label=Close]")
    tab.ask("Hello")
    assert "The tools in the settings cannot be read" in tab.text(".ending")
    assert fake.requests == []
    tab.page.click("[aria-label='Remove: ? tools']")
    tab.page.click("text=Try again")
    tab.until("document.querySelector('.prose').innerText.includes('You said')")
    (sent,) = fake.requests
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["seed"]) == (0.2, 7)
    assert "top_p" not in sent
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "tools" not in sent
    tab.page.keyboard.press("Control+Shift+O")
    assert tab.page.locator(".chip").count() == 0, "a new conversation begins without schema and system prompt"


def test_thinking_modes(tab: Tab, fake: Fake) -> None:
    tab.page.get_by_role("radio", name="Off").check()
    tab.ask("a")
    tab.page.keyboard.press("Alt+T")
    tab.ask("b")
    assert [body["thinking"] for body in fake.requests] == [{"mode": "off"}, {"mode": "auto"}]


def test_a_model_with_one_mode(new_tab: Callable[..., Tab], fake: Fake) -> None:
    fake.model |= {"thinking": {"mode": "instruct", "modes": ["off"]}}
    tab = new_tab().open()
    tab.ask("a")
    assert fake.requests[0]["thinking"] == {"mode": "off"}
    assert tab.page.locator(".segments input").count() == 1


def test_budget_steps(tab: Tab) -> None:
    assert tab.call("composer.js", "m.budgets(4096)") == [32, 64, 128, 256, 512, 1024, 2048, None]
    assert tab.call("composer.js", "m.budgets(40960).at(-2)") == 32768


def test_list_search_rename_delete_undo(tab: Tab) -> None:
    for text in ("apples and pears", "bananas"):
        tab.ask(text)
        tab.page.keyboard.press("Control+Shift+O")
    tab.page.keyboard.press("Control+K")
    tab.until("document.activeElement.type === 'search'")
    tab.page.keyboard.type("PEARS app")
    assert tab.page.locator(".chat-item a").all_inner_texts() == ["apples and pears"]
    tab.page.hover(".chat-item")
    tab.page.click("[aria-label='Rename apples and pears']")
    tab.page.fill(".rename", "Fruit <b>one</b>")
    tab.page.keyboard.press("Enter")
    tab.page.fill("[type=search]", "")
    assert tab.page.locator(".chat-item a").all_inner_texts() == ["bananas", "Fruit <b>one</b>"]
    tab.page.hover(".chat-item >> nth=1")
    tab.page.click("[aria-label='Delete Fruit <b>one</b>']")
    tab.until("document.querySelectorAll('.chat-item').length === 1")
    assert {node["chat"] for node in tab.stored()["nodes"]} == {tab.stored()["chats"][0]["id"]}
    tab.page.click("text=Undo")
    tab.until("document.querySelectorAll('.chat-item').length === 2")
    tab.page.click(".chat-item >> nth=1")
    tab.page.wait_for_selector(".prose")
    assert tab.answer == "You said: apples and pears"


def test_delete_while_it_answers(tab: Tab, fake: Fake) -> None:
    tab.ask("chunks 3000 100", wait=False)
    tab.until("document.querySelector('.prose')?.innerText.includes('word30')")
    tab.page.hover(".chat-item")
    tab.page.click("[aria-label='Delete chunks 3000 100']")
    tab.until("document.querySelector('.empty')")
    tab.page.wait_for_timeout(300)
    assert tab.stored() == {"chats": [], "nodes": []}
    assert fake.gone == 1
    tab.page.click("text=Undo")
    tab.page.click(".chat-item a")
    tab.page.wait_for_selector(".ending")
    assert "Interrupted" in tab.text(".ending")


def test_two_tabs(tab: Tab, new_tab: Callable[..., Tab]) -> None:
    other = new_tab(beside=tab).open()
    tab.ask("from the first")
    other.page.wait_for_selector(".chat-item >> text=from the first")
    other.ask("from the second")
    tab.page.wait_for_selector(".chat-item >> text=from the second")
    other.page.click(".chat-item >> text=from the first")
    other.page.wait_for_selector(".bubble >> text=from the first")
    # Both go on in the same conversation at once: two branches, nothing lost.
    tab.ask("chunks 100 100", wait=False)
    other.ask("and I too")
    assert tab.page.locator(".bubble").last.inner_text() == "chunks 100 100", "what comes in here stays in view"
    tab.over()
    stored = tab.stored()
    asked = {node["content"] for node in stored["nodes"] if node["role"] == "user"}
    assert asked == {"from the first", "from the second", "chunks 100 100", "and I too"}
    assert all(node["state"] == "done" for node in stored["nodes"] if node["role"] == "assistant")
    assert sorted(chat["title"] for chat in stored["chats"]) == ["from the first", "from the second"]


def test_an_answer_is_followed_in_the_other_tab(tab: Tab, new_tab: Callable[..., Tab]) -> None:
    tab.ask("chunks 400 100", wait=False)
    other = new_tab(beside=tab).open()
    other.page.click(".chat-item")
    other.page.wait_for_selector(".prose")
    assert other.page.locator(".ending").count() == 0, "it is not interrupted: the first tab is writing it"
    tab.over()
    other.until("document.querySelector('.prose').innerText.includes('word399')")


def test_export_and_import(tab: Tab, new_tab: Callable[..., Tab], tmp_path: Path) -> None:
    tab.ask("one")
    tab.page.click("[aria-label='Another answer']")
    tab.until("document.querySelector('.branches')")
    tab.over()
    with tab.page.expect_download() as download:
        tab.page.click("text=Export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    exported = json.loads(file.read_text())
    assert exported["format"] == "qwen3-conversations"
    assert len(exported["conversations"][0]["messages"]) == 3
    fresh = new_tab().open()
    fresh.page.set_input_files("input[type=file]", file)
    fresh.page.click(".chat-item >> text=one")
    fresh.page.wait_for_selector(".branches")
    assert fresh.text(".branches .figures") == "2/2"
    fresh.page.set_input_files("input[type=file]", file)
    fresh.until("document.querySelectorAll('.chat-item').length === 2")
    assert len(fresh.stored()["nodes"]) == 6, "the same file again comes in as a copy"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not imported"),
        ("[]", "no file of exported conversations"),
        ('{"format": "qwen3-conversations", "version": 1, "conversations": [{}]}', "conversation 1: id, title"),
        (
            '{"format": "qwen3-conversations", "version": 1, "conversations": [{"chat": {"id": "a", "title": "t"}, '
            '"messages": [{"id": "b", "role": "system"}]}]}',
            "message 1: id or role",
        ),
    ],
)
def test_bad_imports(tab: Tab, tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    tab.page.set_input_files("input[type=file]", file)
    assert complaint in tab.page.locator(".toast.error").inner_text()
    assert tab.stored()["chats"] == []


def test_import_is_data(tab: Tab, tmp_path: Path) -> None:
    """Markup, prototypes and wrong kinds in a file neither run nor break the page."""
    evil = "<img src=x onerror=alert(1)>"
    node = {"id": "n1", "role": "user", "parent": None, "content": evil, "created": "x"}
    answer = {
        "id": "n2", "role": "assistant", "parent": "n1", "content": evil, "reasoning": evil, "created": 2,
        "state": "streaming", "stats": {"speed": {"toFixed": 1}, "warnings": [evil, {}], "__proto__": {"x": 1}},
        "calls": [{"id": 1, "name": evil, "args": evil}, None], "error": {"message": evil},
    }  # fmt: skip
    chat = {"id": "c1", "title": evil, "leaf": "n2", "settings": {"tools": 5, "temperature": "hot", "model": evil}}
    whole = {
        "format": "qwen3-conversations",
        "version": 1,
        "conversations": [{"chat": chat, "messages": [node, answer]}],
    }
    file = tmp_path / "evil.json"
    file.write_text(json.dumps(whole))
    tab.page.set_input_files("input[type=file]", file)
    tab.page.click(".chat-item a")
    tab.page.wait_for_selector(".prose")
    assert tab.answer == evil
    assert tab.page.locator("main img").count() == 0
    assert tab.page.evaluate("({}).x") is None


def test_no_storage(new_tab: Callable[..., Tab]) -> None:
    tab = new_tab()
    tab.page.add_init_script(
        "Object.defineProperty(window, 'indexedDB', {value: {open() { throw new Error('denied') }}})"
    )
    tab.open()
    assert "keeps no data" in tab.page.locator(".toast").inner_text()
    tab.ask("Hello")
    assert tab.answer == "You said: Hello"
    tab.ask("And again")
    assert len(tab.answers()) == 2
    tab.page.keyboard.press("Control+Shift+O")
    tab.ask("Elsewhere")
    tab.page.click(".chat-item >> text=Hello")
    tab.until("document.querySelectorAll('.bubble').length === 2")
    with tab.page.expect_download() as download:
        tab.page.click("text=Export")
    exported = json.loads(Path(download.value.path()).read_text())["conversations"]
    assert sorted(len(entry["messages"]) for entry in exported) == [2, 4]


def test_storage_full(tab: Tab) -> None:
    tab.page.evaluate("""() => {
        const put = IDBObjectStore.prototype.put;
        IDBObjectStore.prototype.put = function (value) {
            if (this.name === "nodes") throw new DOMException("full", "QuotaExceededError");
            return put.call(this, value);
        };
    }""")
    tab.ask("Hello")
    assert tab.answer == "You said: Hello"
    assert "storage is full" in tab.page.locator(".toast.error").first.inner_text()


def test_draft_survives_a_reload(tab: Tab) -> None:
    tab.page.fill("textarea[aria-label=Message]", "half a thou")
    tab.page.wait_for_timeout(400)
    tab.page.reload()
    tab.until("document.querySelector('textarea')?.value === 'half a thou'")
