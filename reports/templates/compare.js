const selects = [byId("left"), byId("right")];

function cells(...texts) {
  const row = element("tr", "");
  for (const text of texts) row.append(element("td", text));
  return row;
}

function showFront() {
  draw("front", data.views[byId("cost").value + "|" + byId("quality").value]);
  const [title, unit, scale] = data.scales[byId("cost").value];
  const costs = data.points.map((point) => point[byId("cost").value] / scale);
  byId("limit").value = number((Math.min(...costs) + Math.max(...costs)) / 2, 3).replaceAll(",", "");
  byId("limit-unit").textContent = unit;
  byId("limit-cost").textContent = title + ", " + unit;
  showLimit();
}

function showLimit() {
  const cost = byId("cost").value;
  const [, , scale] = data.scales[cost];
  const limit = Number(byId("limit").value) * scale * (1 + 1e-12);
  const rows = Object.keys(data.policies).map((run) => {
    const fits = data.points.filter((point) => point.run === run && point[cost] <= limit);
    fits.sort((a, b) => a.val_loss - b.val_loss || a[cost] - b[cost]);
    const best = fits[0];
    return best ? cells(run, best.name, number(best.val_loss), number(best.val_score), number(best[cost] / scale)) : cells(run, "none", "–", "–", "–");
  });
  byId("limit-rows").replaceChildren(...rows);
}

function showDiff() {
  const [left, right] = selects.map((select) => { const point = data.points[Number(select.value)]; return data.policies[point.run][point.name]; });
  const rows = [];
  let total = 0;
  for (const role of ["weights", "activations"]) {
    for (const name of new Set([...Object.keys(left[role]), ...Object.keys(right[role])])) {
      const [a, b] = [left[role][name], right[role][name]];
      total += 1;
      if (a === b) continue;
      const change = a === undefined || b === undefined ? "–" : (b > a ? "+" : "−") + Math.abs(b - a);
      const row = cells(name, role, a ?? "–", b ?? "–", change);
      for (const [place, bits] of [[2, a], [3, b]]) row.cells[place].style.boxShadow = "inset -6px 0 0 " + (data.colors[bits] || data.noBits);
      rows.push(row);
    }
  }
  byId("diff-rows").replaceChildren(...rows);
  byId("diff-count").textContent = rows.length + " of " + total + " differ";
}

for (const select of selects) {
  for (const [place, point] of data.points.entries()) select.append(element("option", point.run + " / " + point.name, { value: place }));
  select.addEventListener("change", showDiff);
}
const runs = Object.keys(data.policies);
for (const [place, select] of selects.entries()) {
  const best = data.points.findIndex((point) => point.run === runs[place] && point.best);
  select.value = String(best >= 0 ? best : data.points.findIndex((point) => point.run === runs[place]));
}
startTheme();
sortable(byId("volumes"));
showFront();
showDiff();
byId("cost").addEventListener("change", showFront);
byId("quality").addEventListener("change", showFront);
byId("limit").addEventListener("input", showLimit);
byId("front").on("plotly_click", (event) => {
  const [run, name] = event.points[0].customdata;
  selects[1].value = String(data.points.findIndex((point) => point.run === run && point.name === name));
  showDiff();
});
