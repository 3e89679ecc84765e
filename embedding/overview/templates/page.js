"use strict";
// Draws the figures, colours the points, and lists the windows nearest to a clicked point.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const maps = ["umap", "pca"].filter((id) => id in data.figures);
const hasTouchScreen = matchMedia("(pointer: coarse)").matches;
const isDark = matchMedia("(prefers-color-scheme: dark)");

// Texts have the colours of the page. On a touch screen a finger scrolls the page, and does not zoom a figure.
const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const themed = ({font, hoverlabel}) => ({
  font: {...font, color: cssVariable("--text")},
  hoverlabel: {...hoverlabel, bgcolor: cssVariable("--page"), font: {color: cssVariable("--text")}},
  modebar: {bgcolor: "transparent", color: cssVariable("--muted"), activecolor: cssVariable("--text")},
  dragmode: hasTouchScreen ? false : "zoom",
});
// A fixed list of buttons: one of Plotly's default buttons sends the figure to Plotly's cloud.
const config = {
  responsive: true, displaylogo: false, displayModeBar: hasTouchScreen ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  toImageButtonOptions: {scale: 2},
};

// Plotly interprets some HTML in texts, so it is escaped.
const literal = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const valueOf = ({distinct, which}, point) => distinct[which[point]];
const fileOf = (point) => valueOf(data.points.file, point);
const hoverText = (point) => {
  const recordedAt = data.points.recorded_at[point];
  const time = data.points.time[point] + (recordedAt === null ? "" : ` · ${recordedAt}`);
  const columns = data.points.columns.map((column) => [column.name, valueOf(column, point)])
    .filter(([, value]) => value !== null).map((pair) => pair.join(": "));
  return [fileOf(point), time, ...columns].map(literal).join("<br>");
};

function element(tag, text, className) {
  const created = document.createElement(tag);
  created.textContent = text; // never as HTML: names may contain anything
  if (className) created.className = className;
  return created;
}

let scheme = null;
let clicked = null;

function applyScheme(number) {
  scheme = data.colour_schemes[number];
  const colours = scheme.group.map((group) => scheme.groups[group].colour);
  for (const id of maps) Plotly.restyle(id, {"marker.color": [colours]}, [0]);
  byId("legend").replaceChildren(...scheme.groups.map((group) => {
    const [item, dot] = [element("li", ""), element("i", "")];
    dot.style.background = group.colour;
    item.append(dot, element("b", group.name), element("span", group.points.toLocaleString("en")));
    return item;
  }));
  if (clicked !== null) showNeighbours(clicked);
}

function tableRow(point, similarity) {
  const [row, number] = [element("tr", ""), element("td", similarity, "number")];
  number.dataset.name = "similarity";
  row.append(
    number, element("td", fileOf(point), "name"), element("td", data.points.time[point]),
    element("td", data.points.recorded_at[point] ?? "–"), element("td", valueOf(scheme, point) ?? "–"),
  );
  return row;
}

function showNeighbours(point) {
  clicked = point;
  const neighbours = data.neighbours[point];
  byId("clicked").textContent = `Nearest to ${fileOf(point)}, ${data.points.time[point]}`;
  byId("group").textContent = scheme.name;
  byId("neighbours").hidden = false;
  byId("neighbours").tBodies[0].replaceChildren(
    ...neighbours.index.map((other, rank) => tableRow(other, neighbours.similarity[rank].toFixed(4))));
  for (const id of maps) {
    const {x, y} = data.figures[id].data[0];
    const [xs, ys] = [x, y].map((axis) => [neighbours.index, [point]].map((points) => points.map((i) => axis[i])));
    Plotly.restyle(id, {x: xs, y: ys, "marker.color": cssVariable("--text")}, [1, 2]);
  }
}

async function drawAll() {
  for (const [id, {data: traces, layout}] of Object.entries(data.figures)) {
    if (maps.includes(id)) traces[0].text = data.points.time.map((_, point) => hoverText(point));
    await Plotly.newPlot(id, traces, {...layout, ...themed(layout)}, config);
    isDark.addEventListener("change", () => Plotly.relayout(id, themed(layout)));
  }
  if (maps.length) {
    byId("colour").append(...data.colour_schemes.map(({name}, number) => new Option(name, number)));
    byId("colour").addEventListener("change", (event) => applyScheme(Number(event.target.value)));
    for (const id of maps) byId(id).on("plotly_click", (event) => showNeighbours(event.points[0].pointIndex));
    applyScheme(0);
  }
  document.documentElement.dataset.drawn = true;
}

drawAll();
