// The plot: one metric against another, with intervals and the Pareto front.

function ticks(low, high, logarithmic) {
  const found = [];
  if (logarithmic) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      found.push(...[1, 2, 5].map((step) => step * 10 ** power).filter((value) => value >= low && value <= high));
    if (found.length > 2) return found;
    found.length = 0;
  }
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  for (let count = Math.ceil(low / step); count * step <= high; count++) found.push(count * step);
  return found;
}

function scale(values, from, to, logarithmic) {
  const [into, back] = logarithmic ? [Math.log, Math.exp] : [(value) => value, (value) => value];
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, into(value)), Math.max(high, into(value))];
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
  [low, high] = [low - pad, high + pad];
  const place = (value) => from + ((into(value) - low) / (high - low)) * (to - from);
  return { place, ticks: ticks(back(low), back(high), logarithmic) };
}

// Nothing is better than these in one and as good in the other.
function pareto(points, x, y) {
  const at = (point) => [x.higher ? -point.x : point.x, y.higher ? -point.y : point.y];
  let last = [NaN, Infinity];
  return points.toSorted((a, b) => at(a)[0] - at(b)[0] || at(a)[1] - at(b)[1]).filter((point) => {
    const [first, second] = at(point), isOn = second < last[1] || (first === last[0] && second === last[1]);
    if (isOn) last = [first, second];
    return isOn;
  });
}

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function reading(row, { key, index }) {
  return index === null ? joined.get(row.identity).get(key) : { value: row.values[index], interval: row.intervals[index] };
}

function plotted(x, y) {
  return state.rows.map((row) => ({ row, a: reading(row, x), b: reading(row, y) }))
    .filter(({ a, b }) => (a?.value ?? null) !== null && (b?.value ?? null) !== null)
    .map(({ row, a, b }) => ({ row, x: a.value, y: b.value, across: a.interval ?? [a.value, a.value], up: b.interval ?? [b.value, b.value] }));
}

// The picture is as wide as its place, so that its letters keep their size on a phone.
function drawPlot() {
  const x = state.axes.get($("x").value), y = state.axes.get($("y").value), points = x ? plotted(x, y) : [];
  state.wide = $("plot").clientWidth;
  $("front").replaceChildren();
  if (!points.length) { $("plot").replaceChildren(make("p", { class: "note" }, "No model here has both values.")); return; }
  const wide = Math.max(state.wide, 280), tall = Math.min(480, 200 + wide / 3);
  const logarithmic = $("log").checked && points.every((point) => point.across[0] > 0);
  const across = scale(points.flatMap((point) => point.across), 64, wide - 16, logarithmic);
  const up = scale(points.flatMap((point) => point.up), tall - 50, 15, false);
  const picture = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": `${head(y.metric)} against ${head(x.metric)} for ${points.length} models` });
  drawAxes(picture, across, up, wide, tall, x, y);
  for (const point of points) [point.px, point.py] = [across.place(point.x), up.place(point.y)];
  const front = pareto(points, x.metric, y.metric), labels = [];
  for (const point of front) label(labels, point, wide);
  picture.append(...points.flatMap((point) => bars(point, across.place, up.place)), ...labels.map(({ node }) => node),
    ...points.map((point) => dot(point, x.metric, y.metric)), ...front.map(({ px, py }) => svg("circle", { class: "front", cx: px, cy: py, r: 8 })));
  $("plot").replaceChildren(picture);
  $("front").replaceChildren(make("span", {}, "Front:"), ...front.map(({ row }) => opener(row.model, row.label[0])));
}

function drawAxes(picture, across, up, wide, tall, x, y) {
  for (const tick of across.ticks) {
    const at = across.place(tick);
    picture.append(svg("line", { class: "grid", x1: at, x2: at, y1: 15, y2: tall - 50 }), svg("text", { x: at, y: tall - 32, "text-anchor": "middle" }, +tick.toPrecision(4)));
  }
  for (const tick of up.ticks) {
    const at = up.place(tick);
    picture.append(svg("line", { class: "grid", x1: 64, x2: wide - 16, y1: at, y2: at }), svg("text", { x: 58, y: at + 4, "text-anchor": "end" }, +tick.toPrecision(4)));
  }
  picture.append(svg("text", { x: wide / 2, y: tall - 10, "text-anchor": "middle" }, head(x.metric)),
    svg("text", { x: 14, y: tall / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${tall / 2})` }, head(y.metric)));
}

function bars({ px, py, ...point }, across, up) {
  const found = [{ x1: px, x2: px, y1: up(point.up[0]), y2: up(point.up[1]) }, { x1: across(point.across[0]), x2: across(point.across[1]), y1: py, y2: py }];
  return found.filter(({ x1, x2, y1, y2 }) => x1 !== x2 || y1 !== y2).map((ends) => svg("line", { class: "bar", ...ends }));
}

function dot(point, x, y) {
  const told = (value, [low, high], metric) => `${shown(value, metric)}${low < high ? ` [${shown(low, metric)}, ${shown(high, metric)}]` : ""} ${metric.unit}`;
  const circle = svg("circle", { class: "dot", cx: point.px, cy: point.py, r: 4 });
  circle.append(svg("title", {}, `${point.row.label[0]}: ${told(point.y, point.up, y)}, ${told(point.x, point.across, x)}`));
  circle.addEventListener("click", () => openModel(point.row.model));
  return circle;
}

// A name beside its point, inside the picture; none where it would cover another.
function label(labels, { row, px, py }, wide) {
  const text = row.label[0], long = 6.5 * text.length, isLeft = px + 12 + long > wide, left = isLeft ? px - 12 - long : px + 12, top = py - 10;
  if (left < 64 || labels.some((other) => Math.abs(other.top - top) < 14 && left < other.left + other.long && other.left < left + long)) return;
  labels.push({ left, top, long, node: svg("text", { x: isLeft ? px - 12 : px + 12, y: top, "text-anchor": isLeft ? "end" : "start" }, text) });
}
