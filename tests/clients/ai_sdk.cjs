// Vercel's AI SDK with its provider for OpenAI-shaped servers.
"use strict";
const { assert, q, base, key, wrongKey, check, run, busy, freed, raised } = require("./checks.cjs");
const { APICallError, RetryError, generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } =
  require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");

const provider = (apiKey = key) =>
  createOpenAICompatible({
    name: "ours", baseURL: base + "/v1", apiKey, includeUsage: true, supportsStructuredOutputs: true,
  });
const model = provider()(q.MODEL);
const plainly = { model, temperature: 0, maxRetries: 0 };
const given = (fields) => ({ providerOptions: { ours: fields } });
const weather = () => {
  const calls = [];
  const get_weather = tool({
    description: q.WEATHER_FUNCTION.description,
    inputSchema: jsonSchema(q.WEATHER_PARAMETERS),
    execute: async (input) => (calls.push(input), JSON.parse(q.WEATHER_RESULT)),
  });
  return { calls, tools: { get_weather } };
};

check("plain", async () => {
  const done = await generateText({ ...plainly, prompt: q.PRODUCT });
  assert.match(done.text, new RegExp(q.PRODUCT_ANSWER));
  assert.equal(done.finishReason, "stop");
  assert.ok(done.usage.totalTokens > q.BUDGET);
});

check("stream", async () => {
  const result = streamText({ ...plainly, prompt: q.PRODUCT });
  const kinds = [];
  let text = "", thought = "";
  for await (const part of result.fullStream) {
    kinds.push(part.type);
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
    if (part.type === "reasoning-delta") thought += part.text;
  }
  assert.match(text, new RegExp(q.PRODUCT_ANSWER));
  assert.equal(thought.split(q.PRODUCT_STEP).length, 3, thought); // it names the step twice, and came once
  assert.ok(kinds.indexOf("reasoning-end") < kinds.indexOf("text-start"));
  assert.equal(kinds.at(-1), "finish");
  assert.ok((await result.usage).outputTokenDetails.reasoningTokens > q.BUDGET);
});

check("tools", async () => {
  const { calls, tools } = weather();
  const done = await generateText({ ...plainly, prompt: q.WEATHER, tools, stopWhen: stepCountIs(3) });
  assert.deepEqual(calls, [{ city: q.CITY }]);
  assert.equal(done.steps.length, 2);
  assert.ok(done.text.includes(q.WEATHER_ANSWER), done.text);
  const forced = await generateText({ ...plainly, prompt: q.WEATHER, tools, toolChoice: "required" });
  assert.deepEqual(forced.toolCalls[0].input, { city: q.CITY });
});

check("tools_stream", async () => {
  const { calls, tools } = weather();
  const result = streamText({ ...plainly, prompt: q.WEATHER, tools, stopWhen: stepCountIs(3) });
  let pieces = 0;
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    pieces += part.type === "tool-input-delta";
  }
  assert.deepEqual(calls, [{ city: q.CITY }]);
  assert.ok(pieces, "no event for the arguments");
  assert.ok((await result.text).includes(q.WEATHER_ANSWER));
});

check("schema", async () => {
  for (const enable_thinking of [true, false]) {
    const schema = jsonSchema(q.ANSWER_SCHEMA);
    const done = await generateObject({ ...plainly, prompt: q.PRODUCT, schema, ...given({ enable_thinking }) });
    assert.ok(Number.isInteger(done.object.answer));
  }
});

check("thinking_on", async () => {
  const done = await generateText({ ...plainly, prompt: q.PRODUCT, ...given({ enable_thinking: true }) });
  assert.ok(done.reasoningText.includes(q.PRODUCT_STEP));
  assert.ok(done.usage.outputTokenDetails.reasoningTokens > q.BUDGET);
});

check("thinking_off", async () => {
  for (const fields of [{ enable_thinking: false }, { reasoningEffort: "none" }]) {
    const done = await generateText({ ...plainly, prompt: "Hello", ...given(fields) });
    assert.ok(!done.reasoningText, done.reasoningText);
    assert.match(done.text, /Hello/);
  }
});

check("thinking_budget", async () => {
  const done = await generateText({ ...plainly, prompt: q.PRODUCT, ...given({ thinking_budget: q.BUDGET }) });
  const used = done.usage.outputTokenDetails.reasoningTokens;
  assert.ok(0 < used && used <= q.BUDGET, used);
  assert.ok(done.reasoningText);
  assert.ok(done.text);
});

check("history", async () => {
  const messages = [{ role: "user", content: q.INTRODUCTION }];
  const first = await generateText({ ...plainly, messages });
  assert.ok(first.reasoningText);
  messages.push(...first.response.messages, { role: "user", content: q.QUESTION });
  assert.match((await generateText({ ...plainly, messages })).text, new RegExp(q.NAME));
});

check("bad_field", async () => {
  const error = await raised(APICallError, () => generateText({ ...plainly, topP: 2, prompt: "Hello" }));
  assert.equal(error.statusCode, 400);
  assert.equal(error.isRetryable, false);
  assert.match(error.message, /top_p/);
  assert.equal(error.data.error.param, "top_p");
});

check("unknown_model", async () => {
  const other = provider()("none-such");
  const error = await raised(APICallError, () => generateText({ ...plainly, model: other, prompt: "Hello" }));
  assert.equal(error.statusCode, 404);
});

check("wrong_key", async () => {
  const other = provider(wrongKey)(q.MODEL);
  const error = await raised(APICallError, () => generateText({ ...plainly, model: other, prompt: "Hello" }));
  assert.equal(error.statusCode, 401);
});

check("retry", async () => {
  const end = await busy();
  try {
    const error = await raised(APICallError, () => generateText({ ...plainly, prompt: "Hello" }));
    assert.equal(error.statusCode, 429);
    assert.equal(error.isRetryable, true);
    await raised(RetryError, () => generateText({ ...plainly, prompt: "Hello", maxRetries: 1 }));
    setTimeout(end, 300);
    assert.ok((await generateText({ ...plainly, prompt: "Hello", maxRetries: 5 })).text);
  } finally {
    end();
  }
});

check("disconnect", async () => {
  for (let i = 0; i < q.PER_KEY; i++) {
    const abort = new AbortController();
    const fields = given({ ignore_eos: true, enable_thinking: false });
    const result = streamText({
      ...plainly, prompt: q.LONG, maxOutputTokens: 4000, abortSignal: abort.signal, onError: () => {}, ...fields,
    });
    for await (const part of result.textStream) if (part) break;
    abort.abort();
  }
  return freed();
});

run();
