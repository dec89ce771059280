// The conversations: search, rename, delete, take out and bring in.

import { download, html, Icon, IconButton, useLayoutEffect, useRef, useState } from "./ui.js";

const DAY = 86_400_000;

/** Conversations under the headings of their age, newest first. */
export function grouped(chats, query, now = Date.now()) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const groups = [
    ["Today", midnight],
    ["Yesterday", midnight - DAY],
    ["This week", midnight - 6 * DAY],
    ["Earlier", -Infinity],
  ];
  const found = groups.map(([name, since]) => ({ name, since, chats: [] }));
  for (const chat of [...chats].sort((a, b) => b.updated - a.updated)) {
    if (!words.every((word) => chat.title.toLowerCase().includes(word))) continue;
    found.find(({ since }) => chat.updated >= since).chats.push(chat);
  }
  return found.filter((group) => group.chats.length);
}

function Rename({ app, chat, close }) {
  const field = useRef(null);
  const over = useRef(false);
  useLayoutEffect(() => field.current.select(), []);
  const end = (event, keep) => {
    event.preventDefault();
    event.stopPropagation();
    if (over.current) return; // taking the field away takes its focus, which comes here again
    over.current = true;
    if (keep) app.rename(chat.id, field.current.value);
    close();
  };
  return html`<li><form onSubmit=${(event) => end(event, true)}><input class="rename" ref=${field}
    defaultValue=${chat.title}
    aria-label="New title" onBlur=${(event) => end(event, true)}
      onKeyDown=${(event) => event.key === "Escape" && end(event, false)} /></form></li>`;
}

function Item({ app, chat, close }) {
  const [renaming, rename] = useState(false);
  if (renaming) return html`<${Rename} app=${app} chat=${chat} close=${() => rename(false)} />`;
  const here = chat.id === app.chat.id;
  return html`<li class=${`chat-item ${here ? "here" : ""}`}>
    <a href=${`#${chat.id}`} aria-current=${here ? "page" : undefined} onClick=${close}>${chat.title}
      ${app.running(chat.id) && html`<span class="dot" title="Answering"></span>`}</a>
    <${IconButton} icon="edit" label=${`Rename ${chat.title}`} onClick=${() => rename(true)} />
    <${IconButton} icon="trash" label=${`Delete ${chat.title}`} onClick=${() => app.remove(chat.id)} />
  </li>`;
}

export function Sidebar({ app, search, close, openHelp }) {
  const [query, setQuery] = useState("");
  const file = useRef(null);
  const groups = grouped(app.chats.values(), query);
  const save = async () => {
    const data = await app.exported([...app.chats.keys()]);
    download(
      `qwen3-conversations-${data.exported.slice(0, 10)}.json`,
      "application/json",
      JSON.stringify(data, null, 1),
    );
  };
  const load = async (event) => {
    const [chosen] = event.target.files;
    event.target.value = "";
    if (!chosen) return;
    try {
      const made = await app.imported(JSON.parse(await chosen.text()));
      app.toast(`${made} conversation${made === 1 ? "" : "s"} imported.`);
    } catch (error) {
      app.toast(`${chosen.name} was not imported: ${error.message}`, { kind: "error" });
    }
  };
  return html`<nav class="sidebar" aria-label="Conversations">
    <div class="sidebar-top">
      <a class="brand" href="/" onClick=${(event) => {
        event.preventDefault();
        app.newChat();
        close();
      }}>qwen3</a>
      <${IconButton} icon="close" label="Close the list" class="only-narrow" onClick=${close} />
    </div>
    <button type="button" class="new-chat" onClick=${() => {
      app.newChat();
      close();
    }}><${Icon}
      name="plus" />New conversation</button>
    <label class="search"><${Icon} name="search" /><input ref=${search} type="search" placeholder="Search"
      aria-label="Search conversations"
      value=${query} onInput=${(event) => setQuery(event.target.value)} /></label>
    <div class="chat-list" tabindex="-1">
      ${groups.map(
        (group) => html`<section key=${group.name}><h2>${group.name}</h2>
        <ul>${group.chats.map((chat) => html`<${Item} key=${chat.id} app=${app} chat=${chat} close=${close} />`)}</ul>
          </section>`,
      )}
      ${
        !groups.length &&
        html`<p class="faint none">
        ${query ? "Nothing found." : "Conversations stay in this browser."}</p>`
      }
    </div>
    <div class="sidebar-foot">
      <button type="button" class="quiet small" disabled=${!app.chats.size} onClick=${save}>Export</button>
      <button type="button" class="quiet small" onClick=${() => file.current.click()}>Import</button>
      <input ref=${file} type="file" accept=".json,application/json" hidden onChange=${load}
        aria-label="File to import" />
      <span class="grow"></span>
      <${IconButton} icon="keys" label="Keyboard shortcuts" keys="Ctrl+/" onClick=${openHelp} />
      <a class="icon-button" href="/status" aria-label="Server status" title="Server status"><${Icon} name="chart" />
        </a>
    </div>
  </nav>`;
}
