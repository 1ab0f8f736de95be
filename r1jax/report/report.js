// The page's interaction: charts in the place of pictures, and a browser of samples. The page is complete without it.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("report-data").textContent);
const settings = { window: 5, log: false };
const charts = new Map(); // panel element -> its uPlot

// ---- small things

const css = (element, name) => getComputedStyle(element).getPropertyValue(name).trim();
const words = name => name.replaceAll("_", " ");

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("e+", "e");
  return String(+value.toPrecision(3));
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

// Centered means over `window` values; a step without a value has none.
function smoothed(values, window) {
  const half = (window - 1) / 2;
  const around = i => values.slice(Math.max(0, i - half), i + half + 1).filter(v => v !== null);
  return values.map((value, i) => value === null ? null : mean(around(i)));
}

// ---- charts

// The lines of a metric at the steps of all runs: each step and the smoothed values of one run; of several runs the
// mean, lowest and highest of their smoothed values.
function lines(stage, metric) {
  const runs = data.stages[stage].filter(run => metric in run.metrics);
  const steps = [...new Set(runs.flatMap(run => run.steps))].sort((a, b) => a - b);
  const visible = value => value === undefined || (settings.log && value <= 0) ? null : value;
  const at = runs.map(run => {
    const byStep = new Map(run.steps.map((step, i) => [step, run.metrics[metric][i]]));
    return steps.map(step => visible(byStep.get(step) ?? undefined));
  });
  const groups = data.groups.map((label, group) => {
    const raw = at.filter((_, i) => runs[i].group === group);
    const smooth = raw.map(values => smoothed(values, settings.window));
    const over = reduce => steps.map((_, i) => reduce(smooth.map(values => values[i]).filter(v => v !== null)));
    const end = reduce => over(values => values.length ? reduce(...values) : null);
    return { label, group, raw, mean: over(mean), low: end(Math.min), high: end(Math.max) };
  });
  return { steps, groups: groups.filter(group => group.raw.length) };
}

function colour(panel, group) {
  return css(panel, data.groups.length > 1 ? `--group${group % 6}` : "--c");
}

// uPlot's series, its columns and its bands.
function seriesOf(panel, found, base) {
  const [series, columns, bands] = [[{}], [found.steps], []];
  const add = (values, options) => {
    series.push({ points: { show: found.steps.length < 2 }, spanGaps: true, ...options });
    return columns.push(values) - 1;
  };
  for (const { group, raw, mean, low, high } of found.groups) {
    const stroke = () => colour(panel, group);
    if (raw.length > 1) {
      const band = [high, low].map(values => add(values, { stroke, width: 0.5, alpha: 0.5 }));
      bands.push({ series: band, fill: () => colour(panel, group) + "30" });
    } else if (settings.window > 1) {
      add(raw[0], { stroke, width: 1, alpha: 0.35 });
    }
    add(mean, { stroke, width: 2 });
  }
  if (base !== null) add(found.steps.map(() => base), { stroke: () => css(panel, "--soft"), width: 1, dash: [4, 3] });
  return { series, columns, bands };
}

// The axis begins at 0, as in the pictures, but shows what is zoomed to in full height.
function range(chart, low, high) {
  if (low === null) return [0, 1];
  const [first, last] = chart.series[0].idxs ?? [0, 0];
  if (first > 0 || (last > 0 && last < chart.data[0].length - 1)) {
    const margin = (high - low || Math.abs(high) || 1) * 0.08;
    return [low - margin, high + margin];
  }
  const [bottom, top] = [Math.min(0, low), Math.max(0, high)];
  return Math.max(-bottom, top) < 1e-9 ? [0, 1] : [bottom, top + (top - bottom) * 0.05];
}

// A metric's values at the pointer, or at both ends where there is no pointer.
function showValues(panel, found, index) {
  const value = panel.querySelector(".value");
  value.replaceChildren();
  if (index !== null && index !== undefined) value.append(element("span", "soft", `step ${found.steps[index]}: `));
  for (const { group, label, raw, mean, low, high } of found.groups) {
    const known = mean.filter(v => v !== null);
    const text = element("b");
    if (data.groups.length > 1) text.style.color = `var(--group${group % 6})`;
    text.title = label;
    if (index === null || index === undefined) {
      value.append(element("span", "soft", `${short(known[0])} → `));
      text.textContent = short(known.at(-1));
    } else {
      const single = raw.length === 1;
      text.textContent = short(single ? raw[0][index] : mean[index]);
      if (!single) text.textContent += ` [${short(low[index])}, ${short(high[index])}]`;
    }
    value.append(text, " ");
  }
}

function draw(panel) {
  const { stage, metric } = panel.dataset;
  const base = panel.dataset.base === undefined || (settings.log && +panel.dataset.base <= 0) ? null : +panel.dataset.base;
  const found = lines(stage, metric);
  const { series, columns, bands } = seriesOf(panel, found, base);
  const plot = panel.querySelector(".plot");
  charts.get(panel)?.destroy();
  plot.replaceChildren();
  plot.classList.add("live");
  panel.querySelector(".steps")?.remove();
  const axis = { stroke: () => css(panel, "--soft"), font: "10.5px system-ui, sans-serif", ticks: { show: false } };
  const grid = { stroke: () => css(panel, "--line"), width: 1 };
  const labels = (_, values) => values.map(value => value === null ? "" : short(value));
  const chart = new uPlot({
    width: plot.clientWidth || 220, height: 118, padding: [6, 14, 0, 0], legend: { show: false }, series, bands,
    scales: { x: { time: false }, y: settings.log ? { distr: 3 } : { range } },
    axes: [
      { ...axis, size: 20, gap: 2, space: 46, grid: { show: false }, values: labels },
      { ...axis, size: 42, gap: 4, space: 26, grid, values: labels },
    ],
    cursor: { y: false, points: { size: 5 }, drag: { x: true, y: false }, sync: { key: stage } },
    hooks: { setCursor: [chart => showValues(panel, found, chart.cursor.idx)] },
  }, columns, plot);
  for (const kind of ["pointerdown", "pointermove"]) { // uPlot itself knows the mouse alone
    chart.over.addEventListener(kind, event => {
      if (event.pointerType === "touch") chart.setCursor({ left: event.offsetX, top: event.offsetY });
    });
  }
  charts.set(panel, chart);
  showValues(panel, found, null);
}

const resized = new ResizeObserver(entries => {
  for (const { target, contentRect } of entries) {
    const chart = charts.get(target);
    if (chart && contentRect.width && contentRect.width !== chart.width) chart.setSize({ width: contentRect.width, height: chart.height });
  }
});

function show(panel) {
  draw(panel);
  resized.observe(panel);
}

function makePanel(stage, metric) {
  const panel = element("div", "panel");
  Object.assign(panel.dataset, { stage, metric });
  const head = element("div", "head");
  head.append(element("span", "", words(metric)), element("span", "n value"));
  panel.append(head, element("div", "plot"));
  return panel;
}

// The charts of a fold are drawn when it is opened for the first time.
function openFold(fold) {
  if (fold.querySelector(".panels")) return;
  const { stage, metrics } = fold.dataset;
  const panels = element("div", "panels");
  fold.querySelector(".scroll").replaceWith(panels);
  for (const metric of JSON.parse(metrics)) {
    const panel = makePanel(stage, metric);
    panels.append(panel);
    show(panel);
  }
}

function startCharts() {
  for (const panel of document.querySelectorAll(".panel[data-metric]")) show(panel);
  for (const fold of document.querySelectorAll("details.fold")) fold.addEventListener("toggle", () => openFold(fold));
  const controls = document.getElementById("report-controls");
  if (!controls) return;
  controls.hidden = false;
  const redraw = () => charts.forEach((_, panel) => draw(panel));
  controls.querySelector("[name=window]").addEventListener("change", event => {
    settings.window = +event.target.value;
    redraw();
  });
  controls.querySelector("[name=log]").addEventListener("change", event => {
    settings.log = event.target.checked;
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

// ---- files of values

function download(name, rows) {
  const cell = value => /[",\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : value ?? "";
  const text = rows.map(row => row.map(cell).join(",") + "\n").join("");
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function metricRows(stage) {
  const runs = data.stages[stage];
  const names = [...new Set(runs.flatMap(run => Object.keys(run.metrics)))];
  const rows = runs.flatMap(run => run.steps.map((step, i) => [run.run, step, ...names.map(name => run.metrics[name]?.[i])]));
  return [["run", "step", ...names], ...rows];
}

function figureRows() {
  const names = [...new Set(data.figures.flatMap(column => Object.keys(column.figures)))];
  const rows = names.map(name => [name, ...data.figures.map(column => column.figures[name])]);
  return [["figure", ...data.figures.map(column => `${column.run}/${column.evaluation}`)], ...rows];
}

function startDownloads() {
  for (const button of document.querySelectorAll("button.csv")) {
    const { stage } = button.dataset;
    button.hidden = false;
    button.addEventListener("click", () => stage ? download(`${stage}.csv`, metricRows(stage)) : download("figures.csv", figureRows()));
  }
}

// ---- samples

const verdict = sample => sample.rewards.accuracy === 1 ? "right" : sample.rewards.accuracy === 0 ? "wrong" : "other";

function textOf(sample) {
  return sample.turns ? sample.turns.flat().join("\n") : sample.text;
}

// A text with its thinking folded.
function answer(text) {
  const end = text.indexOf("</think>");
  if (end < 0) return [element("span", "", text)];
  const fold = element("details");
  const thinking = text.slice(0, end).replace("<think>", "").trim();
  fold.append(element("summary", "", `thinking (words: ${thinking.split(/\s+/).filter(Boolean).length})`));
  fold.append(element("div", "thinking", thinking));
  return [fold, element("span", "", text.slice(end + "</think>".length).trimStart())];
}

function sampleCard(sample) {
  const card = element("div", "card");
  const where = [words(sample.stage), sample.step === null ? "" : `step ${sample.step}`, words(sample.source)];
  if (sample.trained === false) where.push("left out of training");
  const question = element("div", "question", sample.question);
  if ("accuracy" in sample.rewards) question.append(element("span", "soft", ` = ${sample.answer}`));
  const text = element("div", "text");
  for (const [said, observed] of sample.turns ?? [[sample.text, ""]]) {
    text.append(...answer(said));
    if (observed) text.append(element("div", "observed", observed));
  }
  if (!sample.finished) text.append(" …");
  const rewards = element("div", "rewards");
  if (sample.reward !== null) rewards.append(element("span", "", `reward ${short(sample.reward)}`));
  for (const [name, value] of Object.entries(sample.rewards)) {
    const shade = name === "accuracy" ? { 1: "good", 0: "bad" }[value] ?? "" : "";
    rewards.append(element("span", shade, `${words(name)} ${short(value)}`));
  }
  card.append(element("div", "after", where.filter(Boolean).join(" · ")), question, text, rewards);
  return card;
}

function startBrowser() {
  const browser = document.getElementById("report-browser");
  if (!browser) return;
  browser.hidden = false;
  const form = browser.querySelector("form");
  const list = browser.querySelector(".list");
  const more = browser.querySelector("button.more");
  let shown = 10;
  const option = (select, value) => select.append(new Option(words(String(value)), value));
  for (const stage of new Set(data.samples.map(sample => sample.stage))) option(form.stage, stage);
  const passes = sample =>
    (!form.stage.value || sample.stage === form.stage.value)
    && (!form.first.value || sample.step >= +form.first.value)
    && (!form.last.value || (sample.step !== null && sample.step <= +form.last.value))
    && (!form.low.value || (sample.reward !== null && sample.reward >= +form.low.value))
    && (!form.high.value || (sample.reward !== null && sample.reward <= +form.high.value))
    && (!form.verdict.value || verdict(sample) === form.verdict.value)
    && (!form.trained.value || String(sample.trained) === form.trained.value)
    && `${sample.question}\n${textOf(sample)}`.toLowerCase().includes(form.text.value.toLowerCase());
  const update = () => {
    const found = data.samples.filter(passes);
    browser.querySelector(".found").textContent = `${found.length} found`;
    list.replaceChildren(...found.slice(0, shown).map(sampleCard));
    more.hidden = found.length <= shown;
  };
  form.addEventListener("input", () => { shown = 10; update(); });
  form.addEventListener("submit", event => event.preventDefault());
  more.addEventListener("click", () => { shown += 20; update(); });
  update();
}

startCharts();
startDownloads();
startBrowser();
})();
