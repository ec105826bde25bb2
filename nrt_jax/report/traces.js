// The trace inspector: groups of a question's traces, a page of them at a time.
const PAGE_SIZE = 5;
const LEVELS = [0.02, 0.1, 0.3, 0.6]; // |c - c_base| from which a token is coloured by level 1, 2, 3, 4.
const GROUPS = RUNS.flatMap((run, index) => run.groups.map((group) => ({
  ...group, run: index,
  text: [group.question, group.reference, ...group.traces.map((trace) => trace.text)].join("\n").toLowerCase() })));
let chosen = GROUPS, page = 0;

const KINDS = {
  all: () => true,
  differ: (group) => !KINDS.equal(group),
  equal: (group) => group.traces.every((trace) => trace.reward === group.traces[0].reward),
  empty: (group) => group.traces.some((trace) => !trace.text.trim()),
  truncated: (group) => group.traces.some((trace) => !trace.finished),
};

const probability = (logProb) => logProb === null || logProb === undefined ? null : Math.exp(logProb);
// Spaces at the ends of a token, and line breaks, can be seen.
const visible = (text) => text.replace(/\n/g, "↵\n") || "·";

function tokenNumbers(group, trace) {
  return group.reference_tokens.map((text, i) => {
    const c = probability(trace.log_probs[i]), base = probability(group.base_log_probs[i]);
    const gain = c === null || base === null ? null : c - base;
    const level = gain === null ? 0 : LEVELS.filter((limit) => Math.abs(gain) >= limit).length;
    return { text, c, base, gain, style: level ? `${gain > 0 ? "up" : "down"}-${level}` : "level-0" };
  });
}

const inWords = ({ text, c, base, gain }) =>
  `token ${JSON.stringify(text)}: ${format(c)} with the trace, ${format(base)} without, difference ${gain === null ? "–" : signed(gain)}`;

// The answer: one stop of the keyboard, whose arrows go from token to token; numbers on hover, focus and tap.
function answer(group, trace) {
  const tokens = tokenNumbers(group, trace);
  const readout = el("p", { class: "readout tokens-readout", "aria-hidden": "true", text: "Point at a token, or use the arrow keys." });
  const options = tokens.map((token, i) => el("span", {
    role: "option", "aria-selected": "false", tabindex: i ? "-1" : "0", class: `token ${token.style}`, "aria-label": inWords(token),
    text: visible(token.text) }));
  const choose = (i) => {
    options.forEach((option, j) => { option.setAttribute("aria-selected", String(i === j)); option.tabIndex = i === j ? 0 : -1; });
    readout.textContent = inWords(tokens[i]);
  };
  const of = (event) => options.indexOf(event.target);
  const list = el("div", { class: "tokens", role: "listbox", "aria-orientation": "horizontal", "aria-label": "Reference answer, token by token" }, options);
  for (const kind of ["pointerover", "click", "focusin"]) list.addEventListener(kind, (event) => { if (of(event) >= 0) choose(of(event)); });
  list.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || of(event) < 0) return;
    event.preventDefault();
    options[Math.min(Math.max(of(event) + moves[event.key], 0), options.length - 1)].focus();
  });
  const numbers = el("details", {}, el("summary", { text: "Numbers of all tokens" }));
  lazily(numbers, () => numbers.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of all tokens" },
    table("c with the trace, c_base without", ["token", "c", "c_base", "c − c_base"],
      tokens.map(({ text, c, base, gain }) => [JSON.stringify(text), format(c), format(base), gain === null ? "–" : signed(gain)])))));
  return [el("h5", { text: "Reference answer after this trace" }), list, readout, numbers];
}

function traceItem(group, trace, rank) {
  const title = `#${rank + 1}  advantage ${trace.advantage === null ? "–" : signed(trace.advantage)}  reward ${format(trace.reward)}  ` +
    `${trace.tokens} token${trace.tokens === 1 ? "" : "s"}${trace.finished ? "" : ", cut at the limit"}`;
  const start = trace.text.trim().slice(0, 60);
  const details = el("details", { class: "trace" }, el("summary", {}, el("span", { class: "numbers", text: title }),
    el("span", { class: "muted start", text: start || "(empty trace)" })));
  lazily(details, () => details.append(
    el("h5", { text: "Trace" }), el("p", { class: trace.text.trim() ? "text" : "text muted", text: trace.text.trim() ? trace.text : "(empty)" }),
    ...(trace.log_probs ? answer(group, trace) : [el("h5", { text: "Reference answer" }), el("p", { class: "text", text: group.reference })])));
  if (rank === 0) { details.open = true; details.dispatchEvent(new Event("toggle")); }
  return el("li", {}, details);
}

function groupItem(group) {
  const facts = [RUNS.length > 1 ? RUNS[group.run].name : null, `step ${group.step}`,
    "reward_empty_trace" in group ? `reward of the empty trace ${format(group.reward_empty_trace)}` : null].filter((x) => x !== null);
  return el("article", { class: "group" }, el("h3", { class: "text", text: group.question }), el("p", { class: "muted", text: facts.join(" · ") }),
    el("h4", { text: `${group.traces.length} traces by advantage` }), el("ol", { class: "trace-list" }, group.traces.map((trace, i) => traceItem(group, trace, i))));
}

function turnTo(number) {
  const pages = Math.max(Math.ceil(chosen.length / PAGE_SIZE), 1);
  page = Math.min(Math.max(number, 0), pages - 1);
  byId("groups").replaceChildren(...chosen.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE).map(groupItem));
  byId("count").textContent = `${chosen.length} question${chosen.length === 1 ? "" : "s"}, page ${page + 1} of ${pages}`;
  // Not `disabled`, which would take the focus from who turns pages by keyboard.
  byId("previous").setAttribute("aria-disabled", String(page === 0));
  byId("next").setAttribute("aria-disabled", String(page === pages - 1));
}

function filter() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const run = byId("run").value, step = byId("trace-step").value, kind = KINDS[byId("kind").value];
  chosen = GROUPS.filter((group) => (run === "" || group.run === Number(run)) && (step === "" || group.step === Number(step)) &&
    kind(group) && words.every((word) => group.text.includes(word)));
  turnTo(0);
}

function drawTraces() {
  if (!GROUPS.length) {
    byId("traces").replaceChildren(byId("traces-title"), el("p", { class: "muted",
      text: "No traces were kept: the run is older than traces.jsonl, learns from demonstrations, or has --report.every 0." }));
    return;
  }
  const option = (value, text) => el("option", { value, text });
  byId("run").append(option("", "all"), ...RUNS.map((run, i) => option(i, run.name)));
  byId("run-label").hidden = RUNS.length < 2;
  const steps = [...new Set(GROUPS.map((group) => group.step))].sort((a, b) => a - b);
  byId("trace-step").append(option("", "all"), ...steps.map((step) => option(step, step)));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["search", "run", "trace-step", "kind"]) byId(id).addEventListener("input", filter);
  byId("previous").addEventListener("click", () => turnTo(page - 1));
  byId("next").addEventListener("click", () => turnTo(page + 1));
  const shades = [..."4321"].map((i) => [`down-${i}`, `−${LEVELS[i - 1]}`]).concat([["level-0", "0"]], [..."1234"].map((i) => [`up-${i}`, `+${LEVELS[i - 1]}`]));
  byId("scale").append("less likely ", ...shades.map(([style, text]) => el("span", { class: `token ${style}`, text })), " likelier with the trace");
  const left = RUNS.filter((run) => run.num_groups > run.groups.length);
  if (left.length) byId("traces-title").after(el("p", { class: "muted", text: left.map((run) =>
    `${run.name}: ${run.groups.length} of ${run.num_groups} questions are shown, evenly over the run.`).join(" ") }));
  filter();
}
