// The thinking block: live with time and tokens against the budget, a line once it is over.

import { count, html, Icon, plural, seconds, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";

const PIECE = 4000;

/** A long plain text that only grows. It is laid out in pieces, of which the browser skips those out of sight. */
class GrowingText {
  constructor(root) {
    this.root = root;
    this.shown = 0;
    this.add();
  }

  update(text) {
    if (text.length < this.shown) {
      this.root.replaceChildren();
      this.shown = 0;
      this.add();
    }
    let rest = text.slice(this.shown);
    for (;;) {
      const cut = pieceEnd(rest, Math.max(0, PIECE - this.piece.length));
      this.piece.appendData(cut < 0 ? rest : rest.slice(0, cut));
      if (cut < 0) break;
      rest = rest.slice(cut + 1);
      this.add();
    }
    this.shown = text.length;
  }

  add() {
    const el = document.createElement("div");
    this.piece = document.createTextNode("");
    el.append(this.piece);
    this.root.append(el);
  }
}

/** Where a piece with room for so many characters ends: at a line's end, which the piece's own end then stands for; in
 * a line without end at a space. -1: nowhere yet. */
function pieceEnd(text, room) {
  if (text.length <= room) return -1;
  const line = text.indexOf("\n", room);
  if (line >= 0 && line <= room + PIECE) return line;
  const space = text.length > room + PIECE ? text.indexOf(" ", room + PIECE) : -1;
  return space >= 0 ? space : line;
}

/** Keeps a scrolled box at its end while its user is there. */
export function atEnd(box) {
  return box.scrollHeight - box.scrollTop - box.clientHeight < 40;
}

function Body({ node, run }) {
  const box = useRef(null);
  const view = useRef(null);
  useLayoutEffect(() => {
    view.current = new GrowingText(box.current.firstChild);
    view.current.update(node.reasoning);
    if (run) box.current.scrollTop = box.current.scrollHeight;
  }, []);
  useLayoutEffect(() => {
    view.current.update(node.reasoning);
    return run?.listen(() => {
      const follow = atEnd(box.current);
      view.current.update(node.reasoning);
      if (follow) box.current.scrollTop = box.current.scrollHeight;
      box.current.classList.toggle("faded", follow && box.current.scrollTop > 0);
    });
  }, [run]);
  return html`<div class="thought-text" ref=${box} tabindex="0" role="group" aria-label="Thinking"><div></div></div>`;
}

const ENDS = {
  budget: "ended by the budget",
  client: "ended by “Answer now”",
  time: "ended by the time limit",
  steps: "ended by the step limit",
  loop: "ended because it went in circles",
  eos: "ended early by the model",
  length: "cut by the token limit",
};

/** "Thought for 8.1 s, 310 tokens" */
function summary({ stats }) {
  const time = stats.think_seconds ? `Thought for ${seconds(stats.think_seconds)}` : "Thought";
  const of = stats.budget
    ? `${count(stats.thinking ?? 0)} of ${plural(stats.budget, "token")}`
    : plural(stats.thinking ?? 0, "token");
  return stats.thinking ? `${time}, ${of}` : time;
}

export function Thinking({ app, node, run }) {
  const live = run && run.phase !== "answering" && run.phase !== "over";
  const [chosen, choose] = useState(null); // by its reader; until then: open while it thinks
  const open = chosen ?? Boolean(live);
  const [, tick] = useState(0);
  useEffect(() => {
    if (!live) return undefined;
    const timer = setInterval(() => tick((n) => n + 1), 250);
    return () => clearInterval(timer);
  }, [live]);
  if (!node.reasoning && !(live && run.phase === "thinking")) return null;
  const why = live ? null : ENDS[node.stats.ended_by];
  return html`<div class=${`thought ${live ? "live" : ""}`}>
    <div class="thought-head">
      <button type="button" class="thought-toggle" aria-expanded=${open} onClick=${() => choose(!open)}>
        <${Icon} name=${open ? "down" : "right"} />
        ${live ? html`<${Live} run=${run} />` : html`<span>${summary(node)}</span>`}
        ${why && html`<span class="faint">${why}</span>`}
      </button>
      ${
        live &&
        html`<button type="button" class="quiet small" disabled=${run.asked || !run.id}
        onClick=${() => app.answerNow()}
        title="End the thinking and answer (Alt+A)">${run.asked ? "Answering…" : "Answer now"}</button>`
      }
    </div>
    ${live && run.budget ? html`<${Bar} used=${run.thinkingTokens} budget=${run.budget} />` : null}
    ${open && html`<${Body} node=${node} run=${live ? run : null} />`}
  </div>`;
}

function Live({ run }) {
  const tokens = run.budget
    ? `${count(run.thinkingTokens)} of ${plural(run.budget, "token")}`
    : plural(run.thinkingTokens, "token");
  return html`<span class="dot"></span><b>Thinking</b><span class="faint figures">
    ${seconds(run.thinkingSeconds)} · ${tokens}</span>`;
}

function Bar({ used, budget }) {
  const part = Math.min(1, used / budget);
  return html`<div class="bar" role="progressbar" aria-label="Thinking budget used" aria-valuemin="0"
    aria-valuemax=${budget}
    aria-valuenow=${Math.min(used, budget)}><div style=${{ transform: `scaleX(${part})` }}></div></div>`;
}
