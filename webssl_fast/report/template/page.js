// Reads out the values under the pointer in the line below a chart's title. The page is complete without it.
for (const figure of document.querySelectorAll("figure[data-lines]")) {
  const { percent, lines } = JSON.parse(figure.dataset.lines);
  const readout = figure.querySelector(".readout");
  const summary = readout.textContent;
  const text = (v) => (v === null ? "not finite" : percent ? `${(100 * v).toFixed(1)} %` : v && Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4)));
  const nearest = (steps, step) =>
    steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best), 0);

  for (const svg of figure.querySelectorAll("svg[data-frame]")) {
    const [left, right, top, bottom, lastStep, low, high, isLog] = svg.dataset.frame.split(" ").map(Number);
    const cursor = svg.querySelector(".cursor");
    const scale = isLog ? Math.log10 : Number;
    const y = (v) => bottom - ((bottom - top) * (scale(v) - scale(low))) / (scale(high) - scale(low));

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const pixel = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
      const at = (lastStep * (pixel - left)) / (right - left);
      const drawn = lines.filter(([, steps]) => steps.length);
      if (!drawn.length) return;
      const step = drawn[0][1][nearest(drawn[0][1], at)];
      const x = left + ((right - left) * step) / lastStep;
      let marks = `<path d="M${x} ${top}V${bottom}"/>`;
      const values = lines.map(([name, steps, values], line) => {
        if (!steps.length) return "";
        const value = values[nearest(steps, step)];
        if (value !== null) marks += `<circle class="c${line % 6}" r="3.5" cx="${x}" cy="${y(value)}"/>`;
        return `${name} ${text(value)}`.trim();
      });
      cursor.innerHTML = marks;
      readout.textContent = `step ${step.toLocaleString("en")}: ${values.filter(Boolean).join(", ")}`;
      figure.classList.add("reading");
    });
    svg.addEventListener("pointerleave", () => {
      cursor.innerHTML = "";
      readout.textContent = summary;
      figure.classList.remove("reading");
    });
  }
}
