// The status page: the server keeps the figures of the last minutes by second; this draws them.

import { getJson, setApiKey } from "./api.js";
import { count, html, render, seconds, useEffect, useState } from "./ui.js";

const EVERY_MS = 2000;
const WIDTH = 300;
const HEIGHT = 88;

/** A round number not below `n`, for the top of a chart. */
export function ceiling(n) {
  if (n <= 1) return 1;
  const size = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].find((step) => step * size >= n) * size;
}

function points(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  const high = (value) => HEIGHT - (Math.min(value, top) / top) * HEIGHT;
  return values.map((value, i) => `${(i * step).toFixed(1)},${high(value).toFixed(1)}`).join(" ");
}

/** Means over a few seconds: tokens come in bursts. */
export function smoothed(values, width = 3) {
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - width + 1), i + 1);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

function minutes(values) {
  return values.length < 120 ? `${values.length} s` : `${Math.round(values.length / 60)} min`;
}

/** One or two lines over time. now: the figure in large; names: of the lines. */
function Chart({ title, now, unit, lines, names, top, most }) {
  const first = points(lines[0], top);
  return html`<figure class="chart"><h2>${title}</h2>
    <p class="now figures">${now}<small>${unit}</small></p>
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img"
      aria-label=${`${title}: ${now} ${unit}`}>
      <line class="base" x1="0" x2=${WIDTH} y1=${HEIGHT} y2=${HEIGHT} /><line class="base" x1="0" x2=${WIDTH} y1="0"
        y2="0" />
      <polygon class="area" points=${`0,${HEIGHT} ${first} ${WIDTH},${HEIGHT}`} /><polyline class="line"
        points=${first} />
      ${lines[1] && html`<polyline class="second" points=${points(lines[1], top)} />`}
    </svg>
    <figcaption class="legend">${names.map(
      (name, i) => html`<span key=${name}><i class=${i ? "two" : ""}></i>
      ${name}</span>`,
    )}
      <span class="grow"></span><span class="figures">${minutes(lines[0])}, top ${most ?? count(top)}</span>
        </figcaption>
  </figure>`;
}

function Charts({ history, models }) {
  const made = smoothed(history.tokens);
  const read = smoothed(history.prompt);
  const blocks = models.reduce((sum, model) => sum + (model.blocks ?? 0), 0);
  const used = history.used_blocks.at(-1);
  const share = (n) => (blocks ? Math.round((100 * n) / blocks) : 0);
  // The second that is not over would always look like a drop.
  const settled = (values) => values.slice(0, -1);
  return html`<div class="charts">
    <${Chart} title="Throughput" now=${count(Math.round(settled(made).at(-1)))} unit="tokens/s"
      names=${["out", "prompt"]}
      lines=${[settled(made), settled(read)]} top=${ceiling(Math.max(10, ...made, ...read))} />
    <${Chart} title="Requests" now=${count(history.running.at(-1))}
      unit=${`running, ${count(history.queued.at(-1))} waiting`}
      names=${["running", "waiting"]} lines=${[history.running, history.queued]}
        top=${ceiling(Math.max(1, ...history.running, ...history.queued))} />
    <${Chart} title="KV cache" now=${share(used)} unit="% used" names=${[`${count(used)} of ${count(blocks)} blocks`]}
      lines=${[history.used_blocks.map(share)]} top=${100} most="100 %" />
  </div>`;
}

const COLUMNS = [
  [
    "Model",
    (model) => html`<span class=${`state ${model.state}`}></span>
    ${model.name}`,
  ],
  ["State", (model) => model.state],
  ["Running", (model) => figure(model.running)],
  ["Waiting", (model) => figure(model.queued)],
  ["At once", (model) => figure(model.max_batch)],
  ["Tokens so far", (model) => figure(model.tokens)],
];

function figure(n) {
  return n === undefined ? "–" : count(n);
}

function Models({ models }) {
  return html`<div class="table" tabindex="0" role="region" aria-label="Models"><table>
    <thead><tr>${COLUMNS.map(([name]) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
    <tbody>${models.map(
      (model) =>
        html`<tr key=${model.name}>${COLUMNS.map(
          ([name, show]) => html`<td key=${name}
      class="figures">${show(model)}</td>`,
        )}</tr>`,
    )}</tbody>
  </table></div>`;
}

function Problem({ error, again }) {
  const [key, set] = useState("");
  const send = (event) => {
    event.preventDefault();
    setApiKey(key.trim());
    again();
  };
  return html`<div class="problem" role="alert">${error.message}
    ${
      error.status === 401 &&
      html`<form onSubmit=${send}><input type="password" aria-label="API key"
      placeholder="API key" autocomplete="off"
      value=${key} onInput=${(event) => set(event.target.value)} /><button class="primary small"
        disabled=${!key.trim()}>Use this key</button></form>`
    }</div>`;
}

function Board() {
  const [state, set] = useState(null);
  const [error, fail] = useState(null);
  const ask = async () => {
    try {
      set(await getJson("/status.json"));
      fail(null);
    } catch (problem) {
      fail(problem);
    }
  };
  useEffect(() => {
    ask();
    const timer = setInterval(() => document.hidden || ask(), EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<main class="board"><header><h1>Status</h1>
      ${
        state &&
        html`<p class="lead">
        ${state.draining ? "finishing" : state.status} · version ${state.version} · up ${up(state.uptime)}</p>`
      }
      <a class="grow" href="/">To the chat</a></header>
    ${error && html`<${Problem} error=${error} again=${ask} />`}
    ${state && html`<${Charts} history=${state.history} models=${state.models} /><${Models} models=${state.models} />`}
  </main>`;
}

function up(s) {
  return s < 7200 ? seconds(s) : `${(s / 3600).toFixed(1)} h`;
}

const root = document.getElementById("status");
root.replaceChildren();
render(html`<${Board} />`, root);
