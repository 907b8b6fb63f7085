"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const config = { responsive: true, displaylogo: false, displayModeBar: false, doubleClickDelay: 400 };
const drawn = new Set();
const narrow = matchMedia("(max-width: 760px)");

function colors() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(name).trim();
}

function themed(layout) {
  const color = colors();
  const copy = structuredClone(layout);
  copy.font = { ...copy.font, color: color("--ink") };
  copy.hoverlabel = { ...copy.hoverlabel, bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } };
  if (narrow.matches) {
    copy.font.size = 11;
    copy.dragmode = false;
    copy.legend = { ...copy.legend, y: 0, yref: "container", yanchor: "bottom", font: { size: 10.5 } };
    copy.height = (copy.height || 400) + (copy.showlegend === false ? 0 : 90);
    const panels = Object.keys(copy).filter((key) => /^xaxis/.test(key)).length;
    for (const note of copy.annotations || []) note.font = { ...note.font, size: panels > 1 ? 9.5 : 11 };
    for (const key of Object.keys(copy)) {
      const axis = copy[key];
      if (/^yaxis/.test(key) && axis.ticktext) axis.ticktext = axis.ticktext.map((name) => ending(name, 14));
      if (/^xaxis/.test(key) && panels > 2) Object.assign(axis, { nticks: 3, tickangle: 0 });
    }
  }
  for (const key of Object.keys(copy)) {
    if (/^[xy]axis\d*$/.test(key)) {
      Object.assign(copy[key], { gridcolor: color("--grid"), zerolinecolor: color("--line"), linecolor: color("--line") });
    }
  }
  return copy;
}

function ending(escaped, characters) {
  const name = escaped.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  const cut = name.length > characters ? "…" + name.slice(1 - characters) : name;
  return cut.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function draw(id, figure) {
  const place = byId(id);
  if (!figure) { place.textContent = "The run recorded nothing to draw here."; place.className = "soft"; return null; }
  place.figure = figure;
  drawn.add(id);
  const layout = themed(figure.layout);
  place.style.height = layout.height + "px";
  Plotly.react(place, figure.data, layout, config);
  return place;
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  const button = byId("theme");
  button.setAttribute("aria-pressed", String(name === "dark"));
  button.textContent = name === "dark" ? "Light" : "Dark";
  redraw();
}

function redraw() {
  for (const id of drawn) draw(id, byId(id).figure);
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  narrow.addEventListener("change", redraw);
  let before = null;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => { if (before) setTheme(before); });
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const large = Math.abs(value) >= 10 ** digits;
  return value.toLocaleString("en", large ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits });
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function csv(rows, keys) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  return [keys, ...rows.map((row) => keys.map((key) => row[key]))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function sortable(table) {
  const body = table.tBodies[0];
  for (const [place, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = head.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[place].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y);
        return up ? order : -order;
      });
      body.append(...rows);
    });
  }
}
