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
