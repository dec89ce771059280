// A conversation is a tree of messages with parent ids. Edits and new answers are siblings; nothing is overwritten.

/** 128 random bits; crypto.randomUUID exists on secure pages only. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

/** The messages from the first one down to `leaf`. nodes: Map id -> node. */
export function path(nodes, leaf) {
  const found = [];
  const seen = new Set();
  for (let node = nodes.get(leaf); node && !seen.has(node.id); node = nodes.get(node.parent)) {
    seen.add(node.id);
    found.push(node);
  }
  return found.reverse();
}

/** The messages with the same parent, oldest first, `node` among them. */
export function siblings(nodes, node) {
  return [...nodes.values()].filter((other) => other.parent === node.parent).sort(byAge);
}

/** The leaf one sees after choosing `id`: always the newest child. */
export function deepest(nodes, id) {
  const children = new Map();
  for (const node of nodes.values()) {
    if (!children.has(node.parent)) children.set(node.parent, []);
    children.get(node.parent).push(node);
  }
  const seen = new Set();
  while (children.has(id) && !seen.has(id)) {
    seen.add(id);
    id = children.get(id).sort(byAge).at(-1).id;
  }
  return id;
}

function byAge(a, b) {
  return a.created - b.created || (a.id < b.id ? -1 : 1);
}

/** The newest message of all, for a conversation whose leaf is gone. */
export function newest(nodes) {
  return [...nodes.values()].sort(byAge).at(-1)?.id ?? null;
}

/** A first message as a title. */
export function titleOf(text) {
  const line = text
    .trim()
    .split("\n", 1)[0]
    .replace(/^[#>*\-\s`]+(?=\S)/, "")
    .trim();
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line || "New conversation";
}

/** The messages of a request. Text goes out as it came in, byte for byte, so that the server's prefix cache matches.
 *
 * Earlier turns' reasoning stays here: the template drops it. It is sent within a tool loop, that is after the last
 * user message, where the model needs it.
 */
export function requestMessages(nodes, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  const lastUser = nodes.findLastIndex((node) => node.role === "user");
  nodes.forEach((node, at) => {
    if (node.role === "user") messages.push({ role: "user", content: node.content });
    else if (node.role === "tool") messages.push({ role: "tool", tool_call_id: node.call, content: node.content });
    else {
      const message = { role: "assistant", content: node.content };
      if (at > lastUser && node.reasoning) message.reasoning_content = node.reasoning;
      if (node.calls.length) {
        message.tool_calls = node.calls.map(({ id, name, args }) => ({
          id,
          type: "function",
          function: { name, arguments: args },
        }));
        if (!node.content) message.content = null;
      }
      messages.push(message);
    }
  });
  return messages;
}

const TEXTS = { user: ["content"], assistant: ["content", "reasoning"], tool: ["content", "call"] };

/** What an exported file may hold, checked field by field: the file is somebody's text, not ours. Throws Error. */
export function checkedImport(data) {
  if (data?.format !== "qwen3-conversations" || data.version !== 1 || !Array.isArray(data.conversations)) {
    throw new Error("this is no file of exported conversations");
  }
  return data.conversations.map((entry, at) => {
    const { chat, messages } = entry ?? {};
    const where = `conversation ${at + 1}`;
    if (typeof chat?.id !== "string" || typeof chat.title !== "string" || !Array.isArray(messages)) {
      throw new Error(`${where}: id, title or messages are missing`);
    }
    return {
      chat: {
        id: chat.id,
        title: chat.title,
        leaf: typeof chat.leaf === "string" ? chat.leaf : null,
        created: number(chat.created),
        updated: number(chat.updated),
        settings: chat.settings && typeof chat.settings === "object" ? chat.settings : {},
      },
      messages: messages.map((node, i) => checkedNode(node, chat.id, `${where}, message ${i + 1}`)),
    };
  });
}

function checkedNode(node, chat, where) {
  const texts = TEXTS[node?.role];
  if (!texts || typeof node.id !== "string") throw new Error(`${where}: id or role are missing`);
  const made = { id: node.id, chat, role: node.role, created: number(node.created) };
  made.parent = typeof node.parent === "string" ? node.parent : null;
  for (const name of texts) {
    if (typeof (node[name] ?? "") !== "string") throw new Error(`${where}: ${name} is no text`);
    made[name] = node[name] ?? "";
  }
  if (node.role === "assistant") {
    made.calls = (Array.isArray(node.calls) ? node.calls : []).map((call) => ({
      id: String(call?.id ?? ""),
      name: String(call?.name ?? ""),
      args: String(call?.args ?? ""),
    }));
    made.state = ["done", "stopped", "interrupted", "error"].includes(node.state) ? node.state : "done";
    made.model = typeof node.model === "string" ? node.model : "";
    made.error = typeof node.error?.message === "string" ? { message: node.error.message } : null;
    made.stats = plainStats(node.stats);
  }
  return made;
}

/** Numbers, texts and flat lists of texts; the rest of an imported `stats` is left out. */
function plainStats(stats) {
  const made = {};
  for (const [name, value] of Object.entries(stats && typeof stats === "object" ? stats : {})) {
    if (["number", "string"].includes(typeof value)) made[name] = value;
    else if (Array.isArray(value)) made[name] = value.filter((item) => typeof item === "string");
  }
  return made;
}

function number(value) {
  return Number.isFinite(value) ? value : 0;
}
