// What every component needs: Preact, htm, icons, and words for numbers.

import { h, render, Fragment } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";

export { render, Fragment };
export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.mjs";
export const html = htm.bind(h);

const ICONS = {
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  search: "M11 18a7 7 0 1 1 0-14 7 7 0 0 1 0 14zM20 20l-4-4",
  copy: "M9 9h10v10H9zM5 15V5h10",
  done: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  again: "M20 12a8 8 0 1 1-2.5-5.8M20 3v4.5h-4.5",
  more: "M6 4l12 8-12 8z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M6 9l6 6 6-6",
  bottom: "M12 5v14M6 13l6 6 6-6",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M13 5.5v5M7 13.5v5",
  warn: "M12 4L2.5 20h19zM12 10v4M12 17v.5",
  tool: "M14.5 6.5a4 4 0 0 1 5 5l-2.6-.6-2-2zM14.5 6.5l-.9 3.4L4.5 19l.5.5L14.2 10.6",
  chart: "M4 20h16M7 16v-4M12 16V6M17 16v-7",
  keys: "M3 7h18v10H3zM7 10.5h.1M11 10.5h.1M15 10.5h.1M8 14h8",
};

/** An icon that only decorates: the control around it has the name. */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[name]} /></svg>`;
}

/** A button that shows an icon alone; its label is also its tooltip. */
export function IconButton({ icon, label, keys, class: more = "", ...rest }) {
  return html`<button type="button" class=${`icon-button ${more}`} aria-label=${label}
    title=${keys ? `${label} (${keys})` : label}
    ...${rest}><${Icon} name=${icon} /></button>`;
}

const NUMBER = new Intl.NumberFormat("en-US");

/** 12345 -> "12,345" */
export function count(n) {
  return NUMBER.format(n);
}

/** "1 token", "2 tokens" */
export function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** Seconds as a person says them: "12 ms", "0.42 s", "8.1 s", "74 s", "12 min". */
export function seconds(s) {
  if (s < 0.1) return `${Math.round(s * 1000)} ms`;
  if (s < 1) return `${s.toFixed(2)} s`;
  if (s < 10) return `${s.toFixed(1)} s`;
  return s < 120 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`;
}

/** Parameters or bytes in short: 18_400_000 -> "18M" */
export function short(n, unit = "") {
  const steps = [
    [1e12, "T"],
    [1e9, unit ? "G" : "B"],
    [1e6, "M"],
    [1e3, "k"],
  ];
  const [size, letter] = steps.find(([size]) => n >= size) ?? [1, ""];
  const value = n / size;
  return `${value < 10 && size > 1 ? value.toFixed(1) : Math.round(value)}${unit ? " " : ""}${letter}${unit}`;
}

/** Copies a text; also on plain-HTTP pages of other hosts, where browsers have no clipboard object. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "offscreen";
  document.body.append(area);
  area.select();
  const ok = document.execCommand("copy");
  area.remove();
  if (!ok) throw new Error("the browser did not let the page copy");
}

/** Hands the user a file. */
export function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
