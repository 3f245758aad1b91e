"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CHUNK = 150;
const state = { board: null, sort: "rank", descending: false, rows: [], drawn: 0, axes: new Map(), model: null, view: null, wide: 0 };

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

// Rows and records come as cells; the data names them.
function named(names, cells) {
  const found = {};
  names.forEach((name, index) => { found[name] = cells[index]; });
  return found;
}

const recordsOf = (model) => model.records.map((cells) => named(data.columns.record, cells));
const familyOf = (row) => data.models[row.model].family;
const unique = (values) => [...new Set(values)].sort();
const head = (metric) => metric.name + (metric.unit ? ` (${metric.unit})` : "") + (metric.higher ? " ↑" : " ↓");

// Halves go to the even digit, as on the other boards.
function shown(value, { decimals }) {
  if (value === null || value === undefined) return "–";
  const scaled = value * 10 ** decimals, half = Number.isInteger(value * 2 ** (decimals + 1)) && Math.abs(scaled % 1) === 0.5;
  return (half ? (2 * Math.round(scaled / 2)) / 10 ** decimals : value).toFixed(decimals);
}

// What tells a board from those of equal title, and a name for it that outlives other boards' coming and going.
function nameBoards() {
  const alike = Map.groupBy(data.boards, (board) => board.title);
  for (const board of data.boards) {
    const others = alike.get(board.title).map((other) => new Map(other.conditions));
    const own = board.conditions.filter(([label, value]) => others.some((other) => other.get(label) !== value));
    board.name = [board.title, own.map((condition) => condition.join(" ")).join(", ")].filter(Boolean).join(" · ");
    let hash = 0;
    for (const letter of JSON.stringify([board.title, board.conditions])) hash = (Math.imul(hash, 31) + letter.codePointAt(0)) >>> 0;
    board.id = `${board.task}.${hash.toString(36)}`;
  }
}

// Every value of a model at its image size, whichever board it stands on, for plots and budgets.
const joined = new Map();
function join() {
  for (const board of data.boards) {
    for (const row of board.rows) {
      const known = joined.get(row.identity) ?? new Map();
      joined.set(row.identity, known);
      board.metrics.forEach((metric, index) => {
        if (row.values[index] === null) return;
        const key = `${board.id}:${metric.name}`;
        if (!known.has(key)) known.set(key, { value: row.values[index], interval: row.intervals[index] });
        if (!known.has(metric.name)) known.set(metric.name, []);
        known.get(metric.name).push(row.values[index]);
      });
    }
  }
}

const SIGNS = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };

function parseBudget(text) {
  return text.split(",").filter((part) => part.trim()).map((part) => {
    const found = /^\s*([A-Za-z]\w*)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*$/i.exec(part);
    if (!found || Number.isNaN(Number(found[3]))) throw new Error(`"${part.trim()}" is no budget; write for example gmacs<5.`);
    const name = Object.hasOwn(data.also, found[1]) ? data.also[found[1]] : found[1];
    if (![...joined.values()].some((known) => known.has(name))) throw new Error(`No board has a metric named "${found[1]}".`);
    return { name, sign: found[2], limit: Number(found[3]) };
  });
}

// A row's own value decides; where it has none, any that was measured of its model elsewhere.
function within(row, board, limits) {
  return limits.every(({ name, sign, limit }) => {
    const own = row.values[board.metrics.findIndex((metric) => metric.name === name)] ?? null;
    const values = own === null ? joined.get(row.identity).get(name) ?? [] : [own];
    return values.some((value) => SIGNS[sign](value, limit));
  });
}

function budget() {
  let found = [], fault = "";
  try {
    found = parseBudget($("budget").value);
  } catch (error) {
    fault = `${error.message} All rows are shown.`;
  }
  $("budget-error").textContent = fault;
  $("budget").setAttribute("aria-invalid", Boolean(fault));
  return found;
}

function columns(board) {
  return [
    { name: "rank", text: "#", value: (row) => row.rank },
    ...["model", "weights", "image"].map((name, index) => ({ name, text: name, left: true, value: (row) => row.label[index] })),
    ...board.metrics.map((metric, index) => ({ name: metric.name, text: head(metric), falls: metric.higher, value: (row) => row.values[index] })),
  ];
}

const order = new Intl.Collator("en", { numeric: true });

// What is missing comes last either way, and ties stay in the order of their ranks.
function sorted(rows, { value }) {
  const sign = state.descending ? -1 : 1;
  return rows.sort((a, b) => {
    const [first, second] = [value(a), value(b)];
    if (first === null || second === null) return (first === null) - (second === null) || a.rank - b.rank;
    return sign * (typeof first === "string" ? order.compare(first, second) : first - second) || a.rank - b.rank;
  });
}

function chosenRows(board) {
  const limits = budget(), text = $("text").value.toLowerCase(), size = parseFloat($("size").value), family = $("family").value;
  if (!Number.isNaN(size)) limits.push({ name: "parameters", sign: "<=", limit: size });
  const rows = board.rows.filter((row) =>
    (!text || row.label[0].toLowerCase().includes(text)) && (!family || familyOf(row) === family) && within(row, board, limits));
  return sorted(rows, columns(board).find(({ name }) => name === state.sort) ?? columns(board)[0]);
}

function sortBy({ name, falls }, index) {
  state.descending = state.sort === name ? !state.descending : Boolean(falls);
  state.sort = name;
  changed();
  $("table").tHead.rows[0].cells[index].firstChild.focus();
}

function drawHead(board) {
  const cells = columns(board).map((column, index) => {
    const way = state.sort === column.name ? (state.descending ? "descending" : "ascending") : "none";
    return make("th", { scope: "col", class: `${column.left ? "left " : ""}${column.name === "model" ? "model" : ""}`, "aria-sort": way },
      make("button", { type: "button", onclick: () => sortBy(column, index) }, column.text));
  });
  $("table").tHead.replaceChildren(make("tr", {}, ...cells));
}

const opener = (number, text) => make("button", { type: "button", class: "model", onclick: () => openModel(number) }, text);

function drawRow(row, board) {
  const [low, high] = row.ranks ?? [row.rank, row.rank];
  const rank = `${row.rank}${row.tied ? "=" : ""}${low < high ? ` (${low}–${high})` : ""}`;
  const cells = board.metrics.map((metric, index) => {
    const text = shown(row.values[index], metric), interval = row.intervals[index];
    const cell = make("td", { class: text === board.best[index] ? "best" : "" }, text);
    if (interval) cell.append(make("span", { class: "interval" }, ` [${interval.map((end) => shown(end, metric)).join(", ")}]`));
    return cell;
  });
  const notes = row.note ? [make("span", { class: "interval" }, ` ${row.note}`)] : [];
  return make("tr", {}, make("td", {}, rank), make("td", { class: "left model" }, opener(row.model, row.label[0]), ...notes),
    ...row.label.slice(1).map((text) => make("td", { class: "left" }, text)), ...cells);
}

function drawMore() {
  const end = Math.min(state.drawn + CHUNK, state.rows.length), fragment = document.createDocumentFragment();
  for (; state.drawn < end; state.drawn++) fragment.append(drawRow(state.rows[state.drawn], state.board));
  $("table").tBodies[0].append(fragment);
  if (state.drawn < state.rows.length) {
    const started = state.rows;
    setTimeout(() => { if (state.rows === started) drawMore(); });
  }
}

function draw() {
  const board = state.board;
  state.rows = board ? chosenRows(board) : [];
  state.drawn = 0;
  const none = data.boards.length ? "No board has this task and this hardware." : "There are no ranked records yet.";
  $("board-title").textContent = board ? board.title : none;
  $("conditions").textContent = board ? board.conditions.map((condition) => condition.join(" ")).join(", ") : "";
  $("count").textContent = board ? `${state.rows.length} of ${board.rows.length} rows` : "";
  $("legend").hidden = !board?.rows.some((row) => row.tied || row.ranks);
  $("table").tBodies[0].replaceChildren();
  if (board) drawHead(board);
  else $("table").tHead.replaceChildren();
  drawMore();
  drawPlot();
  state.view = `${view()}`;
}

// A select takes a value that it offers, or its first.
function choose(select, value) {
  select.value = value ?? "";
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

function offerBoards(id) {
  const found = data.boards.filter((board) =>
    (!$("task").value || board.task === $("task").value) && (!$("hardware").value || board.hardware === $("hardware").value));
  fill($("board"), found.map((board) => [board.id, `${board.name} · ${board.rows.length}`]));
  choose($("board"), id);
  offerColumns();
}

function offerColumns() {
  state.board = data.boards.find(({ id }) => id === $("board").value) ?? null;
  state.sort = "rank";
  state.descending = false;
  const board = state.board, axes = [];
  state.axes.clear();
  for (const one of board ? [board, ...data.boards.filter((other) => other !== board && other.hardware)] : []) {
    const place = one.name.includes(one.hardware) ? one.name : `${one.name}, ${one.hardware}`;
    one.metrics.forEach((metric, index) => {
      const key = `${one.id}:${metric.name}`;
      state.axes.set(key, { key, metric, index: one === board ? index : null });
      axes.push([key, one === board ? head(metric) : `${head(metric)} · ${place}`]);
    });
  }
  fill($("y"), axes);
  fill($("x"), axes);
  const cost = axes.findIndex(([key], place) => place > 0 && /:(gmacs|parameters)$/.test(key));
  $("x").selectedIndex = axes.length ? Math.max(cost, 0) : -1;
  fill($("family"), [["", "all"], ...unique(board ? board.rows.map(familyOf) : []).map((name) => [name, name])]);
}

// The address tells what is shown, so that it can be shared, and the back button returns to what was shown before.

const CHOICES = ["task", "hardware", "board", "family", "y", "x"], TYPED = ["text", "size", "budget"];

function view() {
  const told = new URLSearchParams();
  for (const id of CHOICES) if ($(id).selectedIndex > 0 || id === "board" || id === "x") told.set(id, $(id).value);
  for (const id of TYPED) if ($(id).value) told.set(id, $(id).value);
  if (state.sort !== "rank" || state.descending) told.set("sort", (state.descending ? "-" : "") + state.sort);
  if (!$("log").checked) told.set("linear", "1");
  return told;
}

function address() {
  const told = view();
  if (state.model !== null) told.set("model", data.models[state.model].name);
  return `#${told}`;
}

function remember(anew) {
  state.view = `${view()}`;
  if (address() !== location.hash) history[anew ? "pushState" : "replaceState"](null, "", address());
}

function changed() {
  draw();
  remember(true);
}

function restore() {
  const told = new URLSearchParams(location.hash.slice(1));
  for (const id of ["task", "hardware"]) choose($(id), told.get(id));
  offerBoards(told.get("board"));
  choose($("family"), told.get("family"));
  for (const id of ["y", "x"]) if (told.has(id)) choose($(id), told.get(id));
  for (const id of TYPED) $(id).value = told.get(id) ?? "";
  const sort = told.get("sort") ?? "rank";
  [state.sort, state.descending] = [sort.replace(/^-/, ""), sort.startsWith("-")];
  $("log").checked = !told.has("linear");
  const model = data.models.findIndex(({ name }) => name === told.get("model"));
  state.model = model < 0 ? null : model;
  if (`${view()}` !== state.view) draw();
  showModel();
}

function table(headings, rows) {
  const cells = (tag, row, attributes) => make("tr", {}, ...row.map((child) => make(tag, { ...attributes, class: "left" }, child)));
  return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("thead", {}, cells("th", headings, { scope: "col" })),
    make("tbody", {}, ...rows.map((row) => cells("td", row)))));
}

const PUBLISHED = ["kind", "task", "image", "metric", "value", "measured", "difference", "source"];

function drawRecord(record, open) {
  const quantities = data.quantities[record.quantities], reasons = [...record.reasons];
  const rows = record.values.map((value, index) => {
    const [name, unit] = quantities[index];
    return [name, value === null ? `– ${reasons.shift()}` : `${+value.toPrecision(6)} ${unit}`];
  });
  const { started_at, seconds, source_sha256 } = record, environment = data.environments[record.environment];
  const setup = { weights: data.weights[record.weights], preprocessing: data.preprocessing[record.preprocessing], ...data.setups[record.setup] };
  const about = { started_at, seconds, source_sha256, data: data.data[record.data], setup, environment };
  return make("details", { open }, make("summary", {}, `${record.task} · ${record.provenance} · ${record.key}${record.refused ? ` · not ranked: ${record.refused}` : ""}`),
    table(["metric", "value"], rows), make("pre", {}, record.command || "no command"), make("pre", {}, JSON.stringify(about, null, 1)));
}

function openModel(number) {
  state.model = number;
  showModel();
  remember(true);
}

function showModel() {
  if (state.model === null) { $("details").close(); return; }
  const model = data.models[state.model];
  $("details-title").textContent = model.name;
  const facts = model.published.length ? [make("h3", {}, "Published and claimed"), table(PUBLISHED, model.published)] : [];
  $("details-body").replaceChildren(...facts, ...recordsOf(model).map((record) => drawRecord(record, model.records.length === 1)));
  if (!$("details").open) $("details").showModal();
}

function drawPublished() {
  const rows = data.models.flatMap((model, number) => model.published
    .filter(([kind, , , , , measured]) => kind === "claimed" || measured !== "–")
    .map((cells) => [opener(number, model.name), ...cells]));
  $("published").replaceChildren(...(rows.length ? [table(["model", ...PUBLISHED], rows)] : []));
  $("elsewhere").textContent = data.elsewhere ? `Published values of models that were not measured here, and are not shown: ${data.elsewhere.toLocaleString("en")}.` : "";
  $("published-section").hidden = !rows.length && !data.elsewhere;
}

function drawLeftOut() {
  const found = data.models.flatMap((model, number) => recordsOf(model).filter((record) => record.refused).map((record) => ({ number, model, record })));
  $("left-out").replaceChildren(...found.map(({ number, model, record }) =>
    make("li", {}, opener(number, model.name), ` on ${record.task} (${record.key}): ${record.refused}`)));
  $("left-out-section").hidden = !found.length;
}

function listen() {
  const on = (ids, event, act) => ids.forEach((id) => $(id).addEventListener(event, act));
  on(["task", "hardware"], "change", () => { offerBoards($("board").value); changed(); });
  on(["board"], "change", () => { offerColumns(); changed(); });
  on(["family"], "change", changed);
  on(TYPED, "input", draw);
  on(TYPED, "change", () => remember(true));
  on(["x", "y", "log"], "change", () => { drawPlot(); remember(true); });
  on(["filters", "axes"], "submit", (event) => event.preventDefault());
  on(["details"], "close", () => { state.model = null; remember(false); });
  // Not by the address, which tells what is shown.
  on(["skip"], "click", (event) => { event.preventDefault(); $("rows").focus(); });
  on(["theme"], "click", () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  addEventListener("popstate", restore);
  addEventListener("resize", () => { if ($("plot").clientWidth !== state.wide) drawPlot(); });
}

function start() {
  $("summary").textContent = data.summary;
  for (const board of data.boards) board.rows = board.rows.map((cells) => named(data.columns.row, cells));
  nameBoards();
  join();
  fill($("task"), [["", "all"], ...unique(data.boards.map((board) => board.task)).map((name) => [name, name])]);
  fill($("hardware"), [["", "all"], ...unique(data.boards.map((board) => board.hardware).filter(Boolean)).map((name) => [name, name])]);
  listen();
  restore();
  setTimeout(() => { drawPublished(); drawLeftOut(); });
}

start();
