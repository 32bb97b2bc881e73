// --- downloads: drawings as SVG, figures as CSV ---
const save = (name, type, text) => {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};
// A text that a spreadsheet would take for a formula is quoted.
const field = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const csv = (lines) => lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "text-anchor", "paint-order"];
const asSvg = (drawing) => {
  const copy = drawing.cloneNode(true);
  const marks = [drawing, ...drawing.querySelectorAll("*")], copies = [copy, ...copy.querySelectorAll("*")];
  marks.forEach((mark, i) => {
    const style = getComputedStyle(mark);
    for (const name of STYLES) copies[i].setAttribute(name, style.getPropertyValue(name));
    copies[i].removeAttribute("class");
  });
  const [, , width, height] = drawing.getAttribute("viewBox").split(" ");
  const sheet = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [name, value] of [["width", width], ["height", height], ["fill", getComputedStyle(document.body).backgroundColor]]) sheet.setAttribute(name, value);
  copy.prepend(sheet);
  for (const [name, value] of [["width", width], ["height", height]]) copy.setAttribute(name, value);
  return new XMLSerializer().serializeToString(copy);
};
// A cell with one number is this number in full; in words every number is in full.
const cellValue = (node) => {
  const copy = node.cloneNode(true);
  for (const extra of copy.querySelectorAll(".save, .unseen, svg")) extra.remove();
  for (const picture of copy.querySelectorAll("img")) picture.replaceWith(`${picture.alt}; `);
  const numbers = [...copy.querySelectorAll("data")];
  for (const one of numbers) one.replaceWith(one.dataset.value);
  const text = copy.textContent.replace(/\s+/g, " ").trim();
  return numbers.length === 1 && text === numbers[0].dataset.value ? Number(text) : text;
};
const tableLines = (table) => [...table.rows].map((row) => [...row.cells].map(cellValue));
const mapLines = (side) => {
  const { points, rings } = deck.map;
  const lines = [["kind", "name", "class", "component 1", "component 2"]];
  points[side].samples.forEach((point, i) => lines.push(["sample", deck.samples[i].name, className(deck.samples[i].label), ...point]));
  points[side].landmarks.forEach((point, i) => lines.push(["landmark", rings[i][0], className(rings[i][1]), ...point]));
  return lines;
};
const button = (words, label, action) => {
  const made = make("button", { type: "button", "aria-label": label }, words);
  made.addEventListener("click", action);
  return made;
};
const tools = (...buttons) => make("span", { class: "save" }, ...buttons);
for (const figure of document.querySelectorAll("figure[data-name]")) {
  const drawing = figure.querySelector("svg"), name = figure.dataset.name, head = figure.querySelector("figcaption");
  if (!drawing || !head) continue;
  const title = head.firstChild.textContent;
  const lines = () => {
    if (name.startsWith("map-")) return mapLines(name.slice(4));
    const series = JSON.parse(figure.dataset.series);
    return [series.head, ...series.rows];
  };
  head.append(tools(
    button("SVG", `Save ${title} as SVG`, () => save(`${name}.svg`, "image/svg+xml", asSvg(drawing))),
    button("CSV", `Save the figures of ${title} as CSV`, () => save(`${name}.csv`, "text/csv", csv(lines())))));
}
for (const table of document.querySelectorAll("main table:has(caption)")) {
  if (table.closest("figure")) continue;
  const title = table.caption.textContent;
  const name = `${table.closest("section")?.id ?? "table"}-${title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40)}`;
  table.caption.append(tools(button("CSV", `Save ${title} as CSV`, () => save(`${name}.csv`, "text/csv", csv(tableLines(table))))));
}
follow();
