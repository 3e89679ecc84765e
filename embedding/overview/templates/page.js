"use strict";
// Draws the figures, colours the points, and lists what is nearest to the one that is clicked.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const maps = ["umap", "pca"].filter((id) => id in data.figures);
const isTouched = matchMedia("(pointer: coarse)").matches;
const isDark = matchMedia("(prefers-color-scheme: dark)");

// Text and hover in the page's colours; a finger scrolls the page, and does not zoom by accident.
const own = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const themed = ({font, hoverlabel}) => ({
  font: {...font, color: own("--text")},
  hoverlabel: {...hoverlabel, bgcolor: own("--page"), font: {color: own("--text")}},
  modebar: {bgcolor: "transparent", color: own("--muted"), activecolor: own("--text")},
  dragmode: isTouched ? false : "zoom",
});
// These buttons and no others: one of Plotly's own sends the figure to Plotly's cloud.
const config = {
  responsive: true, displaylogo: false, displayModeBar: isTouched ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  toImageButtonOptions: {scale: 2},
};

// Plotly takes some HTML in a text for what it means.
const literal = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const valueOf = ({distinct, which}, i) => distinct[which[i]];
const fileOf = (i) => valueOf(data.points.file, i);
const hover = (i) => {
  const time = data.points.recorded_at[i];
  const said = data.points.columns.map((column) => [column.name, valueOf(column, i)])
    .filter(([, value]) => value !== null).map((both) => both.join(": "));
  return [fileOf(i), data.points.time[i] + (time === null ? "" : ` · ${time}`), ...said].map(literal).join("<br>");
};

function element(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text; // never as HTML: names are what people gave them
  if (kind) made.className = kind;
  return made;
}

let colouring = null;
let clicked = null;

function colour(choice) {
  colouring = data.colourings[choice];
  const colours = colouring.group.map((group) => colouring.groups[group].colour);
  for (const id of maps) Plotly.restyle(id, {"marker.color": [colours]}, [0]);
  at("legend").replaceChildren(...colouring.groups.map((group) => {
    const [item, dot] = [element("li", ""), element("i", "")];
    dot.style.background = group.colour;
    item.append(dot, element("b", group.name), element("span", group.points.toLocaleString("en")));
    return item;
  }));
  if (clicked !== null) show(clicked);
}

function row(i, similarity) {
  const [made, number] = [element("tr", ""), element("td", similarity, "number")];
  number.dataset.name = "similarity";
  made.append(
    number, element("td", fileOf(i), "name"), element("td", data.points.time[i]),
    element("td", data.points.recorded_at[i] ?? "–"), element("td", valueOf(colouring, i) ?? "–"),
  );
  return made;
}

function show(i) {
  clicked = i;
  const near = data.nearest[i];
  at("clicked").textContent = `Nearest to ${fileOf(i)}, ${data.points.time[i]}`;
  at("group").textContent = colouring.name;
  at("nearest").hidden = false;
  at("nearest").tBodies[0].replaceChildren(
    ...near.index.map((other, rank) => row(other, near.similarity[rank].toFixed(4))));
  for (const id of maps) {
    const {x, y} = data.figures[id].data[0];
    const [xs, ys] = [x, y].map((all) => [near.index, [i]].map((some) => some.map((j) => all[j])));
    Plotly.restyle(id, {x: xs, y: ys, "marker.color": own("--text")}, [1, 2]);
  }
}

async function drawAll() {
  for (const [id, {data: traces, layout}] of Object.entries(data.figures)) {
    if (maps.includes(id)) traces[0].text = data.points.time.map((_, i) => hover(i));
    await Plotly.newPlot(id, traces, {...layout, ...themed(layout)}, config);
    isDark.addEventListener("change", () => Plotly.relayout(id, themed(layout)));
  }
  if (maps.length) {
    at("colour").append(...data.colourings.map(({name}, choice) => new Option(name, choice)));
    at("colour").addEventListener("change", (event) => colour(Number(event.target.value)));
    for (const id of maps) at(id).on("plotly_click", (event) => show(event.points[0].pointIndex));
    colour(0);
  }
  document.documentElement.dataset.drawn = true;
}

drawAll();
