// The report's page. Everything a model wrote reaches the document as text nodes only; nothing here parses HTML.
"use strict";

const parse = (id) => JSON.parse(document.getElementById(id).textContent);
const DATA = parse("data");
const RUNS = DATA.runs;
const several = RUNS.length > 1;
const hidden = new Set(); // indices of runs switched off in the legend
const redraws = []; // of the charts that heed the legend
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

// --- what is under the pointer ----------------------------------------------------------------------------------

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

// --- charts -----------------------------------------------------------------------------------------------------

const resized = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.redraw();
});
function drawnIn(holder, draw) {
  let width = 0;
  holder.redraw = () => {
    if (holder.clientWidth && holder.clientWidth !== width) draw((width = holder.clientWidth));
  };
  resized.observe(holder);
  return () => width && draw(width);
}

/* A chart of lines. `lines()` gives [{label, paint, x, y, run, width, faint, marks}], `band` [x, low, high]. */
function chart({ title, lines, form = number, xLabel = "step", xForm = number, tall, legend, band, smoothed }) {
  const holder = el("div", { class: tall ? "plot tall" : "plot" });
  const value = el("span", { class: "value" });
  const figure = el("figure", {}, el("figcaption", {}, title, value), legend ?? null, holder);
  const visible = () => lines().filter((line) => !hidden.has(line.run));
  const draw = (width) => {
    const height = holder.clientHeight;
    const shown = visible();
    const [left, right, top, bottom] = [44, 8, 8, 32];
    const xs = shown.flatMap((line) => line.x.filter((_, k) => known(line.y[k])));
    const ys = [...shown.flatMap((line) => line.y.filter(known)), ...(band ? [...band[1], ...band[2]] : [])];
    const picture = svg("svg", { width, height, role: "img", "aria-label": title });
    holder.replaceChildren(picture);
    value.textContent = "";
    if (!ys.length) return;
    const extent = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    const [x0, x1] = extent(xs);
    let [y0, y1] = extent(ys);
    if (y0 > 0 && y0 < 0.5 * y1) y0 = 0;
    if (y0 === y1) [y0, y1] = y0 >= 0 ? [0, 1.2 * y0 || 1] : [y0 - 0.5, y0 + 0.5];
    else [y0, y1] = [y0 === 0 ? 0 : y0 - 0.05 * (y1 - y0), y1 + 0.05 * (y1 - y0)];
    const X = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (width - left - right);
    const Y = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
    for (const y of ticks(y0, y1, 5)) {
      const text = form === percent ? percent(y, y1 - y0 < 0.04 ? 1 : 0) : form(y);
      picture.append(
        svg("line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), stroke: "var(--line)" }),
        svg("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, text),
      );
    }
    for (const x of ticks(x0, x1, Math.max(2, Math.floor(width / 80)))) {
      picture.append(svg("text", { x: X(x), y: height - bottom + 14, "text-anchor": X(x) > width - 24 ? "end" : "middle" }, xForm(x)));
    }
    picture.append(svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, xLabel));
    if (band) {
      const [bx, low, high] = band;
      const edge = [...bx.map((x, k) => [x, high[k]]), ...bx.map((x, k) => [x, low[k]]).reverse()];
      picture.append(svg("path", { d: `M${edge.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("L")}Z`, fill: "var(--accent)", "fill-opacity": 0.15 }));
    }
    const path = (x, y) => {
      let d = "", pen = "M";
      for (let k = 0; k < x.length; k++) {
        if (known(y[k])) { d += `${pen}${X(x[k]).toFixed(1)},${Y(y[k]).toFixed(1)}`; pen = "L"; }
      }
      return d;
    };
    for (const line of shown) {
      const style = { fill: "none", stroke: line.paint, "stroke-linejoin": "round", "stroke-linecap": "round" };
      const even = smoothed && smooth;
      picture.append(svg("path", { ...style, d: path(line.x, line.y), "stroke-width": line.width ?? 1.7, "stroke-opacity": even ? 0.28 : line.faint ? 0.55 : 1 }));
      if (even) picture.append(svg("path", { ...style, d: path(line.x, running(line.y)), "stroke-width": 2 }));
      const single = line.y.filter(known).length === 1 ? [line.y.findIndex(known)] : [];
      for (const k of [...(line.marks ?? []), ...single]) {
        if (known(line.y[k])) picture.append(svg("circle", { cx: X(line.x[k]), cy: Y(line.y[k]), r: 3, fill: line.paint }));
      }
    }
    const last = shown.length === 1 ? shown[0].y.filter(known).at(-1) : null;
    if (known(last)) value.textContent = form(last);
    const cursor = svg("line", { y1: top, y2: height - bottom, stroke: "var(--soft)", "stroke-dasharray": "2 3", visibility: "hidden" });
    picture.append(cursor);
    holder.onpointermove = holder.onpointerdown = (event) => {
      const at = event.clientX - holder.getBoundingClientRect().left;
      const nearest = shown.map((line) => {
        let best = -1;
        for (let k = 0; k < line.x.length; k++) {
          if (known(line.y[k]) && (best < 0 || Math.abs(X(line.x[k]) - at) < Math.abs(X(line.x[best]) - at))) best = k;
        }
        return [line, best];
      }).filter(([, k]) => k >= 0);
      const places = nearest.map(([line, k]) => line.x[k]);
      const x = places.reduce((a, b) => (Math.abs(X(b) - at) < Math.abs(X(a) - at) ? b : a), places[0]);
      const same = places.every((place) => place === x);
      cursor.setAttribute("x1", X(x));
      cursor.setAttribute("x2", X(x));
      cursor.setAttribute("visibility", "visible");
      const near = nearest.filter(([line, k]) => !band || line.x[k] === x);
      showTip(event, el("div", { class: "title" }, same || band ? `${xLabel} ${xForm(x)}` : xLabel),
        ...near.map(([line, k]) => pair(line.paint, line.label, same || band ? form(line.y[k]) : `${form(line.y[k])} at ${xForm(line.x[k])}`)));
    };
    holder.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); hideTip(); };
  };
  redraws.push(drawnIn(holder, draw));
  return figure;
}

const runLines = (pick) => () =>
  RUNS.map((run, index) => ({ run: index, label: run.name, paint: colour(index), ...pick(run) })).filter((line) => line.y);

function metricCharts(list, classes = "charts") {
  const found = list.filter(([name]) => RUNS.some((run) => (run.columns[name] ?? []).some(known)));
  return el("div", { class: classes }, ...found.map(([name, title, form]) => chart({
    title, form, smoothed: true, lines: runLines((run) => ({ x: run.columns.step, y: run.columns[name] })),
  })));
}

// --- sections ---------------------------------------------------------------------------------------------------

const main = document.getElementById("main");
const section = (title, note, ...children) =>
  main.append(el("section", {}, el("h2", {}, title), note ? el("p", {}, note) : null, ...children));

function accuracy(evaluation) {
  if (!evaluation) return "–";
  return percent(evaluation.accuracy) + (known(evaluation.error) ? ` ± ${percent(evaluation.error)}` : "");
}
function headline({ headline: head, settings }) {
  const { before, after, steps, planned, tokens } = head;
  const points = after ? 100 * (after.accuracy - before.accuracy) : 0;
  const over = !known(planned) || steps >= planned || (known(settings.tokens) && tokens >= settings.tokens);
  return [
    ["accuracy before", accuracy(before), before ? `held out, step ${before.step}` : "no evaluation"],
    ["accuracy after", accuracy(after),
      after ? `step ${after.step}, ${points >= 0 ? "+" : "−"}${Math.abs(points).toFixed(1)} points` : "no later evaluation"],
    ["steps", known(steps) ? number(steps) : "–", over ? (known(steps) ? "finished" : "none yet") : `of ${planned}: not finished`],
    ["tokens sampled", known(tokens) ? number(tokens) : "–", "in training"],
    ["time", known(head.seconds) ? duration(head.seconds) : "–", "of training steps"],
    ["valid tokens", known(head.valid_ratio) ? percent(head.valid_ratio) : "–", "of those sampled, mean of steps"],
  ];
}
const setting = (value) => (value === undefined ? "–" : value === null ? "null" : String(value));

function overview() {
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.settings)))];
  const table = (head, rows) => el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}), ...head.map((name) => el("th", {}, name)))), el("tbody", {}, ...rows)));
  const row = (name, cells) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell)));
  const values = (key) => RUNS.map((run) => setting(run.settings[key]));
  const parts = [];
  if (several) {
    const heads = RUNS.map(headline);
    const differing = keys.filter((key) => key !== "output_dir" && new Set(values(key)).size > 1);
    parts.push(el("div", { class: "card" }, table(RUNS.map((run) => run.name), [
      ...heads[0].map(([name], k) => row(name, heads.map((head) => k === 2 && head[2][2].startsWith("of") ? `${head[2][1]} ${head[2][2]}` : head[k][1]))),
      el("tr", { class: "head" }, el("th", { colspan: RUNS.length + 1 }, differing.length ? "settings that differ" : "the settings are the same")),
      ...differing.map((key) => row(key, values(key))),
    ])));
  } else {
    parts.push(el("div", { class: "tiles" }, ...headline(RUNS[0]).map(([name, value, small]) =>
      el("div", { class: "tile" }, el("span", {}, name),
        el("b", {}, value.split(" ± ")[0], value.includes("±") ? el("small", {}, ` ± ${value.split(" ± ")[1]}`) : null), el("small", {}, small)))));
  }
  if (keys.length) {
    parts.push(el("details", {}, el("summary", {}, "all settings"),
      el("div", { class: "card" }, table(RUNS.map((run) => run.name), keys.map((key) => row(key, values(key)))))));
  }
  section(several ? `${RUNS.length} runs` : RUNS[0].name, several ? null : RUNS[0].path, ...parts);
}

const WATCHED = [
  ["initial/solve_all_ratio", "Initial: all correct", percent], ["initial/solve_none_ratio", "Initial: all wrong", percent],
  ["initial/valid_ratio", "Initial: mixed (valid)", percent], ["mc/solve_all_ratio", "Continuations: all correct", percent],
  ["mc/solve_none_ratio", "Continuations: all wrong", percent], ["mc/valid_ratio", "Continuations: mixed (valid)", percent],
  ["all/solve_all_ratio", "All leaves: all correct", percent], ["all/solve_none_ratio", "All leaves: all wrong", percent],
  ["all/valid_ratio", "All leaves: mixed (valid)", percent],
];
const BATCH = [
  ["all_correct_then_valid_ratio", "All correct, then made valid", percent], ["tokens/valid_ratio", "Valid tokens", percent],
  ["filtered_ratio", "Problems filtered", percent], ["prompt_batch_size", "Problems in the batch", number],
];
const POLICY = [
  ["reward", "Reward, all leaves", number], ["entropy", "Entropy (nats)", number],
  ["response_length", "Response length (tokens)", number],
];
const SAMPLER = [
  ["time/generated_tokens_per_second", "Tokens sampled per second", number],
  ["branch/position", "Branch position, share of the trunk", percent],
  ["branch/beyond_first_steps_ratio", "Branches beyond the first steps", percent],
  ["branch/agreement_ratio", "Branches that end as their trunk does", percent],
  ["truncated_ratio", "Truncated samples", percent], ["mismatch/mean", "Mismatch to the sampler, mean (nats)", number],
  ["mismatch/max", "Mismatch to the sampler, largest (nats)", number], ["carried_over", "Carried over to the next step", number],
];
const PHASES = ["generate", "grade", "score", "train", "sync", "plan"];

function curves() {
  if (RUNS.some((run) => run.evaluations.length)) {
    const over = (axis, xLabel, xForm) => chart({
      title: `Held-out accuracy over ${xLabel}`, form: percent, xLabel, xForm, tall: true,
      lines: runLines(({ evaluations }) => ({
        x: evaluations.map((one) => one[axis]), y: evaluations.map((one) => one.accuracy),
        marks: evaluations.length < 60 ? evaluations.keys() : [],
      })),
    });
    section("Learning curves", null, el("div", { class: "charts wide" },
      over("tokens", "tokens sampled", number), over("seconds", "time of training", duration)));
  } else {
    section("Learning curves", "No held-out evaluation in these runs.");
  }
  if (!RUNS.some((run) => run.columns.step)) {
    section("Training", "No training step is finished yet.");
    return;
  }
  const box = el("input", { type: "checkbox", change: () => { smooth = box.checked; redraws.forEach((draw) => draw()); } });
  box.checked = smooth;
  section("Curves watched", "Those of the paper's figures 6 to 8.",
    el("div", { class: "controls" }, el("label", {}, box, "running mean over 5% of the steps")),
    el("h3", {}, "How many problems have a signal (figure 6)"), metricCharts(WATCHED, "charts three"),
    el("h3", {}, "What adaptive sampling makes of it (figure 7)"), metricCharts(BATCH),
    el("h3", {}, "The policy (figure 8)"), metricCharts(POLICY));
  time();
  section("Sampler", null, metricCharts(SAMPLER));
  const drawn = new Set([...WATCHED, ...BATCH, ...POLICY, ...SAMPLER].map(([name]) => name).concat("step"));
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.columns)))].filter((name) => !drawn.has(name));
  const rest = el("details", {}, el("summary", {}, `all other metrics (${names.length})`));
  rest.addEventListener("toggle", () => rest.append(metricCharts(names.sort().map((name) => [name, name, number]))), { once: true });
  main.append(rest);
}

function time() {
  const holder = el("div", { class: "plot tall" });
  let chosen = RUNS.findIndex((run) => run.columns.step);
  const draw = (width) => {
    const { step, ...columns } = RUNS[chosen].columns;
    const height = holder.clientHeight;
    const [left, right, top, bottom] = [44, 8, 8, 32];
    const totals = columns["time/step"] ?? [];
    const phases = PHASES.map((name) => [name, step.map((_, k) => columns[`time/${name}`]?.[k] ?? 0)]);
    phases.push(["other", step.map((_, k) => Math.max(0, (totals[k] ?? 0) - phases.reduce((sum, [, y]) => sum + y[k], 0)))]);
    const most = 1.05 * Math.max(...step.map((_, k) => phases.reduce((sum, [, y]) => sum + y[k], 0)), 1e-9);
    const wide = (width - left - right) / step.length;
    const Y = (y) => height - bottom - (y / most) * (height - top - bottom);
    const picture = svg("svg", { width, height, role: "img", "aria-label": "Seconds of each phase in each step" });
    for (const y of ticks(0, most, 4)) {
      picture.append(svg("line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), stroke: "var(--line)" }),
        svg("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" }, `${number(y)} s`));
    }
    const base = step.map(() => 0);
    const gap = wide > 6 ? 1 : 0;
    for (const [name, values] of phases) { // one path for each phase: bars of a 500-step run are cheap that way
      let d = "";
      values.forEach((value, k) => {
        if (value > 0) d += `M${(left + k * wide).toFixed(1)},${Y(base[k]).toFixed(2)}h${(wide - gap).toFixed(2)}V${Y(base[k] + value).toFixed(2)}h${(gap - wide).toFixed(2)}Z`;
        base[k] += value;
      });
      picture.append(svg("path", { d, fill: `var(--${name})` }));
    }
    const every = Math.ceil(step.length / Math.max(2, Math.floor(width / 60)));
    for (let k = every - 1; k < step.length; k += every) {
      picture.append(svg("text", { x: left + (k + 0.5) * wide, y: height - bottom + 14, "text-anchor": "middle" }, number(step[k])));
    }
    picture.append(svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "step"));
    holder.replaceChildren(picture);
    holder.onpointermove = holder.onpointerdown = (event) => {
      const k = Math.floor((event.clientX - holder.getBoundingClientRect().left - left) / wide);
      if (k < 0 || k >= step.length) return hideTip();
      const beside = columns["time/grade_overlapped"]?.[k];
      showTip(event, el("div", { class: "title" }, `step ${step[k]}: ${number(totals[k] ?? 0)} s`),
        ...phases.map(([name, values]) => pair(`var(--${name})`, name, `${number(values[k])} s`)),
        known(beside) ? pair(null, "grading beside generation", `${number(beside)} s`) : "");
    };
    holder.onpointerleave = hideTip;
  };
  const redraw = drawnIn(holder, draw);
  const choices = RUNS.map((run, index) => [index, run.name]).filter(([index]) => RUNS[index].columns.step);
  section("Time", "Seconds of each phase of a step, evaluation and checkpoint not included.",
    several ? el("div", { class: "controls" }, select("run", choices, chosen, (index) => { chosen = index; redraw(); })) : null,
    el("figure", {}, el("div", { class: "legend" }, ...[...PHASES, "other"].map((name) => el("span", {}, swatch(`var(--${name})`), name))), holder));
}

// --- forests ----------------------------------------------------------------------------------------------------

function forests() {
  const usable = RUNS.map((run, index) => [index, run.name]).filter(([index]) => RUNS[index].forests.some((one) => one.kept));
  if (!usable.length) {
    const any = RUNS.some((run) => run.forests.length);
    section("Forests", any ? "No forest fits the budget: --max-mb is what they may take." : "These runs have kept no forests (log.trees_every).");
    return;
  }
  const controls = el("div", { class: "controls" });
  const place = el("div");
  const state = { run: usable[0][0], step: null, problem: 0, loaded: null, id: null };
  const steps = () => RUNS[state.run].forests.filter((one) => one.kept);

  function load() {
    const all = steps();
    if (!all.some((one) => one.step === state.step)) state.step = all.at(-1).step;
    const id = `forests-${state.run}-${state.step}`;
    if (state.id !== id) {
      state.loaded = parse(id); // only what is looked at is parsed
      state.id = id;
      // The first to look at: one with branches, and with leaves of both kinds.
      const mixed = (one) => new Set(one.trees.flatMap((tree) => tree.nodes.map((node) => node.reward > 0.5))).size > 1;
      const branched = (one) => one.trees.some((tree) => tree.points.length);
      state.problem = Math.max(0, [(one) => branched(one) && mixed(one), branched].reduce((found, test) => (found < 0 ? state.loaded.findIndex(test) : found), -1));
    }
    show();
  }
  function go(problem) {
    state.problem = (problem + state.loaded.length) % state.loaded.length;
    show();
  }
  function show() {
    const { loaded, problem } = state;
    const label = (one, k) => {
      const rewards = one.trees.flatMap((tree) => tree.nodes.map((node) => node.reward));
      const mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : 0;
      return `${k + 1}. ${one.filtered ? "filtered" : `${rewards.length} leaves`}, reward ${mean.toFixed(2)}: ${one.prompt.trim().slice(0, 70)}`;
    };
    controls.replaceChildren(
      ...(several ? [select("run", usable, state.run, (run) => { state.run = run; load(); })] : []),
      select("step", steps().map((one) => [one.step, one.kept < one.of ? `${one.step} (${one.kept} of ${one.of})` : String(one.step)]), state.step,
        (step) => { state.step = step; load(); }),
      select("problem", loaded.map((one, k) => [k, label(one, k)]), problem, go),
      el("button", { click: () => go(problem - 1), "aria-label": "previous problem" }, "←"),
      el("button", { click: () => go(problem + 1), "aria-label": "next problem" }, "→"),
    );
    redraws.length = fixed; // the charts of the problem before are gone
    place.replaceChildren(...drawProblem(loaded[problem], loaded, state.step));
  }
  const kept = RUNS.flatMap((run) => run.forests);
  const left = kept.reduce((sum, one) => sum + one.of - one.kept, 0);
  const note = left
    ? `${left} of ${kept.reduce((sum, one) => sum + one.of, 0)} forests of the log are left out, the last ones of each step: --max-mb ${DATA.megabytes} is what they may take.`
    : "Every forest of the log is here.";
  section("Forests", note, controls, place);
  const fixed = redraws.length;
  load();
}

function drawProblem(forest, all, step) {
  const tags = [
    el("span", { class: "tag" }, `answer ${forest.answers.join(" or ")}`),
    el("span", { class: "tag" }, `root value ${number(forest.root ?? 0)}`),
    forest.filtered ? el("span", { class: "tag warn" }, "filtered: not expanded, not trained on (eq. 8)") : null,
  ];
  const values = forest.trees.flatMap((tree) => tree.fci).filter(known);
  const scale = {
    fci: Math.max(...values, 1e-9),
    advantage: Math.max(...forest.trees.flatMap((tree) => tree.segments.map((one) => Math.abs(one[4] ?? 0))), 1e-9),
    tokens: Math.max(...forest.trees.flatMap((tree) => tree.nodes.map((node) => node.at + node.tokens)), 1),
    steps: Math.max(...forest.trees.map((tree) => tree.starts.length), 1),
  };
  const key = el("div", { class: "legend note" },
    el("span", {}, swatch("var(--accent)"), "step, the stronger the more FCI"), el("span", {}, "▾ branch point"),
    el("span", {}, swatch("var(--plus)"), "advantage above 0"), el("span", {}, swatch("var(--minus)"), "below 0"),
    el("span", {}, "at the end: reward of the leaf. Click a row for its text."));
  return [
    el("div", { class: "card" }, ...tags, el("div", { class: "prompt" }, forest.prompt)),
    key,
    ...forest.trees.map((tree, index) => drawTree(tree, index, scale)),
    drawInfluence(forest, all, step),
  ];
}

function owned(tree, node) {
  return tree.segments.filter((one) => one[0] === node).sort((a, b) => a[1] - b[1]);
}
const stepText = (tree, k) => (tree.nodes[0].pieces.length === tree.starts.length ? tree.nodes[0].pieces[k] : "");

function drawTree(tree, index, scale) {
  const trunk = tree.nodes[0];
  const holder = el("div", { class: "scroll" });
  const detail = el("div", { class: "detail", hidden: "" });
  const branches = tree.nodes.length - 1;
  const card = el("div", { class: tree.trained ? "card tree" : "card tree untrained" },
    el("h3", {}, `Trunk ${index + 1}`,
      el("span", { class: trunk.reward > 0.5 ? "tag good" : "tag bad" }, `reward ${number(trunk.reward ?? 0)}`),
      el("span", { class: "tag" }, `${tree.starts.length} steps, ${trunk.tokens} tokens`),
      branches ? el("span", { class: "tag" }, `${branches} branches`) : null,
      tree.trained ? null : el("span", { class: "tag warn" }, "not trained on")),
    holder, detail);
  let chosen = null;
  const choose = (which, step) => {
    chosen = which;
    for (const row of holder.querySelectorAll(".row")) row.classList.toggle("chosen", row.node === which);
    detail.hidden = false;
    detail.replaceChildren(...leafText(tree, index, which));
    const picked = detail.querySelectorAll(".steps > div")[step];
    if (picked && known(step)) {
      picked.classList.add("picked");
      picked.parentElement.scrollTop = picked.offsetTop - picked.parentElement.offsetTop - 60;
    }
  };
  const draw = (room) => {
    const width = Math.max(room, 5 * scale.steps + 34); // so that a step can be hit; the card scrolls then
    const px = (width - 34) / scale.tokens;
    const order = [...tree.nodes.keys()].slice(1).sort((a, b) => tree.nodes[b].at - tree.nodes[a].at || a - b);
    const height = 46 + 24 * order.length;
    const picture = svg("svg", { width, height });
    const row = (which, x, y, tall, label) => {
      const click = (event) => choose(which, event.target.step);
      const group = svg("g", {
        class: which === chosen ? "row chosen" : "row", tabindex: 0, role: "button", "aria-label": label, click,
        keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(which); } },
      }, svg("rect", { class: "hit", x: Math.max(0, x - 2), y: y - 2, width: width - Math.max(0, x - 2), height: tall + 4, rx: 3 }));
      group.node = which;
      picture.append(group);
      return group;
    };
    const leaf = (group, node, y) => {
      const x = (node.at + node.tokens) * px + 14;
      const whole = node.reward === 1 || node.reward === 0;
      group.append(
        svg("circle", { cx: x, cy: y, r: 8, fill: node.reward > 0.5 ? "var(--good)" : "var(--bad)" }),
        svg("text", { x, y: y + 4, "text-anchor": "middle" }, whole ? (node.reward ? "✓" : "✗") : number(node.reward ?? 0)));
      const mark = group.lastChild;
      mark.style.fill = "var(--on)";
      if (!whole) mark.style.fontSize = "8px";
    };
    const strip = (group, segment, y, tall, from) => {
      const [owner, start, end, value, advantage] = segment;
      const [x, wide] = [(from + start) * px, Math.max(1, (end - start) * px - 1)];
      const bar = svg("rect", { x, y, width: wide, height: tall, rx: 2, fill: advantage >= 0 ? "var(--plus)" : "var(--minus)",
        "fill-opacity": advantage ? 0.2 + 0.6 * (Math.abs(advantage) / scale.advantage) : 0.1 });
      bar.addEventListener("pointermove", (event) => showTip(event,
        el("div", { class: "title" }, `segment of ${end - start} tokens`), pair(null, "value", number(value ?? 0)), pair(null, "advantage", signed(advantage ?? 0))));
      group.append(bar);
      const text = [`V ${number(Number((value ?? 0).toFixed(2)))}  A ${signed(advantage ?? 0)}`, signed(advantage ?? 0)].find((one) => one.length * 6.2 < wide);
      if (text) {
        const label = svg("text", { x: x + 5, y: y + tall / 2 + 4, "pointer-events": "none" }, text);
        label.style.fill = "var(--ink)";
        group.append(label);
      }
    };
    const top = 10;
    const body = row(0, 0, top, 33, `Trunk ${index + 1}: show its text`);
    tree.starts.forEach((start, k) => {
      const end = tree.starts[k + 1] ?? trunk.tokens;
      const cell = svg("rect", { x: start * px, y: top, width: Math.max(1, (end - start) * px - 1), height: 18, rx: 2,
        fill: "var(--accent)", "fill-opacity": 0.1 + 0.9 * ((tree.fci[k] ?? 0) / scale.fci) });
      cell.step = k;
      cell.addEventListener("pointermove", (event) => showTip(event,
        el("div", { class: "title" }, `step ${k}, ${end - start} tokens${tree.points.includes(start) ? ", branch point" : ""}`),
        pair(null, "FCI", number(tree.fci[k] ?? 0)), known(tree.entropy[k]) ? pair(null, "mean entropy", `${number(tree.entropy[k])} nats`) : "",
        el("div", { class: "text" }, stepText(tree, k).trim().slice(0, 240))));
      body.append(cell);
    });
    for (const segment of owned(tree, 0)) strip(body, segment, top + 20, 13, 0);
    leaf(body, trunk, top + 9);
    for (const point of tree.points) {
      const lowest = order.findLastIndex((node) => tree.nodes[node].at === point);
      const x = Math.max(4, point * px);
      picture.append(svg("path", { d: `M${x - 4},2h8l-4,7Z`, fill: "var(--ink)" }));
      if (lowest >= 0) picture.append(svg("path", { d: `M${x - 0.5},${top}V${top + 46 + 24 * lowest}`, stroke: "var(--ink)", "stroke-opacity": 0.5, fill: "none", "pointer-events": "none" }));
    }
    order.forEach((which, place) => {
      const node = tree.nodes[which];
      const y = top + 38 + 24 * place;
      const group = row(which, node.at * px, y, 16, `Trunk ${index + 1}, branch ${which}: show its text`);
      for (const segment of owned(tree, which)) strip(group, segment, y, 16, node.at);
      leaf(group, node, y + 8);
    });
    picture.addEventListener("pointerleave", hideTip);
    picture.addEventListener("pointerout", (event) => { if (!event.relatedTarget?.closest?.(".row")) hideTip(); });
    holder.replaceChildren(picture);
  };
  drawnIn(holder, draw);
  return card;
}

function leafText(tree, index, which) {
  const node = tree.nodes[which];
  const cut = tree.nodes[0].pieces.length === tree.starts.length;
  const before = which ? tree.starts.filter((start) => start < node.at).length : 0;
  const line = (kind, gutter, text) => el("div", { class: kind }, el("span", {}, gutter), el("span", {}, text.replace(/\n+$/, "")));
  const lines = [];
  if (which && !cut) lines.push(line("kept", "", `(the first ${node.at} tokens of the trunk)`));
  if (cut) for (let k = 0; k < before; k++) lines.push(line("kept", String(k), tree.nodes[0].pieces[k]));
  node.pieces.forEach((piece, k) => lines.push(line("own", cut || which === 0 ? String(before + k) : "", piece)));
  const path = [...(which ? owned(tree, 0).filter((one) => one[2] <= node.at) : []), ...owned(tree, which)];
  const close = el("button", { click: (event) => { event.target.closest(".detail").hidden = true; } }, "close");
  return [
    el("div", { class: "legend" },
      el("b", {}, which ? `Trunk ${index + 1}, branch ${which}` : `Trunk ${index + 1}`),
      el("span", { class: node.reward > 0.5 ? "tag good" : "tag bad" }, `reward ${number(node.reward ?? 0)}`),
      el("span", { class: "tag" }, `${node.at + node.tokens} tokens, ${which ? `${node.at} of them the trunk's, ` : ""}ended by ${node.finish}`), close),
    el("p", { class: "note" }, "Segments: ", path.map((one) => `V ${number(one[3] ?? 0)}, A ${signed(one[4] ?? 0)}`).join("; ") || "none"),
    el("div", { class: "steps", tabindex: 0 }, ...lines),
  ];
}

/* FCI over the step's index: the trunks of a problem against all trunks kept of the step. */
function drawInfluence(forest, all, step) {
  // Exactly 0 is what steps have that may not be branched at: the first, and the last ones, which none come after.
  const measured = (tree) => tree.fci.map((value) => value || null);
  const trunks = all.flatMap((one) => one.trees).map(measured).filter((fci) => fci.some(known));
  const enough = Math.max(1, trunks.length / 20); // a mean of fewer trunks says little
  const [x, mean, low, high] = [[], [], [], []];
  for (let k = 0; k < Math.max(0, ...trunks.map((fci) => fci.length)); k++) {
    const at = trunks.map((fci) => fci[k]).filter(known).sort((a, b) => a - b);
    if (at.length < enough) continue;
    x.push(k);
    mean.push(at.reduce((a, b) => a + b) / at.length);
    low.push(at[Math.floor((at.length - 1) * 0.1)]);
    high.push(at[Math.ceil((at.length - 1) * 0.9)]);
  }
  const lines = [
    ...forest.trees.map((tree, k) => ({ label: `trunk ${k + 1}`, paint: colour(k), x: measured(tree).map((_, j) => j), y: measured(tree),
      faint: true, width: 1.2, marks: tree.points.map((point) => tree.starts.indexOf(point)) })).filter((line) => line.y.some(known)),
    { label: "mean", paint: "var(--ink)", x, y: mean, width: 3 },
  ];
  if (!x.length) return el("p", {}, "No trunk kept of this step has a step with FCI.");
  const legend = el("div", { class: "legend" }, ...lines.map((line) => el("span", {}, swatch(line.paint), line.label)),
    el("span", {}, `Band: 10% to 90% of the ${trunks.length} trunks kept of training step ${step}. Dots: branch points. Steps that may not be branched at have no FCI.`));
  return chart({ title: "FCI over the step's index (figure 2)", tall: true, lines: () => lines, band: [x, low, high], legend, xLabel: "step of the response", xForm: String });
}

// --- attention --------------------------------------------------------------------------------------------------

function attention() {
  const usable = RUNS.map((run, index) => [index, run.name]).filter(([index]) => RUNS[index].attention.maps.length);
  const notes = RUNS.filter((run) => !run.attention.maps.length).map((run) => el("p", {}, (several ? `${run.name}: ` : "") + run.attention.note));
  if (!usable.length) return section("Attention from step to step", null, ...notes);
  const state = { run: usable[0][0], map: 0, kind: "max" };
  const controls = el("div", { class: "controls" });
  const note = el("p");
  const holder = el("div", { class: "map" });
  const canvas = el("canvas", { role: "img", "aria-label": "Attention from each step to each earlier step" });
  const list = el("ol", { start: 0 });
  holder.append(canvas);
  const current = () => RUNS[state.run].attention.maps[state.map];
  const margin = 26;
  const draw = (room) => {
    const map = current();
    const width = Math.min(room, 560);
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.height = width * ratio;
    canvas.style.width = canvas.style.height = `${width}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const cell = (width - margin) / map.steps;
    // What a step attends to within itself is not the question, and outshines the rest.
    const most = Math.max(1e-9, ...map[state.kind].flatMap((row, j) => row.slice(0, j)));
    pen.fillStyle = style.getPropertyValue("--accent");
    map[state.kind].forEach((row, j) => row.forEach((value, k) => {
      pen.globalAlpha = j === k ? 0.06 : Math.sqrt(Math.min(1, value / most));
      pen.fillRect(margin + k * cell, j * cell, cell + (cell > 6 ? -1 : 0.3), cell + (cell > 6 ? -1 : 0.3));
    }));
    pen.globalAlpha = 1;
    pen.fillStyle = style.getPropertyValue("--soft");
    pen.font = "11px system-ui, sans-serif";
    for (const k of ticks(0, map.steps - 1, 8).filter(Number.isInteger)) {
      pen.textAlign = "right";
      pen.fillText(k, margin - 5, (k + 0.5) * cell + 4);
      pen.textAlign = "center";
      pen.fillText(k, margin + (k + 0.5) * cell, width - margin + 16);
    }
    canvas.onpointermove = canvas.onpointerdown = (event) => {
      const box = canvas.getBoundingClientRect();
      const [j, k] = [Math.floor((event.clientY - box.top) / cell), Math.floor((event.clientX - box.left - margin) / cell)];
      mark(j, k);
      const value = map[state.kind][j]?.[k];
      if (!known(value)) return hideTip();
      showTip(event, el("div", { class: "title" }, `from step ${j} to step ${k}`), pair(null, "attention", number(value)));
    };
    canvas.onpointerleave = () => { mark(-1, -1); hideTip(); };
  };
  const mark = (from, to) => [...list.children].forEach((item, k) => {
    item.classList.toggle("from", k === from);
    item.classList.toggle("to", k === to && to <= from);
  });
  const redraw = drawnIn(holder, draw);
  function show() {
    const { attention: { note: text, maps }, name } = RUNS[state.run];
    const map = current();
    note.textContent = `${text} (first trunk of the problem). Rows attend, columns are attended to; the diagonal is left out, the scale is a square root.` +
      (map.steps < map.of ? ` The first ${map.steps} of ${map.of} steps.` : "");
    controls.replaceChildren(
      ...(several ? [select("run", usable, state.run, (run) => { state.run = run; state.map = 0; show(); })] : []),
      select("problem", maps.map((one, k) => [k, `${k + 1}. ${one.problem.slice(0, 60)}`]), state.map, (k) => { state.map = k; show(); }),
      select("layers and heads", [[0, "largest"], [1, "mean"]], state.kind === "max" ? 0 : 1, (k) => { state.kind = k ? "mean" : "max"; show(); }));
    list.replaceChildren(...map.labels.map((label) => el("li", {}, label)));
    redraw();
  }
  section("Attention from step to step", null, note, ...notes, controls, el("div", { class: "card heat" }, holder, list));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  show();
}

// --- the page ---------------------------------------------------------------------------------------------------

if (several) {
  document.getElementById("legend").append(...RUNS.map((run, index) => {
    const button = el("button", { "aria-pressed": "true", title: "show or hide", click: () => {
      if (!hidden.delete(index)) hidden.add(index);
      button.setAttribute("aria-pressed", String(!hidden.has(index)));
      redraws.forEach((draw) => draw());
    } }, swatch(colour(index)), run.name);
    return button;
  }));
}
document.title = `${RUNS.map((run) => run.name).join(", ")} - attnrl report`;
overview();
curves();
forests();
attention();
document.getElementById("footer").textContent =
  `attnrl ${DATA.version}. Curves of more than 600 steps are means of consecutive steps. Names of metrics: docs/metrics.md.`;
