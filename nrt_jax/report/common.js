"use strict";
// What the page's other scripts share. Text from runs only ever becomes text nodes and attributes, never markup.
const RUNS = JSON.parse(document.getElementById("data").textContent).runs;
const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null) node.append(child);
  return node;
}
const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

// Numbers as people read them: four digits, and a true minus sign.
function format(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en").replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-4 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)));
  return text.replace(/-/g, "−");
}
const signed = (value) => (value > 0 ? "+" : "") + format(value);
const percent = (value) => (100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0) + " %";

function table(caption, head, rows) {
  return el("table", {},
    el("caption", { text: caption }),
    el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, rows.map(([first, ...rest]) =>
      el("tr", {}, el("th", { scope: "row", text: first }), rest.map((text) => el("td", { text }))))));
}

// Long tables are built when they are first opened.
function lazily(details, make) {
  details.addEventListener("toggle", () => { if (details.open && !details.dataset.made) { details.dataset.made = "1"; make(); } });
}

function swatch(index) {
  return svg("svg", { class: "swatch", viewBox: "0 0 24 8", "aria-hidden": "true" },
    svg("line", { class: `line series-${index % 6}`, x1: 0, x2: 24, y1: 4, y2: 4 }));
}

// A few round numbers from low to high.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
