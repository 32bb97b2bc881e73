// --- cards of samples, drawn like those in the page ---
const kind = (signed) => (signed === null ? "neutral" : signed >= 0 ? "attract" : "repel");
const headings = { attract: "+ attracting", repel: "\u2212 repelling", neutral: "strongest" };
const caption = (sample, beside) => {
  const same = beside !== undefined && beside >= 0 && beside === sample.label;
  const span = make("span", { class: same ? "caption same" : "caption" });
  if (sample.label >= 0) span.append(make("b", {}, make("bdi", {}, className(sample.label))), " ");
  span.append(make("span", { class: "name", title: sample.name }, make("bdi", {}, sample.name)));
  return span;
};
const picture = (which, place, sample) => {
  if (pictures) {
    const alt = `${sample.name}, ${className(sample.label) || "no label"}`;
    return make("img", { src: pictures[which][place], alt, class: "pixels" });
  }
  return sample.text ? make("q", {}, make("bdi", {}, sample.text)) : null;
};
const counts = (sample) => {
  const parts = [];
  const links = sample.links, shown = drawn(sample);
  const attract = shown.filter((link) => kind(link[2]) === "attract").length;
  const repel = shown.filter((link) => kind(link[2]) === "repel").length;
  if (attract + repel) parts.push(make("span", { title: deck.meanings.drawn }, `${attract} attract, ${repel} repel`, " "));
  if (sample.label >= 0) {
    const same = links.filter(([at]) => deck.landmarks[at].label === sample.label).length;
    parts.push(make("span", {}, `${same} of the ${links.length} ranked share its class`, " "));
  }
  return parts;
};
const measured = (sample) => [["top", "score"], ["agree", "agreement"], ["near", "closeness"], ["mix", "mixing"]]
  .filter(([key]) => (sample[key] ?? null) !== null)
  .map(([key, name]) => make("span", { title: deck.meanings[key] }, name, " ", number(sample[key], ""), " "));
// A landmark without a score is not ranked; a dash keeps the figures of all in line.
const figures = (link) => make("dl", {},
  ...[["score", link[1], ""], ["contribution", link[2], "+"], ["k", link[3], ""]]
    .filter(([name, value]) => name === "score" || value !== null)
    .map(([name, value, sign]) => make("div", {}, make("dt", { title: deck.meanings[name] }, name),
      make("dd", {}, value === null ? make("span", { class: "none" }, "\u2013") : number(value, sign)))));
const all = (sample) => [...sample.links, ...(sample.repelling ?? [])];
const isRow = (sample) => Boolean(sample.values) && !sample.text && !pictures;
// Landmarks of a card: of a table as many as fit, attracting ones first.
const drawn = (sample) => {
  if (!isRow(sample)) return all(sample);
  const further = all(sample).slice(Math.min(SHOWN, sample.links.length));
  const repelling = further.filter((link) => kind(link[2]) === "repel").slice(0, REPELLING);
  return [...sample.links.slice(0, SHOWN), ...repelling].sort((a, b) => (kind(a[2]) === "repel") - (kind(b[2]) === "repel"));
};
const quiet = () => make("p", { class: "quiet" }, "No landmark repels it.");
const nothingRepels = (sample) => sample.repelling !== null && !all(sample).some((link) => kind(link[2]) === "repel");

const strips = (sample) => {
  const links = make("div", { class: "links" });
  for (const name of Object.keys(headings)) {
    const chosen = all(sample).filter((link) => kind(link[2]) === name);
    if (name === "repel" && nothingRepels(sample)) {
      links.append(make("div", { class: "contributions" }, make("h4", { class: name }, headings[name]), quiet()));
    }
    if (!chosen.length) continue;
    // Landmarks outside the ranking have no score; bars of repelling ones compare the contribution.
    const by = name === "repel" ? 2 : 1;
    const most = Math.max(...all(sample).map((link) => Math.abs(link[by] ?? 0)), 1e-300);
    const tiles = chosen.map((link) => {
      const other = deck.landmarks[link[0]], bar = make("span", { class: `meter ${name}`, "aria-hidden": "true" });
      bar.style.setProperty("--share", Math.abs(link[by]) / most);
      return make("li", {}, picture("landmarks", link[0], other), caption(other, sample.label), bar, figures(link));
    });
    links.append(make("div", { class: "contributions" }, make("h4", { class: name }, headings[name]),
      make("ol", { class: "strip" }, ...tiles)));
  }
  return links;
};

// Lift: share of landmarks that agree in a column over the share of all samples that do.
const liftOf = (sample, marks) => deck.columns.map((column, c) => {
  const base = deck.samples.filter((other) => agrees(sample.values[c], other.values[c], column)).length / deck.samples.length;
  const share = marks[c].filter(Boolean).length / Math.max(marks[c].length, 1);
  return base > 0 ? share / base : null;
});
const columnsOf = (lift) => {
  const order = lift.map((value, c) => [value ?? -1, c]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).map(([, c]) => c);
  const free = order.filter((c) => !deck.columns[c].audited).slice(0, COLUMNS);
  return order.filter((c) => deck.columns[c].audited || free.includes(c));
};
const rows = (sample) => {
  const links = drawn(sample);
  const others = links.map((link) => deck.landmarks[link[0]]);
  const marks = deck.columns.map((column, c) => others.map((o) => agrees(sample.values[c], o.values[c], column)));
  const lift = liftOf(sample, marks);
  const head = make("tr", {}, make("th", { scope: "col" }, "column"), make("th", { scope: "col", title: deck.meanings.lift }, "lift"),
    make("th", { scope: "col" }, "this sample"),
    ...links.map((link, i) => make("th", { scope: "col", class: kind(link[2]) }, caption(others[i]))));
  const lines = [["score", 1, ""], ["contribution", 2, "+"], ["k", 3, ""]].filter(([, at]) => links.some((link) => link[at] !== null))
    .map(([name, at, sign]) => make("tr", { class: "figures" }, make("th", { scope: "row", title: deck.meanings[name] }, name), make("td"), make("td"),
      ...links.map((link) => make("td", {}, link[at] === null ? "" : number(link[at], sign)))));
  const body = columnsOf(lift).map((c) => make("tr", {},
    make("th", { scope: "row" }, make("bdi", {}, deck.columns[c].name), deck.columns[c].audited ? make("small", {}, " audited") : null),
    make("td", {}, number(lift[c], "")),
    make("td", { class: "own", title: cell(sample.values[c], deck.columns[c]) }, cell(sample.values[c], deck.columns[c])),
    ...others.map((o, i) => {
      const td = make("td", { title: cell(o.values[c], deck.columns[c]) }, cell(o.values[c], deck.columns[c]));
      if (marks[c][i]) { td.className = "agrees"; td.append(make("span", { class: "unseen" }, " agrees")); }
      return td;
    })));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Its row beside the rows of its landmarks" },
    make("table", { class: "beside" }, make("thead", {}, head, ...lines), make("tbody", {}, ...body)));
};
const card = (place) => {
  const sample = deck.samples[place];
  const details = make("details", { class: "card", id: `sample-${sample.id}`, "data-id": sample.id },
    make("summary", {}, picture("samples", place, sample), make("h3", {}, caption(sample)),
      make("span", { class: "quiet" }, ...counts(sample)), make("span", { class: "quiet figs" }, ...measured(sample))),
    isRow(sample) ? rows(sample) : strips(sample),
    isRow(sample) && nothingRepels(sample) ? quiet() : null,
    make("a", { href: `#sample-${sample.id}`, class: "permalink", title: "Link to this card" }, "link"));
  return details;
};
