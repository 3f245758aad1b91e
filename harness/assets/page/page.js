"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CHUNK = 150;
const state = { board: 0, sort: null, descending: false, rows: [], drawn: 0 };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
}

const unique = (values) => [...new Set(values)].sort();
const head = (metric) => metric.name + (metric.unit ? ` (${metric.unit})` : "") + (metric.higher ? " ↑" : " ↓");
const shown = (value, metric) => (value === null || value === undefined ? "–" : value.toFixed(metric.decimals));

// Every value of a model at its image size, whichever board it stands on, for plots and budgets.
const joined = new Map();
for (const [number, board] of data.boards.entries()) {
  for (const row of board.rows) {
    const known = joined.get(row.identity) ?? new Map();
    joined.set(row.identity, known);
    board.metrics.forEach((metric, index) => {
      if (row.values[index] === null) return;
      const found = { value: row.values[index], interval: row.intervals[index], metric };
      known.set(`${number}:${metric.name}`, found);
      if (!known.has(metric.name)) known.set(metric.name, found);
    });
  }
}

function parseBudget(text) {
  return text.split(",").filter((part) => part.trim()).map((part) => {
    const found = /^\s*([\w.]+)\s*(<=|>=|<|>)\s*(-?[\d.]+(?:e-?\d+)?)\s*$/.exec(part);
    if (!found || Number.isNaN(Number(found[3]))) throw new Error(`"${part.trim()}" is no budget; write for example gmacs<5.`);
    if (![...joined.values()].some((known) => known.has(found[1]))) throw new Error(`No board has a metric named "${found[1]}".`);
    return { name: found[1], sign: found[2], limit: Number(found[3]) };
  });
}

function within(row, budget) {
  return budget.every(({ name, sign, limit }) => {
    const found = joined.get(row.identity)?.get(name);
    if (!found) return false;
    const value = found.value;
    return { "<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit }[sign];
  });
}

function chosenRows() {
  const board = data.boards[state.board];
  let budget = [];
  try {
    budget = parseBudget($("budget").value);
    $("budget-error").textContent = "";
  } catch (error) {
    $("budget-error").textContent = error.message;
  }
  const text = $("text").value.toLowerCase(), size = parseFloat($("size").value), family = $("family").value;
  const rows = board.rows.filter((row) =>
    (!text || row.label[0].toLowerCase().includes(text)) && (!family || row.family === family) &&
    (Number.isNaN(size) || (joined.get(row.identity).get("parameters")?.value ?? Infinity) <= size) && within(row, budget));
  if (state.sort !== null) {
    const key = state.sort < 0 ? (row) => row.label[-state.sort - 1] : (row) => row.values[state.sort];
    const sign = state.descending ? -1 : 1;
    rows.sort((a, b) => {
      const [first, second] = [key(a), key(b)];
      if (first === second) return a.rank - b.rank;
      if (first === null || first === undefined) return 1;
      if (second === null || second === undefined) return -1;
      return (first < second ? -1 : 1) * sign;
    });
  }
  return rows;
}

function sortBy(index, metric) {
  const first = metric ? metric.higher : false;
  state.descending = state.sort === index ? !state.descending : first;
  state.sort = index;
  draw();
}

function drawHead(board) {
  const cell = (text, index, metric, left) => {
    const order = state.sort === index ? (state.descending ? "descending" : "ascending") : "none";
    return make("th", { scope: "col", class: (left ? "left " : "") + (index === -1 ? "model" : ""), "aria-sort": order },
      make("button", { type: "button", onclick: () => sortBy(index, metric) }, text));
  };
  const rank = make("th", { scope: "col" }, make("button", { type: "button", onclick: () => { state.sort = null; draw(); } }, "#"));
  const labels = ["model", "weights", "image"].map((name, index) => cell(name, -index - 1, null, true));
  $("table").tHead.replaceChildren(make("tr", {}, rank, ...labels, ...board.metrics.map((metric, index) => cell(head(metric), index, metric))));
}

function drawRow(row, board) {
  const rank = row.ranks && row.ranks[0] !== row.ranks[1] ? `${row.rank} (${row.ranks[0]}–${row.ranks[1]})` : `${row.rank}${row.tied ? "=" : ""}`;
  const name = make("button", { type: "button", onclick: () => openDetails(row.model) }, row.label[0]);
  const cells = board.metrics.map((metric, index) => {
    const text = shown(row.values[index], metric), interval = row.intervals[index];
    const cell = make("td", { class: text === board.best[index] ? "best" : "" }, text);
    if (interval) cell.append(make("span", { class: "interval" }, ` [${interval.map((end) => shown(end, metric)).join(", ")}]`));
    return cell;
  });
  const notes = row.note ? [make("span", { class: "interval" }, ` ${row.note}`)] : [];
  return make("tr", {}, make("td", {}, rank), make("td", { class: "left model" }, name, ...notes),
    ...row.label.slice(1).map((text) => make("td", { class: "left" }, text)), ...cells);
}

function drawMore() {
  const board = data.boards[state.board], end = Math.min(state.drawn + CHUNK, state.rows.length);
  const fragment = document.createDocumentFragment();
  for (; state.drawn < end; state.drawn++) fragment.append(drawRow(state.rows[state.drawn], board));
  $("table").tBodies[0].append(fragment);
  if (state.drawn < state.rows.length) {
    const started = state.rows;
    setTimeout(() => { if (state.rows === started) drawMore(); });
  }
}

function draw() {
  const board = data.boards[state.board];
  if (!board) { $("board-title").textContent = "There are no ranked records yet."; return; }
  $("board-title").textContent = board.title;
  $("conditions").textContent = board.conditions.map(([label, value]) => `${label} ${value}`).join(", ");
  drawHead(board);
  state.rows = chosenRows();
  state.drawn = 0;
  $("table").tBodies[0].replaceChildren();
  $("count").textContent = `${state.rows.length} of ${board.rows.length} rows`;
  drawMore();
  drawPlot();
}

function boardsChosen() {
  return data.boards.map((board, index) => [index, board]).filter(([, board]) =>
    (!$("task").value || board.task === $("task").value) && (!$("hardware").value || board.hardware === $("hardware").value));
}

function chooseBoards() {
  const found = boardsChosen();
  fill($("board"), found.map(([index, board]) => [index, `${board.title} · ${board.rows.length}`]));
  if (found.length) pickBoard(found[0][0]);
}

function pickBoard(index) {
  state.board = Number(index);
  state.sort = null;
  $("board").value = index;
  const board = data.boards[state.board], axes = board.metrics.map((metric) => [`${state.board}:${metric.name}`, head(metric)]);
  for (const [number, other] of data.boards.entries())
    if (number !== state.board && other.machineBound)
      other.metrics.forEach((metric) => axes.push([`${number}:${metric.name}`, `${head(metric)} · ${other.title}${other.hardware ? `, ${other.hardware}` : ""}`]));
  fill($("y"), axes);
  fill($("x"), axes);
  const cost = axes.findIndex(([key], place) => place > 0 && /:(gmacs|parameters)$/.test(key));
  $("x").value = axes[Math.max(cost, 0)][0];
  fill($("family"), [["", "all"], ...unique(board.rows.map((row) => row.family)).map((name) => [name, name])]);
  draw();
}

function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of [1, 2, 5]) { const value = step * 10 ** power; if (value >= low * 0.999 && value <= high * 1.001) found.push(value); }
    return found;
  }
  const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
  return found;
}

function scale(values, from, to, logarithmic) {
  let low = Math.min(...values), high = Math.max(...values);
  const f = logarithmic ? Math.log : (value) => value;
  const pad = (f(high) - f(low)) * 0.06 || Math.abs(f(high)) * 0.06 || 1;
  [low, high] = logarithmic ? [low * Math.exp(-pad), high * Math.exp(pad)] : [low - pad, high + pad];
  const place = (value) => from + ((f(value) - f(low)) / (f(high) - f(low))) * (to - from);
  return { place, ticks: ticks(low, high, logarithmic) };
}

function pareto(points, x, y) {
  const at = (point) => [x.metric.higher ? -point.x : point.x, y.metric.higher ? -point.y : point.y];
  const order = [...points].sort((a, b) => at(a)[0] - at(b)[0] || at(a)[1] - at(b)[1]);
  let best = Infinity;
  return order.filter((point) => at(point)[1] < best && ((best = at(point)[1]), true));
}

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function drawPlot() {
  const [xKey, yKey] = [$("x").value, $("y").value];
  const points = state.rows.map((row) => ({ row, a: joined.get(row.identity)?.get(xKey), b: joined.get(row.identity)?.get(yKey) }))
    .filter(({ a, b }) => a && b).map(({ row, a, b }) => ({ row, x: a.value, y: b.value, a, b }));
  const logarithmic = $("log").checked && points.every((point) => point.x > 0);
  if (!points.length) { $("plot").replaceChildren(make("p", { class: "note" }, "No model here has both values.")); return; }
  const wide = 900, tall = 420, x = scale(points.map((p) => p.x), 70, wide - 20, logarithmic);
  const y = scale(points.flatMap((p) => [p.y, ...(p.b.interval ?? [])]), tall - 50, 15, false);
  const names = { x: points[0].a.metric, y: points[0].b.metric };
  const picture = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": `${head(names.y)} against ${head(names.x)} for ${points.length} models` });
  for (const tick of x.ticks) picture.append(svg("line", { class: "grid", x1: x.place(tick), x2: x.place(tick), y1: 15, y2: tall - 50 }), svg("text", { x: x.place(tick), y: tall - 32, "text-anchor": "middle" }, +tick.toPrecision(3)));
  for (const tick of y.ticks) picture.append(svg("line", { class: "grid", x1: 70, x2: wide - 20, y1: y.place(tick), y2: y.place(tick) }), svg("text", { x: 62, y: y.place(tick) + 4, "text-anchor": "end" }, +tick.toPrecision(4)));
  picture.append(svg("text", { x: wide / 2, y: tall - 10, "text-anchor": "middle" }, head(names.x)), svg("text", { x: 14, y: tall / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${tall / 2})` }, head(names.y)));
  const front = pareto(points, points[0].a, points[0].b);
  for (const point of points) {
    const [px, py] = [x.place(point.x), y.place(point.y)];
    if (point.b.interval) picture.append(svg("line", { class: "bar", x1: px, x2: px, y1: y.place(point.b.interval[0]), y2: y.place(point.b.interval[1]) }));
    const dot = svg("circle", { class: "dot", cx: px, cy: py, r: 4 });
    dot.append(svg("title", {}, `${point.row.label[0]}: ${shown(point.y, names.y)}, ${shown(point.x, names.x)}`));
    picture.append(dot);
  }
  for (const point of front) {
    picture.append(svg("circle", { class: "front", cx: x.place(point.x), cy: y.place(point.y), r: 8 }));
    if (front.length <= 15) picture.append(svg("text", { x: x.place(point.x) + 10, y: y.place(point.y) - 8 }, point.row.label[0]));
  }
  $("plot").replaceChildren(picture);
}

function table(headings, rows) {
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...headings.map((text) => make("th", { scope: "col", class: "left" }, text)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", { class: "left" }, text)))))));
}

function openDetails(number) {
  const model = data.models[number];
  $("details-title").textContent = model.name;
  const parts = model.records.map((record) => {
    const rows = record.measurements.map(([number, value, reason]) => {
      const [name, unit] = data.quantities[number];
      return [name, value === null ? `– ${reason}` : `${+value.toPrecision(6)} ${unit}`];
    });
    const about = { ...record.about, data: data.data[record.data], setup: data.setups[record.setup], environment: data.environments[record.environment] };
    return make("details", { open: model.records.length === 1 }, make("summary", {}, `${record.task} · ${record.provenance} · ${record.key}${record.refused ? ` · not ranked: ${record.refused}` : ""}`),
      table(["metric", "value"], rows), make("pre", {}, record.command || "no command"), make("pre", {}, JSON.stringify(about, null, 1)));
  });
  const facts = model.published.length ? [make("h3", {}, "Published and claimed"), table(["metric", "value", "measured", "difference", "source"], model.published)] : [];
  $("details-body").replaceChildren(...facts, ...parts);
  $("details").showModal();
}

function start() {
  $("summary").textContent = data.summary;
  fill($("task"), [["", "all"], ...unique(data.boards.map((board) => board.task)).map((name) => [name, name])]);
  fill($("hardware"), [["", "all"], ...unique(data.boards.map((board) => board.hardware).filter(Boolean)).map((name) => [name, name])]);
  for (const id of ["task", "hardware"]) $(id).addEventListener("change", chooseBoards);
  $("board").addEventListener("change", (event) => pickBoard(event.target.value));
  for (const id of ["text", "size", "budget", "family"]) $(id).addEventListener("input", draw);
  for (const id of ["x", "y", "log"]) $(id).addEventListener("input", drawPlot);
  for (const id of ["filters", "axes"]) $(id).addEventListener("submit", (event) => event.preventDefault());
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--ground").trim() === "#14171c";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  $("left-out").replaceChildren(...data.leftOut.map(([name, why]) => make("li", { class: "refused" }, `${name}: ${why}`)));
  $("left-out-section").hidden = !data.leftOut.length;
  chooseBoards();
  if (!data.boards.length) draw();
}

start();
