// Where one writes, and how the model shall think about it.

import { count, html, Icon, plural, useLayoutEffect, useRef, useState } from "./ui.js";

const WAYS = {
  off: ["Off", "Answer at once"],
  auto: ["Auto", "Think only where an answer is in doubt"],
  on: ["On", "Think first"],
};
const STEPS = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072];

/** The budgets one can choose for a model with this context; null, the last one, is no bound. */
export function budgets(context) {
  return [...STEPS.filter((step) => step < (context ?? 40960)), null];
}

function Thinking({ app }) {
  const { settings } = app.chat;
  const { modes } = app;
  if (!modes.length) return null;
  const mode = modes.includes(settings.thinking) ? settings.thinking : modes[0];
  const steps = budgets(app.model?.max_model_len);
  const found = steps.findIndex((step) => step === null || step >= (settings.budget ?? Infinity));
  const at = settings.budget ? found : steps.length - 1;
  const said = steps[at] === null ? "no limit" : plural(steps[at], "token");
  return html`<div class="think">
    <fieldset class="segments"><legend>Thinking</legend>
      ${["off", "auto", "on"]
        .filter((way) => modes.includes(way))
        .map(
          (way) => html`<label key=${way}
        title=${WAYS[way][1]}>
        <input type="radio" name="thinking" value=${way} checked=${mode === way}
          onChange=${() => app.set({ thinking: way })} />
        <span>${WAYS[way][0]}</span></label>`,
        )}
    </fieldset>
    ${
      mode !== "off" &&
      html`<label class="budget"><span class="faint">up to</span>
      <input type="range" min="0" max=${steps.length - 1} step="1" value=${at} aria-label="Thinking budget"
        aria-valuetext=${said}
        onInput=${(event) => app.set({ budget: steps[Number(event.target.value)] })} />
      <span class="figures">${steps[at] === null ? "no limit" : count(steps[at])}</span></label>`
    }
  </div>`;
}

/** What is set apart from the usual, so that nobody wonders about answers in JSON. */
function Chips({ app, openSettings }) {
  const { settings } = app.chat;
  let tools = 0;
  try {
    tools = settings.tools.trim() ? JSON.parse(settings.tools).length : 0;
  } catch {
    tools = "?";
  }
  const chips = [
    settings.system.trim() && ["System prompt", { system: "" }],
    settings.schema.trim() && ["JSON schema", { schema: "" }],
    tools && [tools === 1 ? "1 tool" : `${tools} tools`, { tools: "" }],
  ].filter(Boolean);
  return chips.map(
    ([text, off]) => html`<span class="chip" key=${text}>
    <button type="button" onClick=${openSettings}>${text}</button>
    <button type="button" aria-label=${`Remove: ${text}`} title="Remove" onClick=${() => app.set(off)}><${Icon}
      name="close" /></button></span>`,
  );
}

export function Composer({ app, openSettings, editLast, area }) {
  const draftKey = `qwen3.draft.${app.chat.draft ? "new" : app.chat.id}`;
  const [text, setText] = useState("");
  const timer = useRef(null);
  useLayoutEffect(() => setText(kept(draftKey)), [draftKey]);
  useLayoutEffect(() => {
    const el = area.current;
    el.style.height = "auto";
    el.style.height = `${Math.min(el.scrollHeight, innerHeight * 0.4)}px`;
  }, [text]);
  const run = app.running(app.chat.id);
  const set = (value) => {
    setText(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => keep(draftKey, value), 300);
  };
  const send = (event) => {
    event?.preventDefault();
    if (!text.trim() || run) return;
    clearTimeout(timer.current);
    keep(draftKey, "");
    setText("");
    app.send(text);
  };
  const key = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    else if (event.key === "ArrowUp" && !text && editLast) {
      event.preventDefault();
      editLast();
    }
  };
  return html`<form class="composer" onSubmit=${send}>
    <textarea id="message" ref=${area} rows="1" value=${text} placeholder="Ask something" aria-label="Message"
      autocomplete="off"
      onInput=${(event) => set(event.target.value)} onKeyDown=${key}></textarea>
    <div class="composer-row">
      <${Thinking} app=${app} />
      <${Chips} app=${app} openSettings=${openSettings} />
      <span class="grow"></span>
      ${
        run
          ? html`<button type="button" class="send" aria-label="Stop" title="Stop (Esc)" onClick=${() => app.stop()}>
          <${Icon} name="stop" /></button>`
          : html`<button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled=${!text.trim()}>
          <${Icon} name="send" /></button>`
      }
    </div>
  </form>`;
}

function kept(key) {
  try {
    return sessionStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

function keep(key, text) {
  try {
    if (text) sessionStorage.setItem(key, text);
    else sessionStorage.removeItem(key);
  } catch {
    // A draft is not worth a message.
  }
}
