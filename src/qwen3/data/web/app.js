// What the page knows and can do, without a pixel: conversations, the open one, its answers as they come, settings.

import { ApiFailure, getJson, setApiKey } from "./api.js";
import { Run } from "./run.js";
import { recall, remember, Store } from "./store.js";
import * as tree from "./tree.js";

export const DEFAULTS = {
  model: null,
  system: "",
  thinking: "on",
  budget: null,
  max_tokens: null,
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  presence_penalty: null,
  seed: null,
  schema: "",
  tools: "",
};
/** What a new conversation takes over from the last one; a system prompt, schema or tools it does not. */
const LASTING = [
  "model",
  "thinking",
  "budget",
  "max_tokens",
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "presence_penalty",
];
const STALE_MS = 6000;

export class App {
  constructor() {
    this.tab = tabId();
    this.chats = new Map();
    this.trees = new Map(); // chat id -> Map of its nodes
    this.runs = new Map(); // node id -> Run
    this.models = [];
    this.toasts = [];
    this.serverError = null;
    this.needKey = false;
    this.said = ""; // for screen readers
    this.listeners = new Set();
    this.chat = this.fresh();
  }

  /** Opens what this browser keeps. Nothing can be sent before: the page is shown after it. */
  async start() {
    this.store = await Store.open({
      onchange: (id) => this.refresh(id),
      onerror: (text) => this.toast(text, { kind: "error" }),
    });
    await this.loadChats();
    const wanted = location.hash.slice(1);
    if (this.chats.has(wanted)) await this.open(wanted);
    addEventListener("hashchange", () => this.open(location.hash.slice(1)));
    addEventListener("pagehide", () => this.leave());
    this.loadModels();
  }

  subscribe(fn) {
    this.listeners.add(fn);
    return () => this.listeners.delete(fn);
  }

  changed() {
    this.listeners.forEach((fn) => fn());
  }

  say(text) {
    this.said = text;
    this.changed();
  }

  toast(text, { kind = "note", action = null, ms = kind === "error" ? 12_000 : 7000 } = {}) {
    if (this.toasts.some((other) => other.text === text)) return;
    const toast = { id: tree.newId(), text, kind, action };
    this.toasts.push(toast);
    setTimeout(() => this.untoast(toast), ms);
    this.changed();
  }

  untoast(toast) {
    this.toasts = this.toasts.filter((other) => other !== toast);
    this.changed();
  }

  // Models

  async loadModels() {
    clearTimeout(this.modelTimer);
    try {
      this.models = (await getJson("/v1/models")).data;
      this.serverError = null;
      this.needKey = false;
    } catch (error) {
      this.needKey = error.status === 401;
      this.serverError = error.message;
    }
    // Facts come with the loaded model; a server that is away may come back.
    const waiting =
      this.serverError !== null || this.models.some((model) => ["loading", "restarting"].includes(model.state));
    if (waiting && !this.needKey) this.modelTimer = setTimeout(() => this.loadModels(), 2000);
    this.changed();
  }

  async giveKey(key) {
    setApiKey(key);
    await this.loadModels();
  }

  get model() {
    const chats = this.models.filter((model) => (model.kind ?? "chat") === "chat");
    return chats.find((model) => model.id === this.chat.settings.model) ?? chats[0] ?? null;
  }

  /** The ways of thinking the model has: of "off", "auto", "on". */
  get modes() {
    return this.model?.thinking?.modes ?? ["on", "off", "auto"];
  }

  // Conversations

  fresh() {
    const last = recall("settings", {});
    const settings = { ...DEFAULTS };
    for (const name of LASTING) if (name in last) settings[name] = last[name];
    return { id: tree.newId(), title: "", leaf: null, created: 0, updated: 0, settings, draft: true };
  }

  async loadChats() {
    const stored = new Map((await this.store.chats()).map((chat) => [chat.id, chat]));
    if (!this.store.sound) for (const [id, chat] of this.chats) stored.has(id) || stored.set(id, chat);
    this.chats = stored;
    const here = stored.get(this.chat.id);
    if (!here || this.chat.draft) return;
    // An answer that comes in here stays in view, whatever branch another tab has turned to.
    this.chat = this.running(here.id) ? Object.assign(here, { leaf: this.chat.leaf }) : here;
  }

  /** The messages of a conversation: the stored ones, and those that could not be. */
  async nodesOf(id) {
    const nodes = new Map((await this.store.nodes(id)).map((node) => [node.id, node]));
    if (!this.store.sound) for (const [nodeId, node] of this.trees.get(id) ?? []) nodes.set(nodeId, node);
    return [...nodes.values()];
  }

  async loadTree(id) {
    const nodes = new Map((await this.nodesOf(id)).map((node) => [node.id, node]));
    for (const [nodeId, run] of this.runs) if (run.node.chat === id) nodes.set(nodeId, run.node);
    for (const node of nodes.values()) {
      if (node.state !== "streaming" || this.runs.has(node.id)) continue;
      // Nobody writes to it any more: its tab was closed or reloaded in the middle.
      if (Date.now() - (node.beat ?? 0) > STALE_MS || node.tab === this.tab) node.state = "interrupted";
      else setTimeout(() => this.refresh(id), STALE_MS);
    }
    this.trees.set(id, nodes);
    return nodes;
  }

  /** Another tab wrote; null: many things. */
  async refresh(id) {
    await this.loadChats();
    if (!this.chat.draft && !this.chats.has(this.chat.id) && !this.running(this.chat.id)) this.newChat();
    else if (this.trees.has(this.chat.id) && (id === null || id === this.chat.id)) await this.loadTree(this.chat.id);
    this.changed();
  }

  get nodes() {
    return this.trees.get(this.chat.id) ?? new Map();
  }

  get path() {
    return tree.path(this.nodes, this.chat.leaf);
  }

  running(chat) {
    return [...this.runs.values()].find((run) => run.node.chat === chat) ?? null;
  }

  async open(id) {
    if (!this.chats.has(id)) {
      if (!this.chat.draft) this.newChat();
      return;
    }
    if (this.chat.id === id && this.trees.has(id)) return;
    const nodes = await this.loadTree(id);
    for (const other of this.trees.keys()) {
      if (other !== id && this.store.sound && !this.running(other)) this.trees.delete(other);
    }
    this.chat = this.chats.get(id);
    this.chat.settings = { ...DEFAULTS, ...this.chat.settings };
    if (!nodes.has(this.chat.leaf)) this.chat.leaf = tree.newest(nodes);
    if (location.hash.slice(1) !== id) history.pushState(null, "", `#${id}`);
    this.changed();
  }

  newChat() {
    this.chat = this.fresh();
    history.pushState(null, "", location.pathname);
    this.changed();
  }

  /** Fields of the conversation's record, here and in the store. */
  change(chat, fields) {
    Object.assign(chat, fields);
    if (!chat.draft) this.store.changeChat(chat, fields);
    this.changed();
  }

  set(fields) {
    const settings = { ...this.chat.settings, ...fields };
    remember("settings", settings);
    this.change(this.chat, { settings });
  }

  rename(id, title) {
    if (title.trim()) this.change(this.chats.get(id), { title: title.trim() });
  }

  async remove(id) {
    const chat = this.chats.get(id);
    const messages = await this.nodesOf(id);
    this.running(id)?.stop.abort();
    this.chats.delete(id);
    this.trees.delete(id);
    if (this.chat.id === id) this.newChat();
    await this.store.remove([id]);
    const undo = async () => {
      await this.store.putAll([{ chat, messages }]);
      await this.loadChats();
      this.changed();
    };
    this.toast(`Deleted “${chat.title}”.`, { action: { label: "Undo", run: undo } });
  }

  /** All conversations, or one, as an object for a file. */
  async exported(ids) {
    const conversations = [];
    for (const id of ids) {
      const messages = (await this.nodesOf(id)).map(({ tab, beat, ...node }) => node);
      const { draft, ...chat } = this.chats.get(id);
      conversations.push({ chat, messages });
    }
    return { format: "qwen3-conversations", version: 1, exported: new Date().toISOString(), conversations };
  }

  /** Adds the conversations of a file; one that is here already, in another state, comes in as a copy. */
  async imported(data) {
    const entries = tree.checkedImport(data);
    const taken = new Set();
    for (const id of this.chats.keys()) for (const node of await this.nodesOf(id)) taken.add(node.id);
    for (const entry of entries) {
      entry.chat.settings = plainSettings(entry.chat.settings);
      if (!this.chats.has(entry.chat.id) && !entry.messages.some((node) => taken.has(node.id))) continue;
      const names = new Map(entry.messages.map((node) => [node.id, tree.newId()]));
      entry.chat = { ...entry.chat, id: tree.newId(), leaf: names.get(entry.chat.leaf) ?? null };
      entry.messages = entry.messages.map((node) => ({
        ...node,
        id: names.get(node.id),
        parent: names.get(node.parent) ?? null,
        chat: entry.chat.id,
      }));
    }
    if (!(await this.store.putAll(entries))) return 0;
    await this.loadChats();
    this.changed();
    return entries.length;
  }

  // Messages

  node(role, parent, fields) {
    const node = { id: tree.newId(), chat: this.chat.id, parent, role, created: Date.now(), content: "", ...fields };
    this.nodes.set(node.id, node);
    return node;
  }

  answerNode(parent) {
    const model = this.model?.id ?? this.chat.settings.model ?? "";
    return this.node("assistant", parent, {
      reasoning: "",
      calls: [],
      stats: {},
      state: "streaming",
      model,
      error: null,
    });
  }

  /** Begins the record of a conversation with its first message. */
  async keepChat(text) {
    const { chat } = this;
    if (!chat.draft) return;
    delete chat.draft;
    const now = Date.now();
    Object.assign(chat, { title: tree.titleOf(text), created: now, updated: now });
    this.chats.set(chat.id, chat);
    this.trees.set(chat.id, this.nodes);
    history.pushState(null, "", `#${chat.id}`);
    await this.store.changeChat(chat, {});
  }

  /** Sends a user message after `parent` (left out: after the last one). */
  async send(text, parent = this.chat.leaf) {
    if (this.running(this.chat.id)) return;
    if (!this.trees.has(this.chat.id)) this.trees.set(this.chat.id, new Map());
    const asked = this.node("user", parent, { content: text });
    const kept = this.keepChat(text);
    const run = this.answer(this.answerNode(asked.id), [asked]);
    await kept;
    await run;
  }

  edit(node, text) {
    return this.send(text, node.parent);
  }

  /** Another answer to the same message; one that failed with nothing in it is tried again in place. */
  async again(node) {
    if (this.running(this.chat.id)) return;
    const empty = node.state === "error" && !node.content && !node.reasoning && !node.calls.length;
    await this.answer(empty ? node : this.answerNode(node.parent));
  }

  continue(node) {
    return this.running(this.chat.id) ? null : this.answer(node, [], { more: true });
  }

  /** Results of all calls of `node`, in their order; the model goes on from there. */
  async giveResults(node, results) {
    if (this.running(this.chat.id)) return;
    let parent = node.id;
    const made = results.map((content, at) => {
      const answer = this.node("tool", parent, { content, call: node.calls[at].id });
      parent = answer.id;
      return answer;
    });
    await this.answer(this.answerNode(parent), made);
  }

  async answer(node, before = [], { more = false } = {}) {
    const { chat } = this;
    const nodes = this.nodes;
    this.change(chat, { leaf: node.id, updated: Date.now() });
    let body;
    try {
      body = this.body(tree.path(nodes, more ? node.id : node.parent), more);
    } catch (error) {
      Object.assign(node, { state: "error", error: { message: error.message } });
      await this.store.putNodes(chat.id, [...before, node]);
      this.changed();
      return;
    }
    const run = new Run(node, {
      save: (saved) => this.save(saved),
      phase: (changed) => this.phase(changed),
      drawn: () => this.ondrawn?.(),
    });
    run.budget = chat.settings.thinking === "off" ? null : chat.settings.budget;
    this.runs.set(node.id, run);
    Object.assign(node, { tab: this.tab, beat: Date.now() });
    await this.store.putNodes(chat.id, [...before, node]);
    this.changed();
    await run.go(body);
    if (node.error?.status === 401) {
      this.needKey = true;
      this.changed();
    } else if (this.model?.state !== "ready") await this.loadModels();
  }

  /** The body of a request. Throws Error where a text of the settings is no JSON. */
  body(nodes, more) {
    const { settings } = this.chat;
    const body = {
      model: this.model?.id ?? settings.model ?? "default",
      messages: tree.requestMessages(nodes, settings.system),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
    for (const name of ["max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "seed"]) {
      if (settings[name] !== null) body[name] = settings[name];
    }
    const thinking = this.thinking(settings, more ? nodes.at(-1) : null);
    if (thinking) body.thinking = thinking;
    if (settings.schema.trim()) {
      const schema = parsed(settings.schema, "JSON schema");
      body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
    }
    if (settings.tools.trim()) body.tools = parsed(settings.tools, "tools");
    if (more) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    return body;
  }

  /** What is asked of the thinking. continued: a partial answer; a thought in it is over, or has used its tokens. */
  thinking({ thinking, budget }, continued) {
    if (!this.modes.length || continued?.content) return null;
    const mode = this.modes.includes(thinking) ? thinking : this.modes[0];
    const bound = mode !== "off" && budget ? { budget } : {};
    if (!continued) return { mode, ...bound };
    return budget ? { budget: Math.max(1, budget - (continued.stats.thinking ?? 0)) } : null;
  }

  async save(node) {
    if (!this.chats.has(node.chat)) return; // deleted meanwhile
    node.beat = Date.now();
    await this.store.putNodes(node.chat, [node]);
  }

  phase(run) {
    const { node } = run;
    const here = node.chat === this.chat.id;
    if (run.phase === "over") this.runs.delete(node.id);
    const words = { thinking: "Thinking.", answering: "Answering." };
    const ends = { done: "Answer complete.", stopped: "Stopped.", interrupted: "Interrupted.", error: "" };
    if (here) this.said = run.phase === "over" ? ends[node.state] : (words[run.phase] ?? "");
    this.changed();
  }

  stop() {
    this.running(this.chat.id)?.stop.abort();
  }

  async answerNow() {
    const run = this.running(this.chat.id);
    if (!run || run.asked || run.phase !== "thinking" || !run.id) return;
    try {
      await run.answerNow();
    } catch (error) {
      this.toast(error instanceof ApiFailure ? error.message : String(error), { kind: "error" });
    }
  }

  /** Shows the branch that `node` is on. */
  choose(node) {
    this.change(this.chat, { leaf: tree.deepest(this.nodes, node.id) });
  }

  /** The tab goes: what there is of running answers is kept, as interrupted. */
  leave() {
    for (const run of this.runs.values()) {
      run.settle();
      this.store.putNodes(run.node.chat, [{ ...run.node, state: "interrupted", error: null }]);
    }
  }
}

/** This tab's name, the same after a reload: what it was writing then is known to be interrupted. */
function tabId() {
  const again = performance.getEntriesByType("navigation")[0]?.type !== "navigate";
  try {
    const id = (again && sessionStorage.getItem("qwen3.tab")) || tree.newId();
    sessionStorage.setItem("qwen3.tab", id);
    return id;
  } catch {
    return tree.newId();
  }
}

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The ${what} in the settings cannot be read: ${error.message}`);
  }
}

/** Settings of a file: those we know, with values of the right kind. */
function plainSettings(given) {
  const made = { ...DEFAULTS };
  for (const [name, value] of Object.entries(DEFAULTS)) {
    const kind = typeof given[name];
    const wanted = value === null ? (name === "model" ? "string" : "number") : typeof value;
    if (kind === wanted) made[name] = given[name];
  }
  return made;
}
