// checks.py for Node: the same names, the same lines on stdout. Questions come from it, in QWEN3_QUESTIONS.
"use strict";
const assert = require("node:assert/strict");
const http = require("node:http");

const q = JSON.parse(process.env.QWEN3_QUESTIONS);
const [base, key] = process.argv.slice(2);
const wrongKey = key.slice(0, -1) + (key.endsWith("A") ? "B" : "A");
const checks = [];

const check = (name, run) => checks.push([name, run]);
const notOffered = (name, why) => checks.push([name, why]);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function run() {
  for (const [name, work] of checks) {
    const line = { check: name, ok: true, offered: typeof work !== "string", detail: "" };
    const start = performance.now();
    try {
      if (typeof work !== "string") await freed(10);  // what the check before left is seen a moment later
      line.detail = typeof work === "string" ? work : String((await work()) ?? "");
    } catch (error) {
      line.ok = false;
      line.detail = String(error?.stack ?? error).slice(0, 3000);
    }
    console.log(JSON.stringify({ ...line, seconds: (performance.now() - start) / 1000 }));
  }
  process.exit(0);
}

// A chat completion without any client: the response, its headers read.
function post(body) {
  return new Promise((done, failed) => {
    const headers = { "content-type": "application/json", authorization: `Bearer ${key}` };
    const request = http.request(base + "/v1/chat/completions", { method: "POST", headers }, done);
    request.on("error", failed);
    request.end(JSON.stringify({ model: q.MODEL, ...body }));
  });
}

// As many streams as the key may have; the function returned ends them.
async function busy() {
  const held = [];
  while (held.length < q.PER_KEY) {
    const messages = [{ role: "user", content: q.LONG }];
    const more = { stream: true, ignore_eos: true, max_tokens: 4000, enable_thinking: false, temperature: 0 };
    const response = await post({ messages, ...more });
    if (response.statusCode === 429) {  // the last answer is not quite put away yet
      response.resume();
      continue;
    }
    assert.equal(response.statusCode, 200);
    response.on("error", () => {});
    response.resume();
    held.push(response);
  }
  return () => held.splice(0).forEach((response) => response.destroy());
}

async function freed(within = 3) {
  const start = performance.now();
  for (;;) {
    const response = await post({ messages: [{ role: "user", content: "Hello" }], max_tokens: 1 });
    response.resume();
    const waited = (performance.now() - start) / 1000;
    if (response.statusCode === 200) return `free after ${waited.toFixed(3)} s`;
    assert.equal(response.statusCode, 429);
    assert.ok(waited < within, `still busy after ${waited.toFixed(2)} s`);
    await sleep(20);
  }
}

// The error of that class which the promise must end with.
async function raised(kind, work) {
  let got;
  try {
    got = await work();
  } catch (error) {
    if (kind.isInstance ? kind.isInstance(error) : error instanceof kind) return error;
    throw error;
  }
  throw new Error(`${kind.name} was expected, not ${JSON.stringify(got)}`);
}

module.exports = { assert, q, base, key, wrongKey, check, notOffered, run, busy, freed, raised, sleep };
