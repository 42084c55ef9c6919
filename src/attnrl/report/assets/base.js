// Script of the report page, part 1: data, elements, number formats, tooltip.
// Text written by a model enters the document as text nodes only; no code of this page parses HTML.
"use strict";

const parse = (id) => JSON.parse(document.getElementById(id).textContent);
const DATA = parse("data");
const RUNS = DATA.runs;
const several = RUNS.length > 1;
const hidden = new Set(); // indices of runs switched off in the legend
const redraws = []; // of the charts that follow the legend
let smooth = RUNS.some((run) => (run.columns.step ?? []).length > 100);

// --- elements -------------------------------------------------------------------------------------------------

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined)); // strings become text nodes
  return node;
}
const el = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const colour = (index) => `var(--c${index % 8})`;
function swatch(paint) {
  const box = el("span", { class: "swatch" });
  box.style.background = paint;
  return box;
}
function select(label, options, value, change) {
  const box = el("select", { "aria-label": label, change: () => change(Number(box.value)) });
  box.append(...options.map(([key, text]) => el("option", { value: key }, text)));
  box.value = value;
  return el("label", {}, label, box);
}

// --- numbers --------------------------------------------------------------------------------------------------

const known = (value) => value !== null && value !== undefined;
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;
function number(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${Number((value / 1e9).toPrecision(3))}G`;
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  if (size > 0 && size < 1e-3) return Number(value.toPrecision(3)).toExponential();
  return String(Number(value.toPrecision(4)));
}
const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(2);
function duration(seconds) {
  if (seconds < 300) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 7200) return `${Number((seconds / 60).toPrecision(3))} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}
function running(values) {
  const width = Math.max(3, Math.round(values.length / 20));
  return values.map((value, k) => {
    const near = values.slice(Math.max(0, k - width + 1), k + 1).filter(known);
    return known(value) && near.length ? near.reduce((a, b) => a + b) / near.length : null;
  });
}

// --- tooltip ---------------------------------------------------------------------------------------------------

const tip = document.getElementById("tip");
function showTip(event, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
  const top = event.clientY + 14 + box.height > innerHeight ? event.clientY - 14 - box.height : event.clientY + 14;
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}
const hideTip = () => { tip.hidden = true; };
const pair = (paint, label, value) => el("div", { class: "pair" }, paint ? swatch(paint) : null, label, el("b", {}, value));
addEventListener("scroll", hideTip, { passive: true });
