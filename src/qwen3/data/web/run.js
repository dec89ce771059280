// One answer as it comes: reads the stream into its message, tells what is drawn at most once per frame, saves once a
// second. Nothing here touches the page, so a run goes on while another conversation is looked at.

import { ApiFailure, postJson, streamChat } from "./api.js";

const SAVE_MS = 1000;

export class Run {
  /** node: the assistant message to fill. hooks: save(node), phase(run) when something other than text changed. */
  constructor(node, hooks) {
    this.node = node;
    this.hooks = hooks;
    this.id = null; // the server's, for "answer now"
    this.phase = "waiting"; // waiting, thinking, answering, over
    this.asked = false; // for the answer
    this.budget = null;
    this.base = null; // tokens before the first one of the thinking
    this.thinkingTokens = 0;
    this.answerTokens = 0;
    this.started = performance.now();
    this.thinkingSince = null;
    this.before = { ...node.stats }; // of the part that is being continued
    this.stop = new AbortController();
    this.listeners = new Set();
  }

  /** Calls back after new text, once per frame. Returns the function that ends it. */
  listen(fn) {
    this.listeners.add(fn);
    return () => this.listeners.delete(fn);
  }

  get thinkingSeconds() {
    const before = this.before.think_seconds ?? 0;
    if (this.thinkingSince === null) return before;
    return before + ((this.thinkingUntil ?? performance.now()) - this.thinkingSince) / 1000;
  }

  async go(body) {
    const { node } = this;
    Object.assign(node, { state: "streaming", error: null });
    node.stats = { ...this.before };
    let saved = performance.now();
    try {
      for await (const chunks of streamChat(body, this.stop.signal)) {
        chunks.forEach((chunk) => this.take(chunk));
        if (chunks.length) this.draw();
        if (performance.now() - saved > SAVE_MS) {
          saved = performance.now();
          this.hooks.save(node);
        }
      }
      node.state = "done";
    } catch (error) {
      if (error.name === "AbortError") node.state = "stopped";
      else {
        const got = node.content || node.reasoning;
        node.state = error.status === 0 && got ? "interrupted" : "error";
        node.error = {
          message: error.message,
          status: error.status ?? null,
          param: error.param ?? null,
          retryAfter: error.retryAfter ?? null,
        };
        if (!(error instanceof ApiFailure)) console.error(error);
      }
    }
    this.thinkingUntil ??= performance.now();
    this.settle();
    this.phase = "over";
    this.draw();
    this.hooks.save(node);
    this.hooks.phase(this);
    return node.state;
  }

  take(chunk) {
    const { node } = this;
    this.id ??= chunk.id ?? null;
    if (chunk.usage) this.counts = chunk.usage;
    for (const name of ["thinking", "timings", "warnings"]) if (chunk[name]) this[name] = chunk[name];
    const choice = chunk.choices?.[0];
    if (!choice) return;
    // The last chunk says how it ended; others that claim to be it are not believed until the stream has ended.
    if (choice.finish_reason) node.stats.finish = choice.finish_reason;
    const delta = choice.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought) {
      this.firstToken();
      this.thinkingSince ??= performance.now();
      node.reasoning += thought;
      this.countThought();
      this.enter("thinking");
    }
    if (delta.content) {
      this.answer();
      node.content += delta.content;
      this.answerTokens += 1;
    }
    for (const piece of delta.tool_calls ?? []) {
      this.answer();
      const call = (node.calls[piece.index] ??= { id: "", name: "", args: "" });
      call.id = piece.id ?? call.id;
      call.name = piece.function?.name ?? call.name;
      call.args += piece.function?.arguments ?? "";
    }
  }

  firstToken() {
    this.node.stats.first_token ??= this.since();
  }

  answer() {
    this.firstToken();
    this.node.stats.first_answer ??= this.since();
    if (this.thinkingSince !== null) this.thinkingUntil ??= performance.now();
    this.enter("answering");
  }

  since() {
    return (performance.now() - this.started) / 1000;
  }

  /** A chunk may hold several tokens: the running count tells how many, of a server that sends it. What is forced at
   * the budget's end does not count as thinking. */
  countThought() {
    const made = this.counts?.completion_tokens;
    this.base ??= made === undefined ? 0 : made - 1;
    const tokens = made === undefined ? this.thinkingTokens + 1 : made - this.base;
    this.thinkingTokens = this.budget ? Math.min(tokens, this.budget) : tokens;
  }

  enter(phase) {
    if (this.phase === phase || (phase === "thinking" && this.phase === "answering")) return;
    this.phase = phase;
    this.hooks.phase(this);
  }

  /** What the message keeps of the run: numbers and texts only. */
  settle() {
    const { node, before, counts, thinking, timings } = this;
    const total = this.since();
    const made = counts?.completion_tokens ?? this.thinkingTokens + this.answerTokens;
    const first = timings?.first_token ?? node.stats.first_token ?? total;
    const whole = timings?.total ?? total;
    Object.assign(node.stats, {
      first_token: before.first_token ?? timings?.first_token ?? node.stats.first_token,
      first_answer: before.first_answer ?? timings?.first_answer ?? node.stats.first_answer,
      seconds: (before.seconds ?? 0) + total,
      think_seconds: this.thinkingSeconds,
      thinking: (before.thinking ?? 0) + (thinking?.used ?? this.thinkingTokens),
      completion: (before.completion ?? 0) + made,
      prompt: counts?.prompt_tokens,
      cached: counts?.prompt_tokens_details?.cached_tokens,
      speed:
        timings?.decode_tokens_per_second ?? (made > 1 && whole > first ? (made - 1) / (whole - first) : undefined),
      prompt_speed: timings?.prompt_tokens_per_second,
      budget: before.budget ?? thinking?.budget ?? this.budget,
      ended_by: thinking?.ended_by ?? before.ended_by,
      forced: (before.forced ?? 0) + (thinking?.forced_tokens ?? 0),
      warnings: this.warnings ?? [],
    });
    for (const [name, value] of Object.entries(node.stats))
      if (value === undefined || value === null) delete node.stats[name];
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.listeners.forEach((fn) => fn());
      this.hooks.drawn?.();
    });
  }

  /** Ends the thinking; the answer follows. Throws ApiFailure. */
  async answerNow() {
    this.asked = true;
    this.hooks.phase(this);
    try {
      await postJson("/v1/chat/completions/control", { id: this.id, action: "answer_now" });
    } catch (error) {
      this.asked = false;
      this.hooks.phase(this);
      throw error;
    }
  }
}
