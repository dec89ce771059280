// The vendors' own clients for Node: openai, @anthropic-ai/sdk, ollama. The Python ones have every check; these the
// ones where the code is another.
"use strict";
const { assert, q, base, key, wrongKey, check, run, busy, freed, raised } = require("./checks.cjs");
const OpenAI = require("openai");
const Anthropic = require("@anthropic-ai/sdk");
const { Ollama } = require("ollama");

const openai = new OpenAI({ baseURL: base + "/v1", apiKey: key, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: base, apiKey: key, maxRetries: 0 });
const headers = { authorization: `Bearer ${key}` };
const ollama = new Ollama({ host: base, headers });
const user = (content) => [{ role: "user", content }];
const chat = { model: q.MODEL, temperature: 0 };
const message = { ...chat, max_tokens: 2000 };
const hello = { ...chat, messages: user("Hello") };

check("openai_plain", async () => {
  const done = await openai.chat.completions.create({ ...chat, messages: user(q.PRODUCT) });
  assert.ok(done.choices[0].message.content.includes(q.PRODUCT_ANSWER));
  assert.ok(done.choices[0].message.reasoning_content.includes(q.PRODUCT_STEP));
});

check("openai_stream", async () => {
  const stream = openai.chat.completions.stream({ ...chat, messages: user(q.PRODUCT) });
  assert.ok((await stream.finalContent()).includes(q.PRODUCT_ANSWER));
});

check("openai_tools", async () => {
  const calls = [];
  const get_weather = (input) => (calls.push(input), q.WEATHER_RESULT);
  const declared = { ...q.WEATHER_FUNCTION, function: get_weather, parse: JSON.parse };
  for (const stream of [false, true]) {
    const fields = { ...chat, messages: user(q.WEATHER), tools: [{ type: "function", function: declared }], stream };
    const runner = openai.chat.completions.runTools(fields);
    assert.ok((await runner.finalContent()).includes(q.WEATHER_ANSWER));
  }
  assert.deepEqual(calls, [{ city: q.CITY }, { city: q.CITY }]);
});

check("openai_errors", async () => {
  const create = (fields, client = openai) => () => client.chat.completions.create({ ...hello, ...fields });
  assert.equal((await raised(OpenAI.BadRequestError, create({ top_p: 2 }))).param, "top_p");
  assert.equal((await raised(OpenAI.NotFoundError, create({ model: "none-such" }))).code, "model_not_found");
  const other = new OpenAI({ baseURL: base + "/v1", apiKey: wrongKey, maxRetries: 0 });
  await raised(OpenAI.AuthenticationError, create({}, other));
});

check("openai_retry", async () => {
  const end = await busy();
  try {
    await raised(OpenAI.RateLimitError, () => openai.chat.completions.create(hello));
    setTimeout(end, 300);
    assert.ok((await openai.chat.completions.create(hello, { maxRetries: 8 })).choices[0].message.content);
  } finally {
    end();
  }
});

check("openai_disconnect", async () => {
  for (let i = 0; i < q.PER_KEY; i++) {
    const fields = { ignore_eos: true, enable_thinking: false, max_tokens: 4000, stream: true };
    const stream = await openai.chat.completions.create({ ...chat, messages: user(q.LONG), ...fields });
    for await (const chunk of stream) if (chunk) break;
  }
  return freed();
});

check("openai_embeddings", async () => {
  const done = await openai.embeddings.create({ model: q.VECTORS, input: ["red", "blue"] });
  for (const { embedding } of done.data) assert.ok(Math.abs(embedding.reduce((s, x) => s + x * x, 0) - 1) < 1e-3);
});

check("openai_responses", async () => {
  const done = await openai.responses.create({ ...chat, input: q.PRODUCT });
  assert.ok(done.output_text.includes(q.PRODUCT_ANSWER));
});

check("anthropic_plain", async () => {
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const done = await anthropic.messages.create({ ...message, messages: user(q.PRODUCT), thinking });
  assert.deepEqual(done.content.map((block) => block.type), ["thinking", "text"]);
  assert.ok(done.content[1].text.includes(q.PRODUCT_ANSWER));
});

check("anthropic_stream", async () => {
  const tools = [{ name: "get_weather", input_schema: q.WEATHER_PARAMETERS }];
  const stream = anthropic.messages.stream({ ...message, messages: user(q.WEATHER), tools });
  const call = (await stream.finalMessage()).content.find((block) => block.type === "tool_use");
  assert.deepEqual(call.input, { city: q.CITY });
});

check("anthropic_errors", async () => {
  const create = (fields, client = anthropic) => () =>
    client.messages.create({ ...message, messages: user("Hello"), ...fields });
  assert.match((await raised(Anthropic.BadRequestError, create({ top_p: 2 }))).message, /top_p/);
  await raised(Anthropic.NotFoundError, create({ model: "none-such" }));
  const other = new Anthropic({ baseURL: base, apiKey: wrongKey, maxRetries: 0 });
  await raised(Anthropic.AuthenticationError, create({}, other));
});

check("ollama_plain", async () => {
  const done = await ollama.chat({ model: q.MODEL, messages: user(q.PRODUCT), options: { temperature: 0 } });
  assert.ok(done.message.content.includes(q.PRODUCT_ANSWER));
  assert.ok(done.message.thinking.includes(q.PRODUCT_STEP));
});

check("ollama_stream", async () => {
  const fields = { model: q.MODEL, messages: user("Hello"), think: false, stream: true };
  let text = "";
  for await (const part of await ollama.chat({ ...fields, options: { temperature: 0 } })) text += part.message.content;
  assert.match(text, /Hello/);
});

check("ollama_errors", async () => {
  const error = await raised(Error, () => ollama.chat({ model: "none-such", messages: user("Hello") }));
  assert.equal(error.status_code, 404);
  assert.ok(error.message.includes(q.MODEL));
});

check("ollama_disconnect", async () => {
  for (let i = 0; i < q.PER_KEY; i++) {
    const other = new Ollama({ host: base, headers });
    const stream = await other.chat({ model: q.MODEL, messages: user(q.LONG), think: false, stream: true });
    for await (const part of stream) if (part) break;
    other.abort();
  }
  return freed();
});

run();
