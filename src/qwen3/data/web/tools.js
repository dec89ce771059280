// Tool calls: shown with their real arguments; none runs and no result is sent before the user says so.

import { html, Icon, useState } from "./ui.js";

/** Tools the page itself can run, once approved; others are answered by hand. */
export const OWN = {
  get_time: {
    about: "Current date and time of a time zone",
    parameters: { zone: { type: "string", description: "Such as Europe/Paris; left out: here" } },
    required: [],
    run: ({ zone }) => ({
      time: new Date().toLocaleString("en-GB", { timeZone: zone || undefined, timeZoneName: "short" }),
    }),
  },
  calculate: {
    about: "Calculate the value of an expression",
    parameters: { expression: { type: "string", description: "Numbers with + - * / ^ and parentheses" } },
    required: ["expression"],
    run: ({ expression }) => ({ result: calculate(String(expression)) }),
  },
};

export const EXAMPLE = JSON.stringify(
  Object.entries(OWN).map(([name, { about, parameters, required }]) => ({
    type: "function",
    function: { name, description: about, parameters: { type: "object", properties: parameters, required } },
  })),
  null,
  2,
);

/** The value of an arithmetic expression, by recursive descent. Throws Error for anything else. */
export function calculate(text) {
  const tokens =
    text
      .replaceAll("×", "*")
      .replaceAll("÷", "/")
      .replaceAll("**", "^")
      .match(/\d+(?:\.\d+)?|[-+*/^()]|\S/g) ?? [];
  let at = 0;
  const sum = () => {
    let value = product();
    while (tokens[at] === "+" || tokens[at] === "-")
      value = tokens[at++] === "+" ? value + product() : value - product();
    return value;
  };
  const product = () => {
    let value = sign();
    while (tokens[at] === "*" || tokens[at] === "/") value = tokens[at++] === "*" ? value * sign() : value / sign();
    return value;
  };
  const sign = () => (tokens[at] === "-" ? (at++, -sign()) : power());
  const power = () => {
    const base = atom();
    return tokens[at] === "^" ? (at++, base ** sign()) : base;
  };
  const atom = () => {
    const token = tokens[at++];
    if (token === "(") {
      const value = sum();
      if (tokens[at++] !== ")") throw new Error("a parenthesis is not closed");
      return value;
    }
    if (!/^\d/.test(token ?? "")) throw new Error(`${token ?? "the end"} stands where a number should`);
    return Number(token);
  };
  const value = sum();
  if (at < tokens.length) throw new Error(`${tokens[at]} is too much`);
  return value;
}

function pretty(args) {
  try {
    return JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    return args;
  }
}

function result(call) {
  try {
    return JSON.stringify(OWN[call.name].run(JSON.parse(call.args || "{}")));
  } catch (error) {
    return JSON.stringify({ error: error.message });
  }
}

/** The calls of one message. answers: the tool messages there are already; open: whether they may be given now. */
export function Calls({ app, node, answers, open, branch }) {
  const [given, give] = useState({});
  const set = (at, text) => {
    const next = { ...given, [at]: text };
    give(next);
    if (node.calls.every((_, i) => next[i] !== undefined)) {
      app.giveResults(
        node,
        node.calls.map((_, i) => next[i]),
      );
    }
  };
  return html`<ol class="calls">${node.calls.map(
    (call, at) => html`<${Call} key=${call.id || at} call=${call}
    answer=${answers[at]?.content ?? given[at]} open=${open && given[at] === undefined}
      give=${(text) => set(at, text)} />`,
  )}
    ${branch}</ol>`;
}

function Call({ call, answer, open, give }) {
  const [text, setText] = useState("");
  const own = call.name in OWN;
  return html`<li class="call">
    <div class="call-head"><${Icon} name="tool" /><code>${call.name || "…"}</code>
      <span class="faint">${answer !== undefined ? "answered" : open ? "waits for you" : "being written"}</span></div>
    <pre tabindex="0" role="group" aria-label=${`Arguments of ${call.name}`}>${pretty(call.args)}</pre>
    ${
      answer !== undefined &&
      html`<div class="call-answer"><span class="faint">Result</span>
      <pre tabindex="0" role="group" aria-label=${`Result of ${call.name}`}>${pretty(answer)}</pre></div>`
    }
    ${
      open &&
      answer === undefined &&
      html`<form class="call-form"
      onSubmit=${(event) => {
        event.preventDefault();
        give(text);
      }}>
      <textarea rows="2" value=${text} aria-label=${`Result of ${call.name}`} onInput=${(e) => setText(e.target.value)}
        placeholder=${own ? "Approve to have it run, or write the result" : "Write what the tool would give"}></textarea>
      <div class="row">
        ${
          own &&
          html`<button type="button" class="primary small"
          onClick=${() => give(result(call))}>Approve and run</button>`
        }
        <button type="submit" class=${`${own ? "quiet" : "primary"} small`}
          disabled=${!text.trim()}>Send this result</button>
        <button type="button" class="quiet small"
          onClick=${() => give("The user did not allow this call.")}>Deny</button>
      </div></form>`
    }
  </li>`;
}
