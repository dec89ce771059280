// The server, over HTTP: JSON, and chat completions as server-sent events.

/** What went wrong, in the server's own words. status 0: it was not reached. */
export class ApiFailure extends Error {
  constructor(status, message, { param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

const KEY = "qwen3.key";
let key = null;

/** The API key, kept for this tab only. */
export function apiKey() {
  try {
    key ??= sessionStorage.getItem(KEY);
  } catch {
    // A browser without storage: it is asked for again after a reload.
  }
  return key;
}

export function setApiKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // See above.
  }
}

async function send(path, { body, signal } = {}) {
  const headers = apiKey() ? { authorization: `Bearer ${apiKey()}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      signal,
      cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  throw await failure(response);
}

async function failure(response) {
  const text = await response.text().catch(() => "");
  let told = null;
  try {
    told = JSON.parse(text).error;
  } catch {
    // A proxy's page, perhaps: its text is shown below.
  }
  const message =
    told?.message ?? (typeof told === "string" ? told : `${response.status} ${text.slice(0, 200)}`.trim());
  const wait = Number(response.headers.get("retry-after"));
  return new ApiFailure(response.status, message, {
    param: told?.param ?? null,
    code: told?.code ?? null,
    retryAfter: wait > 0 ? wait : null,
  });
}

export async function getJson(path, options) {
  return (await send(path, options)).json();
}

export async function postJson(path, body) {
  return (await send(path, { body })).json();
}

/** The chunks of one streamed chat completion, many at a time where many came. Throws ApiFailure for an error inside
 * the stream, and for one that ends without its end mark. */
export async function* streamChat(body, signal) {
  const response = await send("/v1/chat/completions", { body, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      const chunks = [];
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // comments keep the connection alive
        const data = line.slice(5).trim();
        if (data === "[DONE]") {
          yield chunks;
          return;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) {
          yield chunks;
          throw new ApiFailure(chunk.error.status ?? 500, chunk.error.message ?? "the server failed", chunk.error);
        }
        chunks.push(chunk);
      }
      yield chunks;
    }
  } catch (error) {
    if (error instanceof ApiFailure || error.name === "AbortError") throw error;
    throw new ApiFailure(0, "The connection broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiFailure(0, "The connection ended before the answer was complete.");
}
