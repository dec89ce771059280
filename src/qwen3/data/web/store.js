// Conversations in IndexedDB: one record per conversation, one per message. Records are written one by one, and a
// conversation's record is changed inside one transaction, so two tabs do not overwrite each other's work.

const NAME = "qwen3";

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error("the browser gave up"));
  });
}

function open() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("chats", { keyPath: "id" });
    request.result.createObjectStore("nodes", { keyPath: "id" }).createIndex("chat", "chat");
  };
  return done(request);
}

export class Store {
  /** onchange(chat id or null): another tab wrote. onerror(text): something could not be kept. */
  static async open({ onchange, onerror }) {
    const store = new Store();
    store.onerror = onerror;
    try {
      store.db = await open();
      store.db.onversionchange = () => store.db.close();
    } catch (error) {
      store.db = null;
      onerror(
        `This browser keeps no data for the page (${error?.message ?? error}): conversations last until you close it.`,
      );
    }
    if (globalThis.BroadcastChannel) {
      store.channel = new BroadcastChannel(NAME);
      store.channel.onmessage = (event) => onchange(event.data);
    }
    return store;
  }

  tell(id) {
    this.channel?.postMessage(id);
  }

  async chats() {
    return this.db ? done(this.db.transaction("chats").objectStore("chats").getAll()) : [];
  }

  async nodes(chat) {
    return this.db ? done(this.db.transaction("nodes").objectStore("nodes").index("chat").getAll(chat)) : [];
  }

  /** Whether everything that was written is there. */
  get sound() {
    return Boolean(this.db) && !this.failed;
  }

  /** Writes, tells the other tabs, and says what went wrong; false if it did. */
  async write(id, work) {
    if (!this.db) return false;
    try {
      const transaction = this.db.transaction(["chats", "nodes"], "readwrite");
      work(transaction.objectStore("chats"), transaction.objectStore("nodes"));
      await finished(transaction);
    } catch (error) {
      this.failed = true;
      const full = error?.name === "QuotaExceededError";
      this.onerror(
        full
          ? "The browser's storage is full, so this is not kept. Export your conversations, then delete some."
          : `This could not be kept: ${error?.message ?? error}`,
      );
      return false;
    }
    this.tell(id);
    return true;
  }

  /** Changes a conversation's record as it is stored now, or puts `chat` if there is none. */
  changeChat(chat, fields) {
    return this.write(chat.id, (chats) => {
      const request = chats.get(chat.id);
      request.onsuccess = () => chats.put({ ...(request.result ?? chat), ...fields });
    });
  }

  putNodes(chat, nodes) {
    return this.write(chat, (_, store) => nodes.forEach((node) => store.put(node)));
  }

  /** Whole conversations: an import, or a deletion undone. */
  putAll(entries) {
    return this.write(null, (chats, store) => {
      for (const { chat, messages } of entries) {
        chats.put(chat);
        messages.forEach((node) => store.put(node));
      }
    });
  }

  remove(ids) {
    return this.write(null, (chats, store) => {
      for (const id of ids) {
        chats.delete(id);
        const request = store.index("chat").openKeyCursor(IDBKeyRange.only(id));
        request.onsuccess = () => {
          const cursor = request.result;
          if (!cursor) return;
          store.delete(cursor.primaryKey);
          cursor.continue();
        };
      }
    });
  }
}

/** A small value of this browser (settings, theme); a browser that refuses keeps it until the page closes. */
const memory = new Map();

export function remember(name, value) {
  memory.set(name, value);
  try {
    localStorage.setItem(`qwen3.${name}`, JSON.stringify(value));
  } catch {
    // Kept in memory all the same.
  }
}

export function recall(name, otherwise) {
  if (memory.has(name)) return memory.get(name);
  try {
    return JSON.parse(localStorage.getItem(`qwen3.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}
