// Model text to DOM: marked, then DOMPurify as the last thing that touches HTML, then the document.
//
// Nothing of the text is trusted. HTML in it is shown as text, links leave the page without a trace of it, pictures of
// other hosts are not fetched (their addresses can carry the conversation away). Incremental: a finished block is
// rendered once and never touched again; only the last block, which may still grow, is rendered anew.

import { Marked } from "./vendor/marked.mjs";
import "./vendor/purify.min.js";

const SPLIT = 8192; // characters that are split into blocks in one go
const BUDGET_MS = 12; // of work in one go; what is left follows a frame later
const PLAIN = 40_000; // characters from which on a single block stays plain text: no block may stop the page
const MATH = 4000; // and a formula its source
/** Blocks inside blocks beyond reason: the parser would run out of stack, the browser out of patience. */
const DEEP = /^(?:[ \t]*(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])[ \t]*){24}/m;

const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

/** HTML that models write in prose and that only shapes letters; all other tags are shown as they are. */
const HARMLESS = /^<(\/?(b|i|u|s|sub|sup|kbd|mark|small)|br\s*\/?)>$/i;

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => (HARMLESS.test(text.trim()) ? text : escaped(text)),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 1); // the page has the first one
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
  },
  extensions: [math("block"), math("inline")],
});

/** TeX between $…$, $$…$$, \(…\) and \[…\], found with bounded search: a lone delimiter costs little. */
function math(level) {
  const inline = level === "inline";
  return {
    name: `math-${level}`,
    level,
    start: (src) => src.match(inline ? /\$|\\[([]/ : /\n {0,3}(?:\$\$|\\\[)/)?.index,
    tokenizer(src) {
      const [whole, tex, display] = inline ? inlineMath(src) : blockMath(src);
      return whole ? { type: `math-${level}`, raw: whole, text: tex, display } : undefined;
    },
    renderer: ({ text, display }) =>
      display ? `<div class="math display">${escaped(text)}</div>` : `<span class="math">${escaped(text)}</span>`,
  };
}

function between(src, open, close) {
  if (!src.startsWith(open)) return null;
  const end = src.slice(0, MATH).indexOf(close, open.length);
  const tex = end > 0 ? src.slice(open.length, end) : "";
  return tex.trim() ? [src.slice(0, end + close.length), tex] : null;
}

function inlineMath(src) {
  const wide = between(src, "$$", "$$") ?? between(src, "\\[", "\\]");
  if (wide) return [...wide, false];
  const round = between(src, "\\(", "\\)");
  if (round) return [...round, false];
  // Pandoc's rule keeps "$5 and $10" a text: no space inside the signs, no digit behind.
  const found = /^\$(?![\s$])((?:\\[^\n]|[^\\$\n]){1,999})\$(?!\d)/.exec(src);
  return found && !/\s$/.test(found[1]) ? [found[0], found[1], false] : [];
}

function blockMath(src) {
  const indent = /^ {0,3}/.exec(src)[0];
  const rest = src.slice(indent.length, indent.length + MATH);
  const found = between(rest, "$$", "$$") ?? between(rest, "\\[", "\\]");
  const end = found && /^[ \t]*(?:\n|$)/.exec(rest.slice(found[0].length));
  return end ? [indent + found[0] + end[0], found[1], true] : [];
}

const PURE = {
  ALLOWED_TAGS: (
    "p br strong em del b i u s sub sup kbd mark small code pre ul ol li blockquote h2 h3 h4 h5 h6 hr " +
    "table thead tbody tr th td a img span div"
  ).split(" "),
  ALLOWED_ATTR: ["href", "src", "alt", "title", "align", "start", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|data:image\/(?:png|jpeg|gif|webp);)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const PICTURE = /^data:image\/(?:png|jpeg|gif|webp);base64,/i;

/** A fragment of clean nodes. They are not in the document yet, so nothing in them has been fetched. */
function fragmentOf(tokens) {
  const fragment = globalThis.DOMPurify.sanitize(marked.parser(tokens), PURE);
  for (const link of fragment.querySelectorAll("a")) {
    if (!/^(?:https?:|mailto:)/i.test(link.getAttribute("href") ?? "")) link.removeAttribute("href");
    else Object.assign(link, { target: "_blank", rel: "noopener noreferrer", title: link.href });
  }
  for (const image of fragment.querySelectorAll("img")) {
    const source = image.getAttribute("src") ?? "";
    if (PICTURE.test(source)) image.alt ||= "";
    else image.replaceWith(blocked(image.alt, source));
  }
  for (const table of fragment.querySelectorAll("table")) wrap(table, "table", "Table");
  for (const pre of fragment.querySelectorAll("pre")) codeBlock(pre);
  for (const el of fragment.querySelectorAll("[class]")) {
    if (!el.matches(".math, code[class^=language-], .code, .code *, .scroll, .blocked")) el.removeAttribute("class");
  }
  return fragment;
}

function blocked(alt, source) {
  const link = document.createElement(/^https?:/i.test(source) ? "a" : "span");
  link.className = "blocked";
  link.textContent = `picture not loaded${alt ? `: ${alt}` : ""}`;
  if (link.tagName === "A")
    Object.assign(link, { href: source, target: "_blank", rel: "noopener noreferrer", title: source });
  return link;
}

/** A box that scrolls sideways, by keyboard too. */
function wrap(el, kind, label) {
  const box = document.createElement("div");
  box.className = `scroll ${kind}`;
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  el.replaceWith(box);
  box.append(el);
}

function codeBlock(pre) {
  const code = pre.firstElementChild;
  const language = /^language-([\w+#.-]{1,30})/.exec(code?.className ?? "")?.[1] ?? "";
  const box = document.createElement("div");
  const head = document.createElement("div");
  const name = document.createElement("span");
  const copy = document.createElement("button");
  box.className = "code";
  head.className = "code-head";
  name.textContent = language || "text";
  Object.assign(copy, { type: "button", className: "copy-code", textContent: "Copy" });
  pre.replaceWith(box);
  pre.tabIndex = 0;
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  head.append(name, copy);
  box.append(head, pre);
}

// Formulas: KaTeX, fetched when the first one comes, makes nodes out of TeX without any HTML in between.
let katex = null;
let busy = false;
const formulas = [];

async function load() {
  const sheet = document.createElement("link");
  Object.assign(sheet, { rel: "stylesheet", href: new URL("./vendor/katex.min.css", import.meta.url).href });
  document.head.append(sheet);
  await import("./vendor/katex.min.js");
  katex = globalThis.katex;
}

async function typeset() {
  busy = true;
  try {
    if (!katex) await load();
    let until = performance.now() + BUDGET_MS;
    while (formulas.length) {
      formula(formulas.shift());
      if (performance.now() < until) continue;
      await new Promise((resolve) => setTimeout(resolve));
      until = performance.now() + BUDGET_MS;
    }
  } catch {
    formulas.length = 0; // they stay TeX
  } finally {
    busy = false;
  }
}

function formula(el) {
  const tex = el.textContent;
  if (!el.isConnected || tex.length > MATH) return;
  const displayMode = el.classList.contains("display");
  if (displayMode) el.tabIndex = 0; // it may have to scroll
  try {
    katex.render(tex, el, { displayMode, throwOnError: true, strict: "ignore", maxSize: 20, maxExpand: 200 });
  } catch {
    el.textContent = tex; // no formula: as it was written
    el.classList.add("wrong");
  }
}

function findFormulas(root) {
  formulas.push(...(root.matches(".math") ? [root] : root.querySelectorAll(".math")));
  if (formulas.length && !busy) typeset();
}

/** A definition of a link that other blocks refer to: then all blocks are rendered together once more at the end. */
const DEFINITION = /^ {0,3}\[[^\]\n]{1,200}\]:/m;

/** One text, growing or not, inside `root`. */
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.reset();
  }

  reset() {
    clearTimeout(this.timer);
    this.tail = document.createElement("div");
    this.tail.className = "open";
    this.root.replaceChildren(this.tail);
    this.source = "";
    this.final = false;
    this.offset = 0; // up to here it is rendered for good
    this.seen = 0; // and up to here it is split
    this.closed = []; // blocks that are final and wait for their turn
    this.pending = []; // the one that may still grow
    this.code = null; // its text node, if it is code
    this.rest = 0; // no rendering before this time
  }

  /** Shows `source`, which begins with what was shown before; final: nothing will follow. */
  update(source, final) {
    source = source.includes("\r") ? source.replace(/\r\n?/g, "\n") : source;
    if (source === this.source && final === this.final) return;
    const whole = final && DEFINITION.test(source);
    if (this.final || whole || !source.startsWith(this.source)) this.reset();
    this.whole = whole;
    this.source = source;
    this.final = final;
    clearTimeout(this.timer);
    // A block that takes long to render is rendered less often: at most a sixth of the time goes into it.
    const wait = final ? 0 : this.rest - performance.now();
    if (wait > 0) this.timer = setTimeout(() => this.work(), wait);
    else this.work();
  }

  work() {
    const started = performance.now();
    if (!this.closed.length) this.lex();
    while (this.closed.length && performance.now() < started + BUDGET_MS) {
      const token = this.closed.shift();
      this.close(token);
      this.offset += token.raw.length;
    }
    if (this.closed.length || this.source.length > this.seen) {
      this.timer = setTimeout(() => this.work());
      return;
    }
    this.drawTail();
    const now = performance.now();
    this.rest = now + Math.min(2000, 5 * (now - started));
  }

  /** Splits what is not rendered yet, or the beginning of it with at least a block that is final: all but the last one
   *  are, and that one too at the end of a final text. */
  lex() {
    let size = this.whole ? Infinity : SPLIT;
    do {
      this.seen = Math.min(this.source.length, this.offset + size);
      const text = this.source.slice(this.offset, this.seen);
      const tokens = DEEP.test(text) ? [{ type: "plain", raw: text }] : marked.lexer(text);
      let at = 0;
      const exact = tokens.every((token) => text.startsWith(token.raw, at) && (at += token.raw.length) >= 0);
      const last = tokens.findLastIndex((token) => token.type !== "space");
      const ended = this.final && this.seen === this.source.length;
      const cut = ended ? tokens.length : exact ? Math.max(0, last) : 0;
      this.closed = tokens.slice(0, cut);
      this.pending = tokens.slice(cut);
      size *= 4; // a few times at most: some texts take the square of their length
    } while (!this.closed.length && this.seen < this.source.length);
  }

  close(token) {
    if (token.type === "space" || token.type === "def") return;
    if (this.reuse(token)) {
      this.root.insertBefore(this.tail.firstElementChild, this.tail);
    } else {
      const made = this.rendered([token]);
      const blocks = [...made.children];
      this.root.insertBefore(made, this.tail);
      blocks.forEach(findFormulas);
    }
    this.code = null;
    this.tail.replaceChildren();
  }

  drawTail() {
    const [token] = this.pending;
    if (token && this.reuse(token)) return;
    this.tail.replaceChildren(...(token ? [this.rendered(this.pending)] : []));
    const text = token?.type === "code" ? this.tail.querySelector("pre code")?.firstChild : null;
    this.code = text ? { node: text, lang: token.lang } : null;
    findFormulas(this.tail);
  }

  /** A growing code block only gets its new text appended; true if that was all there was to do. */
  reuse({ type, text, lang }) {
    if (type !== "code" || !this.code?.node.isConnected || this.code.lang !== lang) return false;
    const { node } = this.code;
    const shown = node.data.replace(/\n$/, "");
    if (!text.startsWith(shown)) return false;
    node.replaceData(shown.length, node.length - shown.length, `${text.slice(shown.length)}\n`);
    return true;
  }

  rendered(tokens) {
    const raw = tokens.map((token) => token.raw).join("");
    if (tokens[0].type === "code" || (tokens[0].type !== "plain" && raw.length <= PLAIN)) return fragmentOf(tokens);
    const fragment = document.createDocumentFragment();
    const plain = document.createElement("div");
    plain.className = "plain";
    plain.textContent = raw;
    fragment.append(plain);
    return fragment;
  }
}
