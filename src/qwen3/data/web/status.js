// The status page: asks for the counters every two seconds, makes rates of them, draws five minutes.

import { getJson, setApiKey } from "./api.js";
import { count, html, render, seconds, useEffect, useState } from "./ui.js";

const EVERY_MS = 2000;
const KEPT = 150;
const WIDTH = 300;
const HEIGHT = 88;

/** Points of one model, oldest first. */
class History {
  constructor() {
    this.points = [];
    this.last = null;
  }

  add(stats, at) {
    const { last } = this;
    this.last = { at, tokens: stats.tokens };
    const passed = last ? at - last.at : 0;
    const made = last ? stats.tokens - last.tokens : 0; // below 0: the model was loaded anew
    this.points.push({
      rate: passed > 0 && made >= 0 ? made / passed : 0,
      running: stats.running ?? 0, queued: stats.queued ?? 0,
      used: stats.blocks ? stats.used_blocks / stats.blocks : 0,
    });
    this.points.splice(0, this.points.length - KEPT);
  }
}

/** A round number not below `n`, for the top of a chart. */
export function ceiling(n) {
  if (n <= 1) return 1;
  const size = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].find((step) => step * size >= n) * size;
}

function line(values, top) {
  const step = WIDTH / (KEPT - 1);
  const from = WIDTH - (values.length - 1) * step;
  return values.map((value, i) => `${(from + i * step).toFixed(1)},${(HEIGHT - (Math.min(value, top) / top) * HEIGHT).toFixed(1)}`);
}

function Chart({ title, values, second, top, now, unit, legend, said }) {
  const first = line(values, top);
  const area = first.length > 1 ? `${first[0].split(",")[0]},${HEIGHT} ${first.join(" ")} ${WIDTH},${HEIGHT}` : "";
  return html`<figure class="chart"><h3>${title}</h3>
    <p class="now figures">${now}<small>${unit}</small></p>
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label=${said}>
      <line class="base" x1="0" x2=${WIDTH} y1=${HEIGHT} y2=${HEIGHT} /><line class="base" x1="0" x2=${WIDTH} y1="0" y2="0" />
      <polygon class="area" points=${area} /><polyline class="line" points=${first.join(" ")} />
      ${second && html`<polyline class="second" points=${line(second, top).join(" ")} />`}
    </svg>
    <figcaption class="legend">${legend ?? html`<span>5 minutes</span>`}<span class="figures">up to ${unit === "%" ? "100 %" : count(top)}</span></figcaption>
  </figure>`;
}

function Model({ model, points }) {
  const of = (name) => points.map((point) => point[name]);
  const last = points.at(-1) ?? { rate: 0, running: 0, queued: 0, used: 0 };
  const rate = count(Math.round(last.rate));
  const used = Math.round(last.used * 100);
  const most = ceiling(Math.max(1, ...of("running"), ...of("queued")));
  return html`<section class="model-block"><h2><span class=${`state ${model.state}`}></span>${model.name}<small>${model.state}</small></h2>
    <div class="charts">
      <${Chart} title="Throughput" values=${of("rate")} top=${ceiling(Math.max(...of("rate"), 10))} now=${rate} unit="tokens/s"
        said=${`Throughput: ${rate} tokens per second`} />
      <${Chart} title="Requests" values=${of("running")} second=${of("queued")} top=${most} now=${count(last.running)}
        unit=${`running, ${count(last.queued)} waiting`} said=${`${last.running} running, ${last.queued} waiting`}
        legend=${html`<span><i></i>running</span><span><i class="two"></i>waiting</span>`} />
      <${Chart} title="KV cache" values=${of("used")} top=${1} now=${used} unit="%" said=${`KV cache: ${used} percent used`}
        legend=${html`<span>${count(model.used_blocks ?? 0)} of ${count(model.blocks ?? 0)} blocks</span>`} />
    </div></section>`;
}

function Problem({ error, again }) {
  const [key, set] = useState("");
  const send = (event) => {
    event.preventDefault();
    setApiKey(key.trim());
    again();
  };
  return html`<div class="problem" role="alert">${error.message}
    ${error.status === 401 && html`<form onSubmit=${send}><input type="password" aria-label="API key" placeholder="API key" autocomplete="off"
      value=${key} onInput=${(event) => set(event.target.value)} /><button class="primary small" disabled=${!key.trim()}>Use this key</button></form>`}</div>`;
}

const histories = new Map();

function Board() {
  const [state, set] = useState(null);
  const [error, fail] = useState(null);
  const ask = async () => {
    try {
      const figures = await getJson("/status.json");
      for (const model of figures.models) {
        if (!histories.has(model.name)) histories.set(model.name, new History());
        if (model.tokens !== undefined) histories.get(model.name).add(model, figures.uptime);
      }
      set(figures);
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
      ${state && html`<p class="lead">version ${state.version} · up ${up(state.uptime)}${state.draining ? " · finishing, no new requests" : ""}</p>`}
      <a class="grow" href="/">To the chat</a></header>
    ${error && html`<${Problem} error=${error} again=${ask} />`}
    ${state?.models.map((model) => html`<${Model} key=${model.name} model=${model} points=${histories.get(model.name).points} />`)}
  </main>`;
}

function up(s) {
  if (s < 120) return seconds(s);
  return s < 7200 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

const root = document.getElementById("status");
root.replaceChildren();
render(html`<${Board} />`, root);
