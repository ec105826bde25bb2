// Curves of the metrics: one small chart each, all runs in it, and one step marked in all of them.
const TITLES = {
  reward: ["Reward", "mean of the step's traces"],
  reward_gain: ["Reward gain", "over the empty trace"],
  accuracy: ["Accuracy", "on held-out questions"],
  held_out_preference_accuracy: ["Preferences", "share of held-out pairs whose margin is above 0"],
  answer_prob: ["p(answer)", "of the whole reference answer, after a trace"],
  entropy: ["Entropy", "nats a sampled token"],
  trace_length: ["Trace length", "tokens"],
  empty_trace_share: ["Empty traces", "share"],
  equal_group_share: ["Groups without advantage", "share whose advantages are all 0"],
  truncated_share: ["Samples at the limit", "share without a stop token"],
  loss: ["Loss", ""],
  gradient_norm: ["Gradient norm", "before clipping"],
  approximate_kl: ["KL of the step", "of the policy to the one that sampled, last update"],
  reference_kl: ["KL to the reference", ""],
  sampler_trainer_kl: ["KL of sampler and trainer", "numerics alone"],
};
const WIDTH = 340, HEIGHT = 190, LEFT = 46, RIGHT = 14, TOP = 8, BOTTOM = 22;
const STEPS = [...new Set(RUNS.flatMap((run) => run.curves.flatMap(({ steps }) => steps)))].sort((a, b) => a - b);
const charts = [];

function points(run, name) {
  const found = run.curves.find(({ metrics }) => Object.hasOwn(metrics, name));
  return found ? found.steps.map((step, i) => [step, found.metrics[name][i]]) : [];
}

// The mean of a point and of the four on each side.
function smoothed(curve) {
  return curve.map(([step], i) => {
    const near = curve.slice(Math.max(i - 4, 0), i + 5);
    return [step, near.reduce((sum, [, value]) => sum + value, 0) / near.length];
  });
}

class Chart {
  constructor(name) {
    [this.title, this.unit] = TITLES[name] || [name, ""];
    this.name = name;
    this.curves = RUNS.map((run) => points(run, name));
    const values = this.curves.flat().map(([, value]) => value);
    let low = Math.min(...values), high = Math.max(...values);
    if (low === high) { low -= Math.abs(low) / 2 || 0.5; high += Math.abs(high) / 2 || 0.5; }
    const steps = [STEPS[0], Math.max(STEPS[STEPS.length - 1], STEPS[0] + 1)];
    this.x = (step) => LEFT + ((step - steps[0]) / (steps[1] - steps[0])) * (WIDTH - LEFT - RIGHT);
    this.y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    this.range = [low, high, ...steps];
    this.lines = svg("g", {});
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.dots = svg("g", {});
    this.readout = el("p", { class: "readout" });
    this.draw(false);
  }

  describe() {
    return this.title + ". " + RUNS.map((run, i) => {
      const curve = this.curves[i];
      if (!curve.length) return `${run.name}: none`;
      const values = curve.map(([, value]) => value);
      return `${run.name}: from ${format(values[0])} at step ${curve[0][0]} to ${format(values[values.length - 1])} at step ` +
        `${curve[curve.length - 1][0]}, lowest ${format(Math.min(...values))}, highest ${format(Math.max(...values))}`;
    }).join("; ");
  }

  figure() {
    const [low, high, first, last] = this.range;
    const grid = ticks(low, high, 4).map((value) => [
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: this.y(value), y2: this.y(value) }),
      svg("text", { class: "tick", x: LEFT - 5, y: this.y(value) + 4, "text-anchor": "end", text: format(value) })]);
    const below = [...new Set(ticks(first, last, 4).filter(Number.isInteger))].map((step) =>
      svg("text", { class: "tick", x: this.x(step), y: HEIGHT - 6, "text-anchor": "middle", text: format(step) }));
    const alarms = RUNS.flatMap((run, i) => run.alarms.map((alarm) =>
      svg("line", { class: "alarm-line", x1: this.x(alarm.step), x2: this.x(alarm.step), y1: TOP, y2: HEIGHT - BOTTOM })));
    const area = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": this.describe() },
      grid, below, alarms, this.lines, this.cursor, this.dots);
    const follow = (event) => {
      const box = area.getBoundingClientRect();
      const step = first + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (last - first);
      let best = 0;
      STEPS.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(STEPS[best] - step)) best = i; });
      byId("step").value = best;
      mark();
    };
    area.addEventListener("pointermove", follow);
    area.addEventListener("pointerdown", follow);
    return el("figure", { class: "chart", "data-metric": this.name },
      el("figcaption", {}, el("h3", { text: this.title }), el("span", { class: "muted", text: this.unit })), area, this.readout);
  }

  draw(isSmooth) {
    const path = (curve) => curve.map(([step, value], i) => `${i ? "L" : "M"}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`).join("");
    this.lines.replaceChildren(...this.curves.flatMap((curve, i) => {
      const line = (drawn, faint) => svg("path", { class: `line series-${i % 6}${faint ? " faint" : ""}`, d: path(drawn) });
      if (curve.length === 1) return [svg("circle", { class: `dot series-${i % 6}`, cx: this.x(curve[0][0]), cy: this.y(curve[0][1]), r: 3 })];
      return isSmooth && curve.length > 9 ? [line(curve, true), line(smoothed(curve), false)] : [line(curve, false)];
    }));
  }

  // Marks a step: each run's last value at or before it.
  mark(step) {
    this.cursor.setAttribute("x1", this.x(step));
    this.cursor.setAttribute("x2", this.x(step));
    const found = this.curves.map((curve) => curve.filter(([s]) => s <= step).pop());
    this.dots.replaceChildren(...found.flatMap((point, i) => point ?
      [svg("circle", { class: `dot series-${i % 6}`, cx: this.x(point[0]), cy: this.y(point[1]), r: 3 })] : []));
    this.readout.replaceChildren(...found.map((point, i) => el("span", {},
      RUNS.length > 1 ? swatch(i) : null, point ? `${format(point[1])}${point[0] === step ? "" : ` (step ${point[0]})`}` : "–")));
  }
}

function mark() {
  const step = STEPS[byId("step").value];
  byId("step-value").textContent = format(step);
  byId("step").setAttribute("aria-valuetext", `step ${step}`);
  for (const chart of charts) if (chart.isShown) chart.mark(step);
}

function show(names, parent) {
  for (const name of names) {
    const chart = new Chart(name);
    chart.isShown = true;
    charts.push(chart);
    parent.append(chart.figure());
    if (byId("smooth").checked) chart.draw(true);
  }
}

function drawCurves() {
  const names = [...new Set(RUNS.flatMap((run) => run.curves.flatMap(({ metrics }) => Object.keys(metrics))))];
  if (!names.length) {
    byId("curves").replaceChildren(byId("curves-title"), el("p", { class: "muted", text: "No step has been recorded yet." }));
    return;
  }
  byId("legend").replaceChildren(...RUNS.map((run, i) => el("li", {}, swatch(i), run.name)));
  const first = Object.keys(TITLES).filter((name) => names.includes(name));
  const rest = names.filter((name) => !(name in TITLES)).sort();
  byId("step").max = STEPS.length - 1;
  byId("step").value = STEPS.length - 1;
  byId("step").addEventListener("input", mark);
  byId("smooth").addEventListener("change", () => charts.forEach((chart) => chart.draw(byId("smooth").checked)));
  show(first, byId("charts"));
  lazily(byId("more-charts"), () => { show(rest, byId("more-charts").querySelector(".charts")); mark(); });
  byId("more-charts").hidden = !rest.length;
  lazily(byId("numbers"), () => byId("numbers").querySelector(".scroll").append(table("First, last, lowest and highest value",
    ["metric", ...RUNS.flatMap((run) => ["first", "last", "lowest", "highest"].map((x) => RUNS.length > 1 ? `${run.name}: ${x}` : x))],
    [...first, ...rest].map((name) => [name, ...RUNS.flatMap((run) => {
      const values = points(run, name).map(([, value]) => value);
      return values.length ? [values[0], values[values.length - 1], Math.min(...values), Math.max(...values)].map(format) : ["–", "–", "–", "–"];
    })]))));
  mark();
}

// Bars over named ranges, one series a run; `value` is null where there is none.
function bars(title, unit, labels, series) {
  const values = series.flatMap((one) => one.values).filter((value) => value !== null);
  const low = Math.min(0, ...values), high = Math.max(0, ...values, low + 1e-6);
  const y = (value) => HEIGHT - 34 - ((value - low) / (high - low)) * (HEIGHT - TOP - 34);
  const slot = (WIDTH - LEFT - RIGHT) / labels.length, width = (slot - 3) / series.length;
  const shapes = series.flatMap((one, i) => one.values.map((value, bin) => value === null ? null : svg("rect", {
    class: `bar series-${i % 6}`, x: LEFT + bin * slot + i * width, width: Math.max(width - 1, 1),
    y: Math.min(y(value), y(0)), height: Math.max(Math.abs(y(value) - y(0)), 0.5) },
    svg("title", { text: `${one.name}, ${labels[bin]}: ${format(value)}` }))));
  const described = series.map((one) => `${one.name}: ${labels.map((label, bin) => `${label} ${format(one.values[bin])}`).join(", ")}`);
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("h3", { text: title }), el("span", { class: "muted", text: unit })),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${described.join("; ")}` },
      ticks(low, high, 4).map((value) => [
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { class: "tick", x: LEFT - 5, y: y(value) + 4, "text-anchor": "end", text: format(value) })]),
      labels.map((label, bin) => svg("text", { class: "tick small", x: LEFT + (bin + 0.5) * slot, y: HEIGHT - 20, "text-anchor": "middle", text: label })),
      svg("text", { class: "tick", x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle", text: "nats" }), shapes),
    el("ul", { class: "legend" }, series.map((one, i) => el("li", {}, swatch(i), one.name))));
}

function drawDifficulty() {
  const runs = RUNS.filter((run) => run.difficulty);
  if (!runs.length) { byId("difficulty").hidden = true; return; }
  const labels = runs[0].difficulty.map(({ low, high }) => high === null ? `≥${low}` : `${low}–${high}`);
  const prefix = (run) => runs.length > 1 ? `${run.name}: ` : "";
  const share = runs.map((run) => {
    const total = run.difficulty.reduce((sum, bin) => sum + bin.count, 0);
    return { name: `${prefix(run)}share of tokens`, values: run.difficulty.map((bin) => bin.count / total) };
  });
  const gains = runs.flatMap((run) => [["before", "gain_before"], ["after", "gain_after"]]
    .filter(([, key]) => run.difficulty.some((bin) => bin[key] !== null))
    .map(([when, key]) => ({ name: `${prefix(run)}${when} training`, values: run.difficulty.map((bin) => bin[key]) })));
  byId("difficulty-charts").append(bars("Difficulty", "share of answer tokens", labels, share),
    bars("Gain by difficulty", "mean c − c_base", labels, gains));
  lazily(byId("difficulty-numbers"), () => byId("difficulty-numbers").querySelector(".scroll").append(table(
    "Answer tokens by difficulty", ["−log c_base, nats", ...runs.flatMap((run) => ["tokens", "gain before", "gain after"].map((x) => prefix(run) + x))],
    labels.map((label, bin) => [label, ...runs.flatMap(({ difficulty }) =>
      [difficulty[bin].count, difficulty[bin].gain_before, difficulty[bin].gain_after].map(format))]))));
}
