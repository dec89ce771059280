// One turn of a conversation: what was said, what it cost, and what can be done with it.

import { MarkdownView } from "./markdown.js";
import { Thinking } from "./thinking.js";
import { Calls } from "./tools.js";
import { siblings } from "./tree.js";
import { copyText, count, html, Icon, IconButton, plural, seconds, useLayoutEffect, useRef, useState } from "./ui.js";

function Answer({ node, run }) {
  const root = useRef(null);
  const view = useRef(null);
  useLayoutEffect(() => {
    view.current = new MarkdownView(root.current);
  }, []);
  useLayoutEffect(() => {
    view.current.update(node.content, !run);
    return run?.listen(() => view.current.update(node.content, false));
  }, [run, node.content.length]);
  return html`<div class="prose" ref=${root}></div>`;
}

/** ‹ 2/3 › between the versions of a message. */
function Branches({ app, node }) {
  const all = siblings(app.nodes, node);
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  const go = (step) => app.choose(all[at + step]);
  return html`<span class="branches">
    <${IconButton} icon="left" label="Previous version" disabled=${at === 0} onClick=${() => go(-1)} />
    <span class="figures" aria-label=${`Version ${at + 1} of ${all.length}`}>${at + 1}/${all.length}</span>
    <${IconButton} icon="right" label="Next version" disabled=${at === all.length - 1} onClick=${() => go(1)} />
  </span>`;
}

function CopyButton({ app, text }) {
  const [copied, set] = useState(false);
  const copy = async () => {
    try {
      await copyText(text);
      set(true);
      setTimeout(() => set(false), 1500);
    } catch (error) {
      app.toast(`Not copied: ${error.message}`, { kind: "error" });
    }
  };
  return html`<${IconButton} icon=${copied ? "done" : "copy"} label=${copied ? "Copied" : "Copy"} onClick=${copy} />`;
}

export function User({ app, node, editing, edit, locked }) {
  if (editing) return html`<${Editor} app=${app} node=${node} close=${() => edit(null)} />`;
  return html`<li class="turn user"><article aria-label="You">
    <div class="bubble">${node.content}</div>
    <footer class="actions">
      <${Branches} app=${app} node=${node} />
      <${CopyButton} app=${app} text=${node.content} />
      <${IconButton} icon="edit" label="Edit and send again" disabled=${locked} onClick=${() => edit(node.id)} />
    </footer>
  </article></li>`;
}

function Editor({ app, node, close }) {
  const area = useRef(null);
  const [text, set] = useState(node.content);
  useLayoutEffect(() => {
    area.current.focus();
    area.current.setSelectionRange(text.length, text.length);
  }, []);
  const send = (event) => {
    event?.preventDefault();
    if (!text.trim()) return;
    close();
    app.edit(node, text);
  };
  const key = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  };
  return html`<li class="turn user"><form class="editor" onSubmit=${send}>
    <textarea ref=${area} rows=${Math.min(12, text.split("\n").length + 1)} value=${text} aria-label="Edit your message"
      onInput=${(event) => set(event.target.value)} onKeyDown=${key}></textarea>
    <div class="row end">
      <span class="faint grow">The conversation goes on from here; what follows now stays as another version.</span>
      <button type="button" class="quiet small" onClick=${close}>Cancel</button>
      <button type="submit" class="primary small" disabled=${!text.trim()}>Send</button>
    </div>
  </form></li>`;
}

/** "first token 0.12 s · …": what is not known is left out. */
function Stats({ stats }) {
  const parts = [];
  if (stats.first_token !== undefined) parts.push(["first token", seconds(stats.first_token)]);
  if (stats.first_answer !== undefined && stats.thinking) parts.push(["first answer", seconds(stats.first_answer)]);
  if (stats.speed)
    parts.push([null, `${stats.speed < 10 ? stats.speed.toFixed(1) : count(Math.round(stats.speed))} tok/s`]);
  const forced = stats.forced ?? 0;
  if (stats.completion) {
    const answer = Math.max(0, stats.completion - (stats.thinking ?? 0) - forced);
    parts.push([
      null,
      stats.thinking ? `${count(stats.thinking)} thinking + ${count(answer)} answer tokens` : plural(answer, "token"),
    ]);
  }
  if (stats.prompt) {
    const speed = stats.prompt_speed ? ` at ${count(Math.round(stats.prompt_speed))} tok/s` : "";
    parts.push(["prompt", `${count(stats.prompt)}${stats.cached ? `, ${count(stats.cached)} cached` : ""}${speed}`]);
  }
  if (!parts.length) return null;
  return html`<p class="stats figures">${parts.map(
    ([name, value], i) => html`<span key=${i}>
    ${name && `${name} `}${value}</span>`,
  )}</p>`;
}

/** Why there is less than one might expect, with what can be done about it. */
function Ending({ app, node, last, locked }) {
  const { stats, state, error } = node;
  const again = () => app.again(node);
  const something = (node.content || node.reasoning) && !node.calls.length;
  const more =
    something &&
    html`<button type="button" class="quiet small" disabled=${locked}
    onClick=${() => app.continue(node)}>Continue</button>`;
  const retry = html`<button type="button" class="quiet small" disabled=${locked} onClick=${again}>Try again</button>`;
  const line = (text, ...buttons) => html`<div class="ending"><span>${text}</span>${last && buttons}</div>`;
  if (error) {
    const wait = error.retryAfter ? ` It may work in ${seconds(error.retryAfter)}.` : "";
    const where = error.param ? html` <code>${error.param}</code>` : "";
    return html`<div class="ending failed" role="alert"><${Icon} name="warn" /><span>
      ${error.message}${where}${wait}</span>
      ${last && retry}${last && more}</div>`;
  }
  if (state === "interrupted") return line("Interrupted: this is what had come.", more, retry);
  if (state === "stopped") return line("Stopped.", more || retry);
  if (state !== "done") return null;
  if (stats.finish === "length") {
    return line(
      node.content ? "Cut by the token limit." : "The thinking took all tokens, so there is no answer.",
      more,
      retry,
    );
  }
  if (stats.finish === "loop") return line("The answer repeated itself and was ended.", retry);
  if (!node.content && !node.calls.length) return line("The model gave no answer.", retry);
  return null;
}

export function Assistant({ app, node, run, last, locked, answers }) {
  const live = Boolean(run);
  const waiting = live && run.phase === "waiting" && !node.content && !node.reasoning;
  const wide = node.calls.length > 0;
  return html`<li class=${`turn assistant ${last ? "last" : ""}`}><article aria-label=${node.model || "Assistant"}
    aria-busy=${live}>
    ${
      waiting &&
      html`<p class="waiting"><span class="dot"></span>
      ${app.model?.state === "loading" ? "Loading the model" : "Waiting for the first token"}</p>`
    }
    <${Thinking} app=${app} node=${node} run=${run} />
    <${Answer} node=${node} run=${run} />
    ${
      wide &&
      html`<${Calls} app=${app} node=${node} answers=${answers} open=${!live && last && !answers.length}
      branch=${answers[0] && html`<${Branches} app=${app} node=${answers[0]} />`} />`
    }
    ${!live && html`<${Ending} app=${app} node=${node} last=${last} locked=${locked} />`}
    ${(node.stats.warnings ?? []).map(
      (text) => html`<p class="warning" key=${text}><${Icon} name="warn" />
      ${text}</p>`,
    )}
    ${
      !live &&
      html`<footer class="actions">
      <${Branches} app=${app} node=${node} />
      <${CopyButton} app=${app} text=${node.content} />
      <${IconButton} icon="again" label="Another answer" disabled=${locked} onClick=${() => app.again(node)} />
      ${
        last &&
        !wide &&
        node.content &&
        html`<${IconButton} icon="more" label="Continue this answer"
        disabled=${locked} onClick=${() => app.continue(node)} />`
      }
    </footer><${Stats} stats=${node.stats} />`
    }
  </article></li>`;
}
