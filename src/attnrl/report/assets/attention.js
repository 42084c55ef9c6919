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
    // The diagonal (attention within a step) would dominate the scale.
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
    note.textContent = `${text} (first trunk of the problem). Rows are queries, columns are keys; the diagonal is left out, the colour scale is a square root.` +
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
