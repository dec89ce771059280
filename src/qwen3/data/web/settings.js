// The dialogs: settings of a conversation, models, the API key, shortcuts.

import { KEYS } from "./shortcuts.js";
import { recall, remember } from "./store.js";
import { EXAMPLE } from "./tools.js";
import { count, html, IconButton, short, useLayoutEffect, useRef, useState } from "./ui.js";

/** A dialog of the browser's own: it keeps the focus inside, and Esc closes it. */
export function Dialog({ title, close, children, wide }) {
  const dialog = useRef(null);
  useLayoutEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    dialog.current.querySelector("h2").focus();
    return () => before?.focus?.();
  }, []);
  const outside = (event) => event.target === dialog.current && close();
  return html`<dialog ref=${dialog} class=${wide ? "wide" : ""} aria-labelledby="dialog-title" onClose=${close}
    onClick=${outside}>
    <div class="dialog-box">
      <header><h2 id="dialog-title" tabindex="-1">${title}</h2><${IconButton} icon="close" label="Close"
        onClick=${close} /></header>
      <div class="dialog-body">${children}</div>
    </div>
  </dialog>`;
}

const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "Higher is more varied; 0 always takes the likeliest token"],
  ["top_p", "Top-p", 0, 1, 0.01, "Only the likeliest tokens that make up this much"],
  ["top_k", "Top-k", 0, 1000, 1, "Only so many of the likeliest tokens"],
  ["min_p", "Min-p", 0, 1, 0.01, "Only tokens at least so likely, relative to the likeliest"],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "Above 0: less repetition"],
  ["max_tokens", "Most tokens", 1, 1_000_000, 1, "Of an answer, thinking included"],
  ["seed", "Seed", 0, 2 ** 31 - 1, 1, "The same seed gives the same answer"],
];

const EMPTY = { min_p: "0", presence_penalty: "0", max_tokens: "to the context’s end", seed: "random" };

function NumberField({ app, name, label, min, max, step, about, usual }) {
  const value = app.chat.settings[name];
  const [wrong, setWrong] = useState("");
  const take = (event) => {
    const { value: text, validity } = event.target;
    if (
      validity.badInput ||
      validity.rangeOverflow ||
      validity.rangeUnderflow ||
      (step === 1 && text && !Number.isInteger(Number(text)))
    ) {
      setWrong(`${min} to ${count(max)}${step === 1 ? ", a whole number" : ""}`);
      return;
    }
    setWrong("");
    app.set({ [name]: text === "" ? null : Number(text) });
  };
  return html`<label class="field" title=${about}><span>${label}</span>
    <input type="number" min=${min} max=${max} step=${step === 1 ? 1 : "any"} value=${value ?? ""}
      placeholder=${usual ?? EMPTY[name] ?? "usual"}
      aria-invalid=${Boolean(wrong)} onChange=${take} />
    ${wrong && html`<span class="wrong" role="alert">${wrong}</span>`}</label>`;
}

/** A field for JSON, which says at once when it is none. check(value) -> what is wrong with it, or "". */
function JsonField({ app, name, label, about, placeholder, check, children }) {
  const text = app.chat.settings[name];
  let wrong = "";
  if (text.trim()) {
    try {
      wrong = check(JSON.parse(text));
    } catch (error) {
      wrong = error.message;
    }
  }
  return html`<div class="field"><label for=${`set-${name}`}>${label}</label>
    <textarea id=${`set-${name}`} class="mono" rows=${text ? 8 : 3} spellcheck="false" value=${text}
      placeholder=${placeholder}
      aria-invalid=${Boolean(wrong)} aria-describedby=${`about-${name}`}
        onInput=${(event) => app.set({ [name]: event.target.value })}></textarea>
    <div class="row"><span class="faint grow" id=${`about-${name}`}>${
      wrong
        ? html`<span class="wrong">
      ${wrong}</span>`
        : about
    }</span>${children}</div></div>`;
}

const isSchema = (value) =>
  value && typeof value === "object" && !Array.isArray(value) ? "" : "a schema is an object";
const isTools = (value) =>
  Array.isArray(value) && value.every((tool) => typeof tool?.function?.name === "string")
    ? ""
    : 'a list of {"type": "function", "function": {"name": …}}';

const THEMES = { auto: "As the system", light: "Light", dark: "Dark" };

export function setTheme(theme) {
  remember("theme", theme === "auto" ? null : theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function Settings({ app, close }) {
  const { settings } = app.chat;
  const [theme, choose] = useState(recall("theme", null) ?? "auto");
  const usual = app.model?.sampling?.[settings.thinking === "off" ? "non-thinking" : "thinking"] ?? {};
  return html`<${Dialog} title="Settings of this conversation" close=${close}>
    <div class="field"><label for="set-system">System prompt</label>
      <textarea id="set-system" rows="3" value=${settings.system}
        placeholder="Tells the model who it is and how to answer"
        onInput=${(event) => app.set({ system: event.target.value })}></textarea></div>
    <h3>Sampling</h3>
    <div class="grid">${NUMBERS.map(
      ([name, label, min, max, step, about]) => html`<${NumberField} key=${name}
      app=${app} name=${name}
      label=${label} min=${min} max=${max} step=${step} about=${about} usual=${usual[name]} />`,
    )}</div>
    <h3>Form of the answer</h3>
    <${JsonField} app=${app} name="schema" label="JSON schema" check=${isSchema} placeholder='{"type": "object", …}'
      about="The answer then is JSON of this form; the thinking stays free." />
    <h3>Tools</h3>
    <${JsonField} app=${app} name="tools" label="Functions the model may call" check=${isTools}
      placeholder='[{"type": "function", …}]'
      about="Each call waits for your approval.">
      ${
        !settings.tools.trim() &&
        html`<button type="button" class="quiet small"
        onClick=${() => app.set({ tools: EXAMPLE })}>Put examples in</button>`
      }
    <//>
    <h3>Appearance</h3>
    <fieldset class="segments"><legend>Theme</legend>${Object.entries(THEMES).map(
      ([name, label]) => html`<label
      key=${name}>
      <input type="radio" name="theme" checked=${theme === name} onChange=${() => {
        setTheme(name);
        choose(name);
      }} />
        <span>${label}</span></label>`,
    )}</fieldset>
  <//>`;
}

/** What there is to know about a model, name and value. */
function facts(model) {
  const ways = {
    hybrid: "thinks or not, as asked",
    thinking: "always thinks",
    instruct: "never thinks",
    base: "a base model",
  };
  const active = model.active_parameters && model.active_parameters < model.parameters;
  return [
    [
      "Parameters",
      model.parameters && short(model.parameters) + (active ? `, ${short(model.active_parameters)} active` : ""),
    ],
    ["Context", model.max_model_len && `${count(model.max_model_len)} tokens`],
    ["Thinking", ways[model.thinking?.mode]],
    ["Runs in", model.dtype && `${model.dtype} on ${model.device}`],
    ["From", model.root],
    ["Revision", model.revision],
    ["State", model.state],
  ].filter(([, value]) => value);
}

export function Models({ app, close }) {
  const chats = app.models.filter((model) => (model.kind ?? "chat") === "chat");
  return html`<${Dialog} title="Models" close=${close}>
    ${app.serverError && html`<p class="wrong">${app.serverError}</p>`}
    <ul class="models">${chats.map(
      (model) => html`<li key=${model.id} class=${model === app.model ? "chosen" : ""}>
      <button type="button" class="model-name" aria-pressed=${model === app.model}
        onClick=${() => app.set({ model: model.id })}>
        <span class=${`state ${model.state}`}></span>${model.id}</button>
      <dl>${facts(model).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    </li>`,
    )}</ul>
  <//>`;
}

export function KeyDialog({ app }) {
  const [key, set] = useState("");
  const asked = useRef(Promise.resolve());
  const send = (event) => {
    event.preventDefault();
    const given = key.trim();
    asked.current = asked.current.then(() => app.giveKey(given)); // one after the other: none is lost, the last counts
  };
  return html`<${Dialog} title="This server asks for a key" close=${() => {
    app.needKey = false;
    app.changed();
  }}>
    <form onSubmit=${send}>
      <label class="field"><span>API key</span><input type="password" autocomplete="off" value=${key}
        onInput=${(event) => set(event.target.value)} /></label>
      <p class="faint">It stays in this tab and is forgotten when you close it.</p>
      ${app.serverError && html`<p class="wrong" role="alert">${app.serverError}</p>`}
      <div class="row end"><button type="submit" class="primary"
        disabled=${!key.trim()}>Use this key</button></div>
    </form>
  <//>`;
}

export function Help({ close }) {
  return html`<${Dialog} title="Keyboard shortcuts" close=${close}>
    <dl class="keys">${KEYS.map(
      ([keys, what]) =>
        html`<div key=${keys}><dt>${keys.split(" ").map(
          (key) => html`<kbd
      key=${key}>${key}</kbd>`,
        )}</dt><dd>${what}</dd></div>`,
    )}</dl>
  <//>`;
}
