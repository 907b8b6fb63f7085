const points = new Map(data.points.map((point) => [point.name, point]));
let shown = data.best;

const code = (row, place) => (typeof row === "string" ? data.alphabet.indexOf(row[place]) : row[place]);

function policyOf(name) {
  const policy = {};
  for (const [role, part] of Object.entries(data.policies)) {
    const row = part.bits[name] || "";
    policy[role] = Object.fromEntries(part.names.map((key, place) => [key, code(row, place)]).filter(([, b]) => b > 0));
  }
  return policy;
}

function layerValues(column, name) {
  const place = data.order.indexOf(name);
  const { codes, values } = data.layers.columns[column];
  return codes.map((row, op) => { const index = code(row, place); return index < 0 ? null : values[op][index]; });
}

const bitColor = (bits) => (bits === null ? data.noBits : data.colors[bits] || data.noBits);

function frontFigure() {
  const view = data.front.views[byId("cost").value + "|" + byId("quality").value];
  const traces = data.front.data.map((trace, place) => ({ ...trace, ...view.traces[place] }));
  for (const trace of traces) {
    const place = trace.customdata ? trace.customdata.indexOf(shown) : -1;
    if (place >= 0) Object.assign(traces[1], { x: [trace.x[place]], y: [trace.y[place]] });
  }
  return { data: traces, layout: view.layout };
}

function policyFigures() {
  const [weights, acts] = [layerValues("weight_bits", shown), layerValues("act_bits", shown)];
  const bits = structuredClone(data.figures.bits);
  [weights, acts].forEach((values, place) => {
    bits.data[place].x = values;
    bits.data[place].marker.color = values.map(bitColor);
  });
  const costs = structuredClone(data.figures.costs);
  const bars = costs.data.filter((trace) => trace.type === "bar");
  const live = layerValues("live_bytes", shown);
  [layerValues("latency_s", shown), layerValues("flash_bytes", shown), live].forEach((values, place) => {
    bars[place].x = values;
    bars[place].marker.color = (place < 2 ? weights : acts).map(bitColor);
  });
  const peak = Math.max(...live.filter((bytes) => bytes !== null));
  bars[2].marker.line.width = live.map((bytes) => (bytes === peak ? 2 : 0));
  draw("bits", bits);
  draw("costs", costs);
}

function tile(title, value, small) {
  const box = element("div", "", { class: "tile" });
  const text = element("dd", value);
  if (small) text.append(element("small", small));
  box.append(element("dt", title), text);
  return box;
}

function show(name) {
  if (!points.has(name)) return;
  shown = name;
  const point = points.get(name);
  const unit = data.task.unit ? " " + data.task.unit : "";
  const share = (ratio) => (ratio === null ? "" : Math.round(100 * ratio) + " % of uniform 8 bit");
  byId("shown-name").textContent = name;
  byId("pick").value = name;
  const kind = point.uniform ? "uniform " + point.uniform : point.origin === "relaxed" ? "found at a relaxed budget" : "searched";
  const words = [kind, point.within_budgets ? "within budgets" : "over budget", point.on_front ? "on the front" : "not on the front"];
  byId("badges").replaceChildren(...words.flatMap((text) => [element("span", text, { class: "badge" }), " "]));
  byId("tiles").replaceChildren(
    tile("validation " + data.task.metric, number(point.val_score) + unit, "loss " + number(point.val_loss)),
    tile("test " + data.task.metric, point.test_score === null ? "–" : number(point.test_score) + unit, point.test_score === null ? "not measured" : "loss " + number(point.test_loss)),
    tile("latency" + data.note, number(point.latency_s * 1e3) + " ms", share(point.latency_s_ratio)),
    tile("flash", number(point.flash_bytes / 1024) + " KiB", share(point.flash_bytes_ratio)),
    tile("peak RAM", number(point.peak_ram_bytes / 1024) + " KiB", share(point.peak_ram_bytes_ratio)),
    tile("mean bits", number(point.weight_bits, 3) + " / " + number(point.act_bits, 3), "weights / activations"),
  );
  for (const row of byId("policies").tBodies[0].rows) row.classList.toggle("shown", row.dataset.name === name);
  draw("front", frontFigure());
  policyFigures();
}

function filterRows() {
  const words = byId("filter").value.trim().toLowerCase();
  let count = 0;
  for (const row of byId("policies").tBodies[0].rows) {
    const point = points.get(row.dataset.name);
    const text = (point.name + " " + point.origin + " " + point.uniform).toLowerCase();
    row.hidden = !text.includes(words) || (byId("only-budget").checked && !point.within_budgets) || (byId("only-front").checked && !point.on_front);
    count += row.hidden ? 0 : 1;
  }
  byId("count").textContent = count + " of " + points.size + " policies";
}

const visible = () => [...byId("policies").tBodies[0].rows].filter((row) => !row.hidden).map((row) => points.get(row.dataset.name));

startTheme();
sortable(byId("policies"));
filterRows();
show(data.best);
draw("heatmap", data.figures.heatmap);
draw("losses", data.figures.losses);
draw("expected", data.figures.expected);
draw("gates", data.figures["gates-" + byId("gates").dataset.set]);

byId("front").on("plotly_click", (event) => { const name = event.points[0].customdata; if (name) show(name); });
byId("heatmap").on("plotly_click", (event) => show(data.order[event.points[0].pointNumber[0]]));
byId("front").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  show(data.order[(data.order.indexOf(shown) + step + data.order.length) % data.order.length]);
});
byId("cost").addEventListener("change", () => draw("front", frontFigure()));
byId("quality").addEventListener("change", () => draw("front", frontFigure()));
byId("pick").addEventListener("change", (event) => show(event.target.value));
byId("set")?.addEventListener("change", (event) => draw("gates", data.figures["gates-" + event.target.value]));
for (const id of ["filter", "only-budget", "only-front"]) byId(id).addEventListener("input", filterRows);
byId("policies").tBodies[0].addEventListener("click", (event) => {
  if (!event.target.closest("button")) return;
  show(event.target.closest("tr").dataset.name);
  byId("policy").scrollIntoView({ behavior: "smooth" });
});
byId("csv").addEventListener("click", () => download("policies.csv", "text/csv", csv(visible(), Object.keys(data.points[0]))));
byId("json").addEventListener("click", () => download("policies.json", "application/json",
  JSON.stringify(visible().map((point) => ({ ...point, ...policyOf(point.name) })), null, 1)));
byId("download-policy").addEventListener("click", () => download("policy.json", "application/json",
  JSON.stringify({ name: shown, ...policyOf(shown) }, null, 1)));
