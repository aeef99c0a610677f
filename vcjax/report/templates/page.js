"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const STATUSES = ["changed", "added", "removed", "moved", "unchanged"];
const SHOWN_AT_FIRST = 60; // rows of the tree that is unfolded when the page opens
const AT_ONCE = 150; // rows that are drawn at once; laying out 2,000 takes seconds

// -- numbers ------------------------------------------------------------------

const real = (value) => (typeof value === "number" ? value : value === "Infinity" ? Infinity : NaN);

const formats = [4, 6].map((digits) => new Intl.NumberFormat("en", { maximumSignificantDigits: digits }));
const count = new Intl.NumberFormat("en");

function number(value, digits = 4) {
  const x = real(value);
  if (Number.isNaN(x)) return "";
  if (!Number.isFinite(x)) return "∞";
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return x.toExponential(2);
  return formats[digits === 6 ? 1 : 0].format(x);
}

function percent(value) {
  const x = real(value);
  if (Number.isNaN(x)) return "";
  if (!Number.isFinite(x)) return "from 0";
  const p = 100 * x;
  return p !== 0 && p < 0.01 ? p.toExponential(1) + " %" : p.toFixed(2) + " %";
}

// -- elements -----------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// -- the tree -----------------------------------------------------------------

/* A module has children and the figures of all its leaves together; a module that holds
   nothing but another one is shown as one row with it. */
const modules = new Map(data.modules.map((module) => [module.path, module]));
const root = { path: "", children: new Map(), leaves: 0 };
for (const leaf of data.leaves) {
  const parts = leaf.path.split("/");
  let node = root;
  for (let depth = 1; depth < parts.length; depth++) {
    const path = parts.slice(0, depth).join("/");
    if (!node.children.has(path)) node.children.set(path, { path, children: new Map() });
    node = node.children.get(path);
  }
  // A leaf may have the path of a module, or of another leaf, on the other side.
  node.children.set(leaf.status + ":" + leaf.path, { path: leaf.path, leaf });
}

function folded(node, above) {
  let inner = node;
  while (!inner.leaf && inner.children.size === 1) {
    const only = inner.children.values().next().value;
    if (only.leaf) break;
    inner = only;
  }
  inner.name = inner.path.slice(above ? above.length + 1 : 0) || "(root)";
  if (inner.leaf) {
    inner.stats = inner.leaf.stats;
    inner.statuses = { [inner.leaf.status]: 1 };
    return inner;
  }
  const module = modules.get(inner.path);
  inner.stats = module ? module.stats : null;
  inner.statuses = module ? module.counts : {};
  inner.children = byName([...inner.children.values()].map((child) => folded(child, inner.path)));
  return inner;
}

/* layers_9 before layers_10 */
function byName(nodes) {
  return nodes.sort((a, b) => a.path.localeCompare(b.path, "en", { numeric: true }));
}
const top_ = byName([...root.children.values()].map((child) => folded(child, "")));

// -- columns ------------------------------------------------------------------

const figure = (name) => (node) => (node.stats ? real(node.stats[name]) : NaN);
const order = (node) => STATUSES.findIndex((status) => node.statuses[status]);
const COLUMNS = [
  { name: "leaf", first: true, text: true, key: (node) => node.path },
  { name: "status", words: true, key: order },
  { name: "shape", words: true, text: true, key: (node) => (node.leaf ? node.leaf.shape : "") },
  { name: "relative", key: figure("relative_l2"), title: "|new − old| / |old|" },
  { name: "l2", key: figure("l2"), show: number, title: "|new − old|" },
  { name: "max", key: figure("max_abs"), show: number, title: "largest difference of an element" },
  { name: "elements", key: figure("fraction_changed"), show: percent, title: "elements that differ" },
  { name: "cosine", key: figure("cosine"), show: (x) => number(x, 6), title: "of the angle between old and new" },
  { name: "sign flips", key: figure("sign_flips"), show: number, title: "elements whose sign changed" },
  { name: "update", words: true, text: true, key: (node) => (node.leaf && node.stats && node.stats.update) || "",
    title: "the kind of update that would express the change in the fewest bytes" },
];

const state = {
  sort: null, // {column, descending}
  query: "",
  statuses: new Set(STATUSES.filter((status) => data.counts[status])),
  view: "tree",
  unfolded: new Set(),
  open: new Set(), // leaves whose details are shown
};
if (state.statuses.size > 1) state.statuses.delete("unchanged");

function sorted(nodes) {
  if (!state.sort) return nodes;
  const { column, descending } = state.sort;
  const sign = descending ? -1 : 1;
  const last = (x) => (column.text ? x === "" : Number.isNaN(x)); // what has no figure comes last
  return [...nodes].sort((a, b) => {
    const x = column.key(a), y = column.key(b);
    if (last(x) || last(y)) return last(x) - last(y);
    return sign * (column.text ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

function matches(node) {
  if (!state.statuses.has(node.leaf.status)) return false;
  const path = node.path.toLowerCase();
  return state.query.split(/\s+/).every((word) => path.includes(word));
}

function gathered(nodes, found = []) {
  for (const node of nodes) {
    if (!node.leaf) gathered(node.children, found);
    else if (matches(node)) found.push(node);
  }
  return found;
}

/* The rows to show, as [node, level], with modules that hold nothing of interest left out. */
function visible() {
  if (state.view === "list") return sorted(gathered(top_)).map((node) => [node, 0]);
  const rows = [];
  const some = (node) => (node.leaf ? matches(node) : node.children.some(some));
  const add = (nodes, level) => {
    for (const node of sorted(nodes)) {
      if (!some(node)) continue;
      rows.push([node, level]);
      if (!node.leaf && (state.query || state.unfolded.has(node.path))) add(node.children, level + 1);
    }
  };
  add(top_, 0);
  return rows;
}

const largest = Math.max(...data.leaves.map((leaf) => (leaf.stats ? real(leaf.stats.relative_l2) : 0)).filter(Number.isFinite), 0);

function relativeCell(node) {
  const value = figure("relative_l2")(node);
  const cell = element("td");
  if (Number.isNaN(value)) return cell;
  const bar = element("i");
  bar.style.width = (Number.isFinite(value) ? (largest ? 100 * Math.min(1, value / largest) : 0) : 100) + "%";
  cell.append(element("div", { class: "size" }, element("span", {}, percent(value)), bar));
  return cell;
}

function statusCell(node) {
  if (node.leaf) return element("td", { class: "words" }, element("span", { class: "status " + node.leaf.status }, node.leaf.status));
  const parts = STATUSES.filter((status) => node.statuses[status]).map((status) => element("span", { class: "count", title: status },
    element("span", { class: "dot " + status }), count.format(node.statuses[status]), element("span", { class: "hidden" }, " " + status + " ")));
  return element("td", { class: "words" }, ...parts);
}

function row(node, level) {
  const open = node.leaf ? state.open.has(node.path) : Boolean(state.query) || state.unfolded.has(node.path);
  const button = element("button", { type: "button", class: "toggle path", "aria-expanded": open },
    element("span", { class: "mark", "aria-hidden": "true" }, "›"), state.view === "list" ? node.path || "(root)" : node.name);
  if (node.leaf && node.leaf.old_path !== null) button.append(" ← " + node.leaf.old_path);
  button.addEventListener("click", () => toggle(node));
  const head = element("th", { scope: "row", class: "first" }, button);
  head.style.paddingLeft = 0.7 + 1.25 * level + "rem";
  const made = element("tr", { class: (node.leaf ? "leaf " + node.leaf.status : "module") }, head, statusCell(node));
  made.dataset.path = node.path;
  made.append(element("td", { class: "words" }, node.leaf ? node.leaf.shape : ""), relativeCell(node));
  for (const column of COLUMNS.slice(4)) {
    const value = column.key(node);
    made.append(element("td", column.words ? { class: "words" } : {}, column.show ? column.show(value) : value));
  }
  return made;
}

function toggle(node) {
  const set = node.leaf ? state.open : state.unfolded;
  if (!set.delete(node.path)) set.add(node.path);
  const before = done, scroller = document.querySelector(".scroll.table"), place = scroller.scrollTop;
  render();
  if (done < before) more(before - done);
  scroller.scrollTop = place;
  const again = [...document.querySelectorAll("#rows tr")].find((one) => one.dataset.path === node.path);
  if (again) again.querySelector("button").focus({ preventScroll: true });
}

const HIDDEN = new Set(["histogram", "singular_values", "energy"]);

function detail(node) {
  const leaf = node.leaf;
  const facts = element("dl", { class: "facts" });
  const fact = (name, value) => facts.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  if (leaf.note) fact("kept", leaf.note);
  for (const [name, value] of Object.entries(leaf.stats || {})) {
    if (HIDDEN.has(name) || value === null || typeof value === "object") continue;
    fact(name.replaceAll("_", " "), typeof value === "string" && Number.isNaN(real(value)) ? value : number(value));
  }
  if (!facts.children.length) fact("figures", leaf.status === "changed" ? "none for this leaf" : "none: its content is as it was, or has nothing to be compared with");
  return element("tr", { class: "detail" }, element("td", { colspan: COLUMNS.length }, facts, charts(leaf)));
}

// -- charts -------------------------------------------------------------------

const WIDTH = 200, HEIGHT = 92, LEFT = 4, BOTTOM = 78, TOP = 6;

function chart(label) {
  const made = drawn("svg", { class: "chart", viewBox: "0 0 " + WIDTH + " " + HEIGHT, role: "img", "aria-label": label });
  made.append(drawn("title", {}, label), drawn("line", { class: "axis", x1: LEFT, x2: WIDTH - LEFT, y1: BOTTOM, y2: BOTTOM }));
  return made;
}

function histogram(leaf) {
  const { counts, edges } = leaf.stats.histogram;
  const low = edges[0], high = edges[edges.length - 1];
  const made = chart("Histogram of new − old of " + leaf.path + ", from " + number(low) + " to " + number(high));
  const tall = Math.log1p(Math.max(...counts)) || 1;
  const place = (x) => LEFT + ((WIDTH - 2 * LEFT) * (x - low)) / (high - low || 1);
  counts.forEach((amount, i) => {
    if (!amount) return;
    const height = ((BOTTOM - TOP) * Math.log1p(amount)) / tall;
    made.append(drawn("rect", { class: "bar", x: place(edges[i]), width: Math.max(0.6, place(edges[i + 1]) - place(edges[i]) - 0.4), y: BOTTOM - height, height }));
  });
  if (low < 0 && high > 0) made.append(drawn("line", { class: "zero", x1: place(0), x2: place(0), y1: TOP, y2: BOTTOM }));
  made.append(drawn("text", { x: LEFT, y: HEIGHT - 3 }, number(low)), drawn("text", { x: WIDTH - LEFT, y: HEIGHT - 3, "text-anchor": "end" }, number(high)));
  return made;
}

function spectrum(leaf) {
  const values = leaf.stats.singular_values;
  const positive = values.filter((value) => value > 0);
  const made = chart("Singular values of new − old of " + leaf.path + ": " + values.length + ", the largest " + number(values[0]));
  if (!positive.length) return made;
  const high = Math.log10(Math.max(...positive)), low = Math.max(Math.log10(Math.min(...positive)), high - 8);
  const across = (i) => LEFT + 4 + ((WIDTH - 2 * LEFT - 8) * i) / Math.max(1, values.length - 1);
  const up = (value) => BOTTOM - 3 - ((BOTTOM - TOP - 3) * (Math.max(Math.log10(value), low) - low)) / (high - low || 1);
  const points = values.map((value, i) => [across(i), value > 0 ? up(value) : BOTTOM]);
  made.append(drawn("polyline", { class: "curve", points: points.map((point) => point.join(",")).join(" ") }));
  for (const [x, y] of points) made.append(drawn("circle", { class: "point", cx: x, cy: y, r: 1.7 }));
  made.append(drawn("text", { x: LEFT, y: HEIGHT - 3 }, "1: " + number(values[0])),
    drawn("text", { x: WIDTH - LEFT, y: HEIGHT - 3, "text-anchor": "end" }, values.length + ": " + number(values[values.length - 1])));
  return made;
}

const hasHistogram = (leaf) => Boolean(leaf.stats && leaf.stats.histogram && leaf.stats.histogram.counts.length);
const hasSpectrum = (leaf) => Boolean(leaf.stats && leaf.stats.singular_values && leaf.stats.singular_values.length);

function charts(leaf) {
  const made = element("div", { class: "charts" });
  if (hasHistogram(leaf)) made.append(histogram(leaf));
  if (hasSpectrum(leaf)) made.append(spectrum(leaf));
  return made;
}

function gallery() {
  const found = data.leaves.filter((leaf) => hasHistogram(leaf) || hasSpectrum(leaf));
  found.sort((a, b) => real(b.stats.l2) - real(a.stats.l2));
  for (const leaf of found.slice(0, 9)) {
    const words = [percent(leaf.stats.relative_l2)];
    if (leaf.stats.effective_rank !== undefined && leaf.stats.effective_rank !== null) words.push("effective rank " + number(leaf.stats.effective_rank));
    document.getElementById("gallery").append(element("figure", { class: "card" },
      element("figcaption", {}, element("span", { class: "path" }, leaf.path), element("small", {}, words.join(" · "))), charts(leaf)));
  }
  document.getElementById("shapes").hidden = !found.length;
}

// -- the heat map -------------------------------------------------------------

function heatMap() {
  const { rows, columns, cells } = data.heat;
  if (!columns.length) return;
  const values = cells.flat().filter((cell) => cell && cell.value > 0).map((cell) => Math.log10(real(cell.value))).filter(Number.isFinite);
  const high = Math.max(...values), low = Math.max(Math.min(...values), high - 4); // four decades
  document.getElementById("heat-low").textContent = values.length ? (low === Math.min(...values) ? "" : "≤ ") + percent(10 ** low) : "";
  document.getElementById("heat-high").textContent = values.length ? percent(10 ** high) : "";
  const table = document.getElementById("heat-map");
  const heads = columns.map((name) => element("th", { scope: "col" }, element("span", { title: name }, name)));
  table.append(element("thead", {}, element("tr", {}, element("td"), ...heads)));
  const body = element("tbody");
  let first = true;
  rows.forEach((name, i) => {
    const line = element("tr", {}, element("th", { scope: "row", class: "path" }, name || "(root)"));
    for (const cell of cells[i]) {
      const made = element("td");
      if (cell) {
        const value = real(cell.value);
        const amount = Number.isNaN(value) ? cell.status : value === 0 ? cell.status : percent(value);
        made.className = "leaf " + kind(cell.status, value);
        const share = Number.isFinite(value) ? (Math.log10(value) - low) / (high - low || 1) : 1;
        if (value > 0) made.style.setProperty("--h", Math.round(100 * Math.min(1, Math.max(high === low ? 1 : 0, share))));
        made.title = cell.path + ": " + amount;
        made.setAttribute("aria-label", amount);
        made.tabIndex = first ? 0 : -1; // one stop; arrow keys go on
        made.dataset.leaf = cell.path;
        first = false;
      }
      line.append(made);
    }
    body.append(line);
  });
  table.append(body);
  const go = (event) => {
    const cell = event.target.closest("td[data-leaf]");
    if (cell) reveal(cell.dataset.leaf);
  };
  body.addEventListener("click", go);
  body.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); return go(event); }
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    let line = cell.parentElement.sectionRowIndex + step[0], place = cell.cellIndex + step[1];
    while (body.rows[line] && body.rows[line].cells[place] && place > 0) {
      const next = body.rows[line].cells[place];
      if (next.dataset.leaf !== undefined) {
        cell.tabIndex = -1;
        next.tabIndex = 0;
        return next.focus();
      }
      line += step[0];
      place += step[1];
    }
  });
  document.getElementById("heat").hidden = false;
}

function kind(status, value) {
  if (Number.isNaN(value)) return ["added", "removed"].includes(status) ? status + "-cell" : "none";
  return value === 0 ? "same" : Number.isFinite(value) ? "heat-cell" : "from-zero";
}

/* Shows a leaf in the table, with its details. */
function reveal(path) {
  const leaf = data.leaves.find((one) => one.path === path);
  state.query = document.getElementById("search").value = "";
  if (!state.statuses.has(leaf.status)) {
    state.statuses.add(leaf.status);
    document.querySelector('#statuses input[value="' + leaf.status + '"]').checked = true;
  }
  const parts = path.split("/");
  for (let depth = 1; depth < parts.length; depth++) state.unfolded.add(parts.slice(0, depth).join("/"));
  state.open.add(path);
  render();
  const place = rows.findIndex(([node]) => node.leaf && node.path === path);
  if (place >= done) more(place + AT_ONCE - done);
  const row = [...document.querySelectorAll("#rows tr.leaf")].find((one) => one.dataset.path === path);
  row.classList.add("found");
  row.scrollIntoView({ block: "center" });
  row.querySelector("button").focus({ preventScroll: true });
}

// -- drawing the table --------------------------------------------------------

function heads() {
  const line = document.getElementById("heads");
  line.replaceChildren(...COLUMNS.map((column) => {
    const active = state.sort && state.sort.column === column;
    const arrow = active ? (state.sort.descending ? " ↓" : " ↑") : "";
    const button = element("button", { type: "button", title: column.title || "" }, column.name + arrow);
    button.addEventListener("click", () => { // once, the other way round, then as it was
      const natural = !(column.text || column.words);
      if (active && state.sort.descending !== natural) state.sort = null;
      else state.sort = { column, descending: active ? !natural : natural };
      render();
      document.querySelectorAll("#heads button")[COLUMNS.indexOf(column)].focus();
    });
    const head = element("th", { scope: "col", class: column.first ? "first" : column.words ? "words" : "" }, button);
    if (active) head.setAttribute("aria-sort", state.sort.descending ? "descending" : "ascending");
    return head;
  }));
}

let rows = []; // what visible() gave
let done = 0; // how many of them are drawn
const body = document.getElementById("rows");

function render() {
  heads();
  rows = visible();
  done = 0;
  body.replaceChildren();
  more();
  const matching = gathered(top_).length;
  document.getElementById("shown").textContent = count.format(matching) + " of " + count.format(data.leaves.length) + " leaves";
}

/* Draws the next rows; the last one, when it comes into view, asks for those after it. */
function more(limit = AT_ONCE) {
  const made = document.createDocumentFragment();
  for (const [node, level] of rows.slice(done, done + limit)) {
    made.append(row(node, level));
    if (node.leaf && state.open.has(node.path)) made.append(detail(node));
  }
  done = Math.min(rows.length, done + limit);
  if (body.lastElementChild && body.lastElementChild.classList.contains("more")) body.lastElementChild.remove();
  body.append(made);
  if (done === rows.length) return;
  const button = element("button", { type: "button", class: "toggle" }, "Show more: " + count.format(rows.length - done) + " rows are left");
  button.addEventListener("click", () => more());
  const last = element("tr", { class: "more" }, element("td", { colspan: COLUMNS.length, class: "first" }, button));
  body.append(last);
  watcher.disconnect();
  watcher.observe(last);
}

const watcher = new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) more(); });
addEventListener("beforeprint", () => more(Infinity));

function everyModule(nodes, found = []) {
  for (const node of nodes) if (!node.leaf) { found.push(node.path); everyModule(node.children, found); }
  return found;
}

/* Unfolds level by level as long as few rows show. */
function unfoldSome() {
  for (;;) {
    const before = new Set(state.unfolded);
    for (const [node] of visible()) if (!node.leaf) state.unfolded.add(node.path);
    if (visible().length > SHOWN_AT_FIRST && before.size) state.unfolded = before;
    if (state.unfolded.size === before.size) return;
  }
}

function controls() {
  for (const status of STATUSES.filter((one) => data.counts[one])) {
    const box = element("input", { type: "checkbox", value: status });
    box.checked = state.statuses.has(status);
    box.addEventListener("change", () => { box.checked ? state.statuses.add(status) : state.statuses.delete(status); render(); });
    document.getElementById("statuses").append(element("label", {}, box, status));
  }
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  const search = document.getElementById("search");
  search.addEventListener("input", () => { state.query = search.value.trim().toLowerCase(); render(); });
  for (const choice of document.querySelectorAll("input[name=view]")) {
    choice.addEventListener("change", () => { state.view = choice.value; render(); });
  }
  document.getElementById("expand").addEventListener("click", () => { state.unfolded = new Set(everyModule(top_)); render(); });
  document.getElementById("collapse").addEventListener("click", () => { state.unfolded.clear(); state.open.clear(); render(); });
}

controls();
unfoldSome();
heatMap();
gallery();
render();
