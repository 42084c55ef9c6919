// --- forests ----------------------------------------------------------------------------------------------------

function forests() {
  const usable = RUNS.map((run, index) => [index, run.name]).filter(([index]) => RUNS[index].forests.some((one) => one.kept));
  if (!usable.length) {
    const any = RUNS.some((run) => run.forests.length);
    section("Forests", any ? "No forest fits the size limit (--max-mb)." : "These runs have logged no forests (log.trees_every).");
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
      state.loaded = parse(id); // parsed on demand
      state.id = id;
      // Show first a problem with branches and with correct and wrong leaves.
      const mixed = (one) => new Set(one.trees.flatMap((tree) => tree.nodes.map((node) => node.correct))).size > 1;
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
      const judged = rewards.filter(known);
      const mean = judged.length ? `reward ${(judged.reduce((a, b) => a + b, 0) / judged.length).toFixed(2)}` : "not judged";
      return `${k + 1}. ${one.filtered ? "filtered" : `${rewards.length} leaves`}, ${mean}: ${one.prompt.trim().slice(0, 70)}`;
    };
    controls.replaceChildren(
      ...(several ? [select("run", usable, state.run, (run) => { state.run = run; load(); })] : []),
      select("step", steps().map((one) => [one.step, one.kept < one.of ? `${one.step} (${one.kept} of ${one.of})` : String(one.step)]), state.step,
        (step) => { state.step = step; load(); }),
      select("problem", loaded.map((one, k) => [k, label(one, k)]), problem, go),
      el("button", { click: () => go(problem - 1), "aria-label": "previous problem" }, "←"),
      el("button", { click: () => go(problem + 1), "aria-label": "next problem" }, "→"),
    );
    redraws.length = fixed; // drop the charts of the previous problem
    place.replaceChildren(...drawProblem(loaded[problem], loaded, state.step));
  }
  const kept = RUNS.flatMap((run) => run.forests);
  const left = kept.reduce((sum, one) => sum + one.of - one.kept, 0);
  const note = left
    ? `${left} of ${kept.reduce((sum, one) => sum + one.of, 0)} logged forests are left out, the last forests of each step (size limit --max-mb ${DATA.megabytes}).`
    : "All logged forests are shown.";
  section("Forests", note, controls, place);
  const fixed = redraws.length;
  load();
}

function drawProblem(forest, all, step) {
  const tags = [
    el("span", { class: "tag" }, `answer ${forest.answers.join(" or ")}`),
    el("span", { class: known(forest.root) ? "tag" : "tag warn" }, known(forest.root) ? `root value ${number(forest.root)}` : "no response is judged"),
    forest.filtered ? el("span", { class: "tag warn" }, "filtered: not expanded, not trained on (eq. 8)") : null,
  ];
  const values = forest.trees.flatMap((tree) => tree.influence).filter(known);
  const scale = {
    fci: Math.max(...values, 1e-9),
    advantage: Math.max(...forest.trees.flatMap((tree) => tree.segments.map((one) => Math.abs(one[4] ?? 0))), 1e-9),
    tokens: Math.max(...forest.trees.flatMap((tree) => tree.nodes.map((node) => node.at + node.tokens)), 1),
    steps: Math.max(...forest.trees.map((tree) => tree.starts.length), 1),
  };
  const key = el("div", { class: "legend note" },
    el("span", {}, swatch("var(--accent)"), "step: the stronger the colour, the higher the FCI"), el("span", {}, "▾ branch point"),
    el("span", {}, swatch("var(--plus)"), "advantage above 0"), el("span", {}, swatch("var(--minus)"), "below 0"),
    el("span", {}, "end of a row: ✓ correct, ✗ not correct, another reward than 1 and 0 as a number, ? not judged. Click a row to show the text."));
  return [
    el("div", { class: "card" }, ...tags, el("div", { class: "prompt" }, forest.prompt)),
    key,
    ...forest.trees.map((tree, index) => drawTree(tree, index, scale)),
    drawInfluence(forest, all, step),
  ];
}

function rewardTag(node) {
  if (!known(node.reward)) return el("span", { class: "tag warn" }, "not judged");
  return el("span", { class: node.correct ? "tag good" : "tag bad" }, `${node.correct ? "correct" : "not correct"}, reward ${number(node.reward)}`);
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
      rewardTag(trunk),
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
    const width = Math.max(room, 5 * scale.steps + 34); // every step stays clickable; a wide card scrolls
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
      const whole = !known(node.reward) || node.reward === Number(node.correct);
      group.append(
        svg("circle", { cx: x, cy: y, r: 8, fill: !known(node.reward) ? "var(--soft)" : node.correct ? "var(--good)" : "var(--bad)" }),
        svg("text", { x, y: y + 4, "text-anchor": "middle" }, !known(node.reward) ? "?" : whole ? (node.correct ? "✓" : "✗") : number(node.reward)));
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
        fill: "var(--accent)", "fill-opacity": 0.1 + 0.9 * ((tree.influence[k] ?? 0) / scale.fci) });
      cell.step = k;
      cell.addEventListener("pointermove", (event) => showTip(event,
        el("div", { class: "title" }, `step ${k}, ${end - start} tokens${tree.points.includes(start) ? ", branch point" : ""}`),
        pair(null, "FCI", number(tree.influence[k] ?? 0)), known(tree.entropy[k]) ? pair(null, "mean entropy", `${number(tree.entropy[k])} nats`) : "",
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
      rewardTag(node),
      el("span", { class: "tag" }, `${node.at + node.tokens} tokens, ${which ? `${node.at} of them the trunk's, ` : ""}ended by ${node.finish}`), close),
    el("p", { class: "note" }, "Segments: ", path.map((one) => `V ${number(one[3] ?? 0)}, A ${signed(one[4] ?? 0)}`).join("; ") || "none"),
    el("div", { class: "steps", tabindex: 0 }, ...lines),
  ];
}

/* Draw FCI over the step index: the trunks of one problem, and all logged trunks of the training step. */
function drawInfluence(forest, all, step) {
  // Ineligible steps (the first step and the last steps) have an FCI of exactly 0.
  const measured = (tree) => tree.influence.map((value) => value || null);
  const trunks = all.flatMap((one) => one.trees).map(measured).filter((fci) => fci.some(known));
  const enough = Math.max(1, trunks.length / 20); // no mean over fewer than 5% of the trunks
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
  if (!x.length) return el("p", {}, "No logged trunk of this training step has a step with FCI.");
  const legend = el("div", { class: "legend" }, ...lines.map((line) => el("span", {}, swatch(line.paint), line.label)),
    el("span", {}, `Band: 10% to 90% quantiles of the ${trunks.length} logged trunks of training step ${step}. Dots: branch points. Ineligible steps have no FCI.`));
  return chart({ title: "FCI over the step's index (figure 2)", tall: true, lines: () => lines, band: [x, low, high], legend, xLabel: "step of the response", xForm: String });
}
