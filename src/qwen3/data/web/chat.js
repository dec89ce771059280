// The chat page: puts the parts together and keeps the view at the end of what is being written.

import { App } from "./app.js";
import { Composer } from "./composer.js";
import { Assistant, User } from "./message.js";
import { Help, KeyDialog, Models, Settings } from "./settings.js";
import { listen } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { atEnd } from "./thinking.js";
import { copyText, html, Icon, IconButton, render, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";

/** What the demonstration model in the package does well; other models get questions fit for them. */
const EXAMPLES = {
  embedded: [
    "What is 27 * 14?",
    "Divide 947 by 6.",
    "Sort these numbers: 31, 7, 88, 12",
    "Write 45 in base 2.",
    "What can you do?",
    "What is the capital of France?",
  ],
  other: [
    "Which is larger, 9.11 or 9.9?",
    "Explain the birthday paradox, with the formula.",
    "Write a Python function that merges overlapping intervals.",
    "Compare TCP and QUIC in a table.",
  ],
};

function Empty({ app }) {
  const { model } = app;
  const small = !model || /embedded|wren/i.test(`${model.id} ${model.root ?? ""}`);
  const examples = EXAMPLES[small ? "embedded" : "other"];
  return html`<div class="empty">
    <h2>What shall we work out?</h2>
    ${
      small &&
      model &&
      html`<p
      class="faint">This is the small model that comes with the package: arithmetic, sorting, puzzles and
      small talk. It shows its thinking first; <b>Answer now</b> cuts that short.</p>`
    }
    <ul class="examples">${examples.map(
      (text) => html`<li key=${text}><button type="button"
      onClick=${() => app.send(text)}>${text}</button></li>`,
    )}</ul>
  </div>`;
}

/** The turns to show: tool messages belong to the calls above them. */
function turns(path) {
  const shown = [];
  for (const node of path) {
    if (node.role === "tool") shown.at(-1)?.answers.push(node);
    else shown.push({ node, answers: [] });
  }
  return shown;
}

function Messages({ app, editing, edit }) {
  const path = app.path;
  const locked = Boolean(app.running(app.chat.id));
  if (!path.length) return html`<${Empty} app=${app} />`;
  return html`<ol class="turns">${turns(path).map(({ node, answers }, at, all) =>
    node.role === "user"
      ? html`<${User} key=${node.id} app=${app} node=${node} locked=${locked} editing=${editing === node.id}
      edit=${edit} />`
      : html`<${Assistant} key=${node.id} app=${app} node=${node} run=${app.runs.get(node.id) ?? null}
      last=${at === all.length - 1}
        locked=${locked} answers=${answers} />`,
  )}</ol>`;
}

function Page({ app }) {
  const [, draw] = useState(0);
  const [dialog, show] = useState(null);
  const [editing, edit] = useState(null);
  const [listed, list] = useState(!matchMedia("(max-width: 800px)").matches);
  const [away, setAway] = useState(false); // from the end
  const scroller = useRef(null);
  const search = useRef(null);
  const area = useRef(null);
  const follow = useRef(true);
  const top = useRef(0);
  useLayoutEffect(() => app.subscribe(() => draw((n) => n + 1)), []);
  const toEnd = () => {
    follow.current = true;
    setAway(false);
    scroller.current.scrollTop = scroller.current.scrollHeight;
  };
  const narrow = () => matchMedia("(max-width: 800px)").matches;
  const close = () => narrow() && list(false);
  const create = () => {
    app.newChat();
    close();
    area.current?.focus();
  };
  useLayoutEffect(
    () =>
      listen({
        app,
        create,
        search: () => {
          list(true);
          setTimeout(() => search.current?.focus());
        },
        settings: () => show("settings"),
        help: () => show("help"),
      }),
    [],
  );
  useLayoutEffect(() => {
    app.ondrawn = () => follow.current && toEnd();
  }, []);
  useLayoutEffect(() => {
    toEnd();
    edit(null);
    if (!narrow()) area.current?.focus();
  }, [app.chat.id]);
  useLayoutEffect(() => {
    if (follow.current) toEnd();
  }, [app.path.length, app.running(app.chat.id)]);
  // Text that has grown since the last frame also puts the end further away; only who goes up leaves it.
  const scrolled = () => {
    const { scrollTop } = scroller.current;
    if (atEnd(scroller.current)) follow.current = true;
    else if (scrollTop < top.current) follow.current = false;
    top.current = scrollTop;
    setAway(!follow.current);
  };
  const path = app.path;
  const lastUser = path.findLast((node) => node.role === "user");
  const title = app.chat.draft ? "New conversation" : app.chat.title;
  useEffect(() => {
    document.title = app.chat.draft ? "qwen3" : `${app.chat.title} · qwen3`;
  }, [title]);
  return html`<div class=${`page ${listed ? "listed" : ""}`}>
    <a class="skip" href="#message"
      onClick=${(event) => {
        event.preventDefault();
        area.current.focus();
      }}>Skip to the message field</a>
    ${
      listed &&
      html`<${Sidebar} app=${app} search=${search} close=${close} openHelp=${() => show("help")} />
      <div class="shade" onClick=${() => list(false)}></div>`
    }
    <div class="column">
      <header class="top">
        <${IconButton} icon="menu" label=${listed ? "Hide conversations" : "Show conversations"}
          aria-expanded=${listed} onClick=${() => list(!listed)} />
        <h1>${title}</h1>
        <button type="button" class="model-button" onClick=${() => show("models")} title="Models">
          <span class=${`state ${app.serverError ? "failed" : (app.model?.state ?? "loading")}`}></span>
          <span class="model-id">${app.model?.id ?? (app.serverError ? "no server" : "…")}</span><${Icon}
            name="down" /></button>
        <${IconButton} icon="sliders" label="Settings" keys="Ctrl+," onClick=${() => show("settings")} />
      </header>
      <main ref=${scroller} onScroll=${scrolled} tabindex="-1"><${Messages} app=${app} editing=${editing}
        edit=${edit} /></main>
      <footer class="bottom">
        ${
          away &&
          path.length > 0 &&
          html`<${IconButton} icon="bottom" label="To the end" class="to-end"
          onClick=${toEnd} />`
        }
        <${Composer} app=${app} area=${area} openSettings=${() => show("settings")}
          editLast=${lastUser && !app.running(app.chat.id) && (() => edit(lastUser.id))} />
        ${
          app.serverError &&
          !app.needKey &&
          html`<p class="server-error" role="alert">${app.serverError} <button
          type="button" class="quiet small" onClick=${() => app.loadModels()}>Try again</button></p>`
        }
      </footer>
    </div>
    <${Toasts} app=${app} />
    <div class="offscreen" role="status">${app.said}</div>
    ${
      app.needKey
        ? html`<${KeyDialog} app=${app} />`
        : dialog === "settings"
          ? html`<${Settings} app=${app} close=${() => show(null)} />`
          : dialog === "models"
            ? html`<${Models} app=${app} close=${() => show(null)} />`
            : dialog === "help"
              ? html`<${Help} close=${() => show(null)} />`
              : null
    }
  </div>`;
}

function Toasts({ app }) {
  return html`<div class="toasts" role="region" aria-label="Notices">${app.toasts.map(
    (toast) => html`<div
    key=${toast.id} class=${`toast ${toast.kind}`}
    role=${toast.kind === "error" ? "alert" : "status"}><span>${toast.text}</span>
    ${
      toast.action &&
      html`<button type="button" class="quiet small"
      onClick=${() => {
        app.untoast(toast);
        toast.action.run();
      }}>${toast.action.label}</button>`
    }
    <${IconButton} icon="close" label="Dismiss" onClick=${() => app.untoast(toast)} /></div>`,
  )}</div>`;
}

/** The copy buttons of code blocks, which are plain nodes. */
async function copyCode(event) {
  const button = event.target.closest?.(".copy-code");
  if (!button) return;
  const code = button.closest(".code").querySelector("pre");
  button.textContent = await copyText(code.textContent.replace(/\n$/, "")).then(
    () => "Copied",
    () => "Not copied",
  );
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

const app = new App();
const root = document.getElementById("app");
document.addEventListener("click", copyCode);
app.start().finally(() => {
  root.replaceChildren();
  render(html`<${Page} app=${app} />`, root);
});
