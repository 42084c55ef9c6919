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

/* Draw a line chart. `lines()` returns [{label, paint, x, y, run, width, faint, marks}]; `band` is [x, low, high]. */
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
const rewardsTellMore = (evaluations) => evaluations.some((one) => known(one.reward) && one.reward !== one.accuracy);
function headline({ headline: head, settings, evaluations }) {
  const { before, after, steps, planned, tokens } = head;
  const reward = (one) => (one && known(one.reward) ? number(one.reward) : "–");
  const points = after ? 100 * (after.accuracy - before.accuracy) : 0;
  const over = !known(planned) || steps >= planned || (known(settings.tokens) && tokens >= settings.tokens);
  return [
    ["accuracy before", accuracy(before), before ? `held out, step ${before.step}` : "no evaluation"],
    ["accuracy after", accuracy(after),
      after ? `step ${after.step}, ${points >= 0 ? "+" : "−"}${Math.abs(points).toFixed(1)} points` : "no later evaluation"],
    // With the built-in graders the mean reward is the accuracy. Every run of a report needs the same rows.
    ...(RUNS.some((run) => rewardsTellMore(run.evaluations)) ? [
      ["reward before", reward(before), before ? "held out, mean of judged responses" : "no evaluation"],
      ["reward after", reward(after), after ? `step ${after.step}` : "no later evaluation"],
    ] : []),
    ["steps", known(steps) ? number(steps) : "–", over ? (known(steps) ? "finished" : "none yet") : `of ${planned}: not finished`],
    ["tokens sampled", known(tokens) ? number(tokens) : "–", "in training"],
    ["time", known(head.seconds) ? duration(head.seconds) : "–", "of training steps"],
    ["valid tokens", known(head.valid_ratio) ? percent(head.valid_ratio) : "–", "of the sampled tokens, mean over steps"],
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
      ...heads[0].map(([name], k) => row(name, heads.map((head) => name === "steps" && head[k][2].startsWith("of") ? `${head[k][1]} ${head[k][2]}` : head[k][1]))),
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

const SIGNAL = [
  ["initial/solve_all_ratio", "Initial: all correct", percent], ["initial/solve_none_ratio", "Initial: all wrong", percent],
  ["initial/valid_ratio", "Initial: rewards differ (valid)", percent], ["mc/solve_all_ratio", "Continuations: all correct", percent],
  ["mc/solve_none_ratio", "Continuations: all wrong", percent], ["mc/valid_ratio", "Continuations: rewards differ (valid)", percent],
  ["all/solve_all_ratio", "All leaves: all correct", percent], ["all/solve_none_ratio", "All leaves: all wrong", percent],
  ["all/valid_ratio", "All leaves: rewards differ (valid)", percent],
];
const BATCH = [
  ["all_correct_then_valid_ratio", "All correct, then made valid", percent], ["tokens/valid_ratio", "Valid tokens", percent],
  ["filtered_ratio", "Problems filtered", percent], ["prompt_batch_size", "Problems in the batch", number],
];
const POLICY = [
  ["reward", "Reward, all judged leaves", number], ["accuracy", "Correct, of all judged leaves", percent], ["entropy", "Entropy (nats)", number],
  ["response_length", "Response length (tokens)", number],
];
const SAMPLER = [
  ["time/generated_tokens_per_second", "Tokens sampled per second", number],
  ["branch/position", "Branch position, share of the trunk", percent],
  ["branch/beyond_first_steps_ratio", "Branches beyond the first steps", percent],
  ["branch/agreement_ratio", "Branches with the trunk's outcome", percent],
  ["truncated_ratio", "Truncated samples", percent], ["mismatch/mean", "Mismatch to the sampler, mean (nats)", number],
  ["mismatch/max", "Mismatch to the sampler, largest (nats)", number], ["carried_over", "Carried over to the next step", number],
];
const PHASES = ["generate", "grade", "score", "train", "sync", "plan"];

function curves() {
  if (RUNS.some((run) => run.evaluations.length)) {
    const over = (what, form, axis, xLabel, xForm) => chart({
      title: `Held-out ${what} over ${xLabel}`, form, xLabel, xForm, tall: true,
      lines: runLines(({ evaluations }) => ({
        x: evaluations.map((one) => one[axis]), y: evaluations.map((one) => one[what]),
        marks: evaluations.length < 60 ? evaluations.keys() : [],
      })),
    });
    const both = (what, form) => [over(what, form, "tokens", "tokens sampled", number),
      over(what, form, "seconds", "time of training", duration)];
    const rewards = RUNS.some((run) => rewardsTellMore(run.evaluations)) ? both("reward", number) : [];
    section("Learning curves", null, el("div", { class: "charts wide" }, ...both("accuracy", percent), ...rewards));
  } else {
    section("Learning curves", "No held-out evaluation in these runs.");
  }
  if (!RUNS.some((run) => run.columns.step)) {
    section("Training", "No training step is finished yet.");
    return;
  }
  const box = el("input", { type: "checkbox", change: () => { smooth = box.checked; redraws.forEach((draw) => draw()); } });
  box.checked = smooth;
  section("Training dynamics", "Figures 6 to 8 of the paper.",
    el("div", { class: "controls" }, el("label", {}, box, "running mean over 5% of the steps")),
    el("h3", {}, "Problems with a training signal (figure 6)"), metricCharts(SIGNAL, "charts three"),
    el("h3", {}, "Effect of adaptive sampling (figure 7)"), metricCharts(BATCH),
    el("h3", {}, "The policy (figure 8)"), metricCharts(POLICY));
  time();
  section("Sampler", null, metricCharts(SAMPLER));
  const drawn = new Set([...SIGNAL, ...BATCH, ...POLICY, ...SAMPLER].map(([name]) => name).concat("step"));
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
    for (const [name, values] of phases) { // one SVG path per phase keeps runs of 500 steps fast
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
  section("Time", "Seconds of each phase of a step, without evaluation and checkpoints.",
    several ? el("div", { class: "controls" }, select("run", choices, chosen, (index) => { chosen = index; redraw(); })) : null,
    el("figure", {}, el("div", { class: "legend" }, ...[...PHASES, "other"].map((name) => el("span", {}, swatch(`var(--${name})`), name))), holder));
}
