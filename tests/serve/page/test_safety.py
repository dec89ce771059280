"""Model output is hostile: nothing in it runs, nothing of it leaves the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serve.page.conftest import Tab
from tests.serve.page.fake import Fake

CORPUS = json.loads(Path(__file__).with_name("hostile.json").read_text())


def test_corpus(tab: Tab, fake: Fake) -> None:
    """As answer, as thought, as the user's own words, as error: nothing runs, nothing is fetched, the page stands."""
    dialogs: list[str] = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.page.evaluate("window.hit = 0")
    fake.texts["all"] = "\n\n".join(CORPUS)
    tab.ask("say all")
    tab.ask("ponder all")
    tab.page.click(".thought-toggle")
    tab.ask("\n\n".join(CORPUS))
    tab.page.wait_for_selector(".katex")
    tab.page.wait_for_timeout(500)
    assert tab.page.evaluate("window.hit") == 0
    assert dialogs == []
    assert tab.page.title().endswith("qwen3")
    assert tab.page.evaluate("document.querySelectorAll('#app').length") == 1
    inside = tab.page.evaluate("""() => [...document.querySelectorAll('.prose *')].flatMap((el) => {
        const foreign = /^(script|iframe|object|embed|form|input|style|link|meta|base|template|video|source)$/i;
        const acts = /^on|^srcset$|^ping$|^name$|^id$/i;
        const leads = /^(href|src|action|data|xlink:href)$/;
        const bad = [...el.attributes].filter(({ name, value }) =>
            acts.test(name) || (leads.test(name) && !/^(https?:|mailto:|data:image)/.test(value)));
        return [...(foreign.test(el.tagName) ? [el.tagName] : []), ...bad.map(({ name, value }) => `${name}=${value}`)];
    })""")
    assert inside == []


@pytest.mark.parametrize("at", range(len(CORPUS)))
def test_each_alone(tab_for_all: Tab, at: int) -> None:
    """Alone, whole and in growing pieces, since other texts around one can defuse it."""
    tab_for_all.page.evaluate("window.hit = 0")
    hit = tab_for_all.page.evaluate(
        """async (text) => {
        const base = document.querySelector('script[type=module]').src.replace(/[^/]*$/, '');
        const { MarkdownView } = await import(base + 'markdown.js');
        const root = document.createElement('div');
        root.className = 'prose';
        document.querySelector('main').append(root);
        const view = new MarkdownView(root);
        for (let end = 1; end < text.length; end += 3) view.update(text.slice(0, end), false);
        view.update(text, true);
        await new Promise((resolve) => setTimeout(resolve, 30));
        root.querySelectorAll('*').forEach((el) => el.dispatchEvent(new Event('mouseover')));
        root.remove();
        return window.hit;
    }""",
        CORPUS[at],
    )
    assert hit == 0


@pytest.fixture(scope="module")
def tab_for_all(browser, running) -> Tab:  # type: ignore[no-untyped-def]
    running.fake.reset()
    tab = Tab(browser.new_page(), running.url).open()
    yield tab
    problems = tab.problems
    tab.page.close()
    assert problems == []


def test_links_and_pictures(tab: Tab, fake: Fake) -> None:
    dot = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    fake.texts["links"] = f"[good](https://example.org/a?b=c) ![dot]({dot}) ![far](https://far.example/x.png)"
    tab.ask("say links")
    link = tab.page.locator(".prose a").first
    assert link.get_attribute("rel") == "noopener noreferrer"
    assert link.get_attribute("target") == "_blank"
    assert tab.page.locator(".prose img").get_attribute("src") == dot
    assert tab.page.locator(".prose .blocked").inner_text() == "picture not loaded: far"


def test_policy_is_enforced(tab: Tab) -> None:
    """Were something to slip through all the same, the browser refuses: inline scripts, HTML, other hosts."""
    refused = tab.page.evaluate("""async () => {
        const tried = {};
        try { document.createElement('div').innerHTML = '<b>x</b>'; tried.html = true } catch { tried.html = false }
        const script = document.createElement('script');
        try { script.textContent = 'window.ran = 1'; document.body.append(script) } catch {}
        tried.script = window.ran === 1;
        try { await fetch('http://localhost:9/x'); tried.fetch = true } catch { tried.fetch = false }
        return tried;
    }""")
    assert refused == {"html": False, "script": False, "fetch": False}
    assert len(tab.problems) >= 3
    tab.problems.clear()


@pytest.mark.parametrize(
    "unit", ["*a ", "[", "![", "`", "_a", "<", "$", "\\(", "$$", "> ", "- ", "|", "&", "#", "~~", "**a"]
)
def test_pathological_text(tab_for_all: Tab, unit: str) -> None:
    """Twenty thousand characters of one thing do not stop the page for a second; a busy machine has three tries."""
    expression = f"""(() => {{
        const root = document.createElement('div');
        document.body.append(root);
        const started = performance.now();
        new m.MarkdownView(root).update({json.dumps(unit)}.repeat({20_000 // len(unit)}), true);
        root.remove();
        return performance.now() - started;
    }})()"""
    assert any(tab_for_all.call("markdown.js", expression) < 1000 for _ in range(3))
