// --- the page: data, elements, numbers, links ---
// Text of users is only ever set as text, never as HTML.
const PAGE = 24, AGREES = 0.9, SHOWN = 8, REPELLING = 2, COLUMNS = 10, COLOURS = 10, STEPS = 7;
const block = document.getElementById("deck");
const deck = block ? JSON.parse(block.textContent) : null;
const pictures = deck?.pictures ?? null;

const make = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
};
const format = (value, sign = "", digits = 2) => {
  if (value === null) return "not measured";
  const size = Math.abs(value);
  const shown = size && size < 1e-4 ? size.toExponential(1) : Number(size.toPrecision(digits)).toString();
  return (value < 0 ? "\u2212" : sign) + shown;
};
const number = (value, sign) =>
  make("data", { class: "num", value: value ?? "", "data-value": value ?? "" }, format(value, sign));
const className = (code) => (code < 0 ? "" : deck.classes[code] ?? `class ${code}`);
const cell = (value, column) => {
  if (value === null) return "missing";
  if (column.kind === "category") return column.categories[value] ?? `code ${value}`;
  if (column.words && value in column.words) return column.words[value];
  return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();
};
const agrees = (mine, theirs, column) => {
  if (mine === null || theirs === null) return false;
  if (column.kind === "category" || !(column.span > 0)) return mine === theirs;
  return 1 - Math.min(Math.abs(mine - theirs) / column.span, 1) >= AGREES;
};

// A target inside closed details is opened first; a sample without a card gets one.
const openAround = (node) => {
  for (let up = node; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
};
let drawCard = () => null;
const follow = () => {
  const anchor = decodeURIComponent(location.hash.slice(1));
  if (!anchor) return;
  const sample = /^sample-(\d+)$/.exec(anchor);
  const node = document.getElementById(anchor) ?? (sample ? drawCard(Number(sample[1])) : null);
  if (!node) return;
  openAround(node);
  node.scrollIntoView();
  if (sample) node.querySelector("summary").focus({ preventScroll: true });
};
const goTo = (anchor) => {
  if (location.hash === `#${anchor}`) follow();
  else location.hash = anchor;
};
addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='#']");
  if (link && link.getAttribute("href") === location.hash) follow();
});
