// Overview, alarms, config and environment; then the page draws itself.
function flatten(value, prefix = "") {
  return Object.entries(value).flatMap(([name, inner]) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner) ? flatten(inner, `${prefix}${name}.`) : [[prefix + name, JSON.stringify(inner)]]);
}

const last = (run, name) => points(run, name).map(([, value]) => value).pop();

const rewards = (weights) => ["intrinsic", "verifiable", "format", "judge"].filter((name) => weights[name])
  .map((name) => name === "intrinsic" ? weights.mode : name).join(" + ");

function drawOverview() {
  byId("runs").textContent = RUNS.map((run) => run.name).join(", ");
  const rows = [
    ["model", (run) => run.config.model], ["data", (run) => [run.config.data ?? "–"].flat().join(", ")],
    ["objective", (run) => run.config.objective === "nrt" ? `nrt, ${rewards(run.config.reward ?? {})}` : run.config.objective],
    ["steps", (run) => `${format(run.last_step)} of ${format(run.config.steps)}`],
    ["accuracy", (run) => "accuracy_after" in run.summary ? `${format(run.summary.accuracy_before)} → ${format(run.summary.accuracy_after)}` : format(last(run, "accuracy"))],
    ["accuracy, empty trace", (run) => "accuracy_empty_trace_after" in run.summary ?
      `${format(run.summary.accuracy_empty_trace_before)} → ${format(run.summary.accuracy_empty_trace_after)}` : "–"],
    ["reward gain, last", (run) => format(last(run, "reward_gain"))],
    ["seconds", (run) => format(run.summary.seconds && Math.round(run.summary.seconds))],
    ["devices", (run) => run.environment.map((start) => start.devices).pop() || run.summary.device || "–"],
  ];
  byId("overview").append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Overview" },
    table("Runs", ["", ...RUNS.map((run) => run.name)], rows.map(([name, get]) => [name, ...RUNS.map((run) => get(run))]))));
  const alarms = RUNS.flatMap((run) => run.alarms.map((alarm) => el("li", { class: "alarm" },
    el("strong", { text: `${RUNS.length > 1 ? `${run.name}, ` : ""}step ${alarm.step}: ` }), alarm.message)));
  byId("alarms").append(el("h3", { text: "Alarms" }),
    alarms.length ? el("ul", { class: "alarms" }, alarms) : el("p", { class: "muted", text: "None: no sign of collapse was seen." }));
}

function drawConfig() {
  const flat = RUNS.map((run) => new Map(flatten(run.config)));
  const names = [...new Set(flat.flatMap((config) => [...config.keys()]))];
  const row = (name) => [name, ...flat.map((config) => config.get(name) ?? "(absent)")];
  const scroll = (label, ...children) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, children);
  const head = ["field", ...RUNS.map((run) => run.name)];
  if (RUNS.length > 1) {
    const differing = names.filter((name) => new Set(flat.map((config) => config.get(name))).size > 1);
    byId("config-body").append(scroll("Differences", table("Fields that differ", head, differing.map(row))));
  }
  const all = el("details", { open: RUNS.length === 1 }, el("summary", { text: "All fields" }), scroll("All fields", table("Config", head, names.map(row))));
  const shown = ["command", "code", "jax", "python", "platform", "devices", "processes"];
  const starts = RUNS.flatMap((run) => run.environment.map((start) => [`${RUNS.length > 1 ? `${run.name}, ` : ""}from step ${start.step}, ` +
    new Date(start.time * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC", ...shown.map((name) => format(start[name]))]));
  byId("config-body").append(all, el("h3", { text: "Environment" }), starts.length ?
    scroll("Environment", table("Starts", ["start", ...shown], starts)) : el("p", { class: "muted", text: "Not recorded: the run is older than environment.jsonl." }));
}

drawOverview();
drawCurves();
drawTraces();
drawDifficulty();
drawConfig();
document.documentElement.dataset.ready = "1";
