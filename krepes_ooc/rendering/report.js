"use strict";
// Search over all audited samples. Text of users is only ever set as text, never as HTML.
(() => {
  const PAGE = 24, AGREES = 0.9, SHOWN = 8, PUSHED = 2, COLUMNS = 12;
  const block = document.getElementById("deck"), form = document.getElementById("find");
  if (!block || !form) return;
  const deck = JSON.parse(block.textContent), pictures = deck.pictures || null;
  const box = document.getElementById("found"), first = document.getElementById("cards");
  const told = document.getElementById("told"), more = document.getElementById("more");
  const field = (name) => form.elements.namedItem(name);
  const className = (code) => (code < 0 ? "" : deck.classes[code] ?? `class ${code}`);
  const kind = (signed) => (signed === null ? "neutral" : signed >= 0 ? "attract" : "repel");
  const words = { attract: "+ attracting", repel: "\u2212 repelling", neutral: "strongest" };

  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const format = (value, sign = "") => {
    if (value === null) return "not measured";
    const size = Math.abs(value);
    const shown = size && size < 1e-4 ? size.toExponential(1) : Number(size.toPrecision(2)).toString();
    return (value < 0 ? "\u2212" : sign) + shown;
  };
  const number = (value, sign) =>
    make("data", { class: "num", value: value ?? "", "data-value": value ?? "" }, format(value, sign));
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
  const caption = (person, beside) => {
    const same = beside !== undefined && beside >= 0 && beside === person.label;
    const span = make("span", { class: same ? "caption same" : "caption" });
    if (person.label >= 0) span.append(make("b", {}, make("bdi", {}, className(person.label))), " ");
    span.append(make("span", { class: "name", title: person.name }, make("bdi", {}, person.name)));
    return span;
  };
  const picture = (which, place, person) => {
    if (pictures) {
      const alt = `${person.name}, ${className(person.label) || "no label"}`;
      return make("img", { src: pictures[which][place], alt, class: "pixels" });
    }
    return person.text ? make("q", {}, make("bdi", {}, person.text)) : null;
  };

  const counts = (sample) => {
    const parts = [];
    const links = sample.links;
    if (sample.label >= 0) {
      const same = links.filter(([at]) => deck.landmarks[at].label === sample.label).length;
      parts.push(`${same} of ${links.length} share its class`);
    }
    const attract = links.filter((link) => kind(link[2]) === "attract").length;
    const repel = links.filter((link) => kind(link[2]) === "repel").length;
    parts.push(`${attract} attract, ${repel} repel`);
    if (sample.push?.length) parts.push(`${sample.push.length} more push it away`);
    return parts.map((part) => make("span", {}, part, " "));
  };
  const figures = (link) => make("dl", {},
    ...[["score", link[1], ""], ["pull", link[2], "+"], ["k", link[3], ""]]
      .filter(([, value]) => value !== null)
      .map(([name, value, sign]) => make("div", {}, make("dt", {}, name), make("dd", {}, number(value, sign)))));

  const all = (sample) => [...sample.links, ...(sample.push ?? [])];
  const quiet = () => make("p", { class: "quiet" }, "No landmark pushes it away.");
  const nothingRepels = (sample) => sample.push !== null && !all(sample).some((link) => kind(link[2]) === "repel");
  const strips = (sample) => {
    const links = make("div", { class: "links" });
    for (const name of Object.keys(words)) {
      const chosen = all(sample).filter((link) => kind(link[2]) === name);
      if (name === "repel" && nothingRepels(sample)) {
        links.append(make("div", { class: "pull" }, make("h4", { class: name }, words[name]), quiet()));
      }
      if (!chosen.length) continue;
      // What only pushes has no score; so the bars of all that repel compare the pull.
      const by = name === "repel" ? 2 : 1;
      const most = Math.max(...all(sample).map((link) => Math.abs(link[by] ?? 0)), 1e-300);
      const tiles = chosen.map((link) => {
        const other = deck.landmarks[link[0]], bar = make("span", { class: `meter ${name}`, "aria-hidden": "true" });
        bar.style.setProperty("--share", Math.abs(link[by]) / most);
        return make("li", {}, picture("landmarks", link[0], other), caption(other, sample.label), bar, figures(link));
      });
      links.append(make("div", { class: "pull" }, make("h4", { class: name }, words[name]),
        make("ol", { class: "strip" }, ...tiles)));
    }
    return links;
  };
  const rows = (sample) => {
    const further = all(sample).slice(Math.min(SHOWN, sample.links.length));
    const repelling = further.filter((link) => kind(link[2]) === "repel").slice(0, PUSHED);
    const links = [...sample.links.slice(0, SHOWN), ...repelling].sort((a, b) => (kind(a[2]) === "repel") - (kind(b[2]) === "repel"));
    const others = links.map((link) => deck.landmarks[link[0]]);
    const marks = deck.columns.map((column, c) => others.map((o) => agrees(sample.values[c], o.values[c], column)));
    const order = marks.map((m, c) => [m.filter(Boolean).length, c]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const chosen = order.slice(0, COLUMNS).map(([, c]) => c).sort((a, b) => a - b);
    const head = make("tr", {}, make("th", { scope: "col" }, "column"), make("th", { scope: "col" }, "this sample"),
      ...links.map((link, i) => make("th", { scope: "col", class: kind(link[2]) }, caption(others[i]))));
    const scores = make("tr", { class: "figures" }, make("th", { scope: "row" }, "score"), make("td"),
      ...links.map((link) => make("td", {}, link[1] === null ? "" : number(link[1], ""))));
    const body = chosen.map((c) => make("tr", {},
      make("th", { scope: "row" }, make("bdi", {}, deck.columns[c].name)),
      make("td", { class: "own", title: cell(sample.values[c], deck.columns[c]) }, cell(sample.values[c], deck.columns[c])),
      ...others.map((o, i) => {
        const td = make("td", { title: cell(o.values[c], deck.columns[c]) }, cell(o.values[c], deck.columns[c]));
        if (marks[c][i]) { td.className = "agrees"; td.append(make("span", { class: "unseen" }, " agrees")); }
        return td;
      })));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Its row beside the rows of its landmarks" },
      make("table", { class: "beside" }, make("thead", {}, head, scores), make("tbody", {}, ...body)));
  };
  const card = (place) => {
    const sample = deck.samples[place], anchor = `found-${place}`;
    const title = make("h3", { id: anchor }, caption(sample));
    const about = make("p", { class: "quiet" }, ...counts(sample));
    const article = make("article", { class: "card", "aria-labelledby": anchor, "data-id": sample.id });
    if (sample.values && !pictures) {
      article.classList.add("rows");
      article.append(make("div", { class: "top" }, title, about), rows(sample));
      if (nothingRepels(sample)) article.append(quiet());
    } else {
      article.append(make("header", {}, picture("samples", place, sample), make("div", {}, title, about)), strips(sample));
    }
    return article;
  };

  // --- what is asked for ---
  const asked = () => {
    const query = field("query").value.trim().toLowerCase().replace(/^#/, "");
    const label = field("label").value, pull = field("pull").value;
    const column = field("column") ? field("column").value : "";
    const value = field("value") ? field("value").value.trim().toLowerCase() : "";
    return { query, label, pull, column, value, any: Boolean(query || label || pull || (column && value)) };
  };
  const fits = (want, place) => {
    const sample = deck.samples[place];
    // A name that is only the position, #17, is found by exactly this number.
    const own = sample.name === `#${sample.id}` ? "" : sample.name.toLowerCase() + (sample.text ?? "").toLowerCase();
    if (want.query && String(sample.id) !== want.query && !own.includes(want.query)) return false;
    if (want.label && String(sample.label) !== want.label) return false;
    if (want.pull && !sample.links.some((link) => kind(link[2]) === want.pull)) return false;
    if (want.column && want.value) {
      const c = Number(want.column);
      const shown = String(cell(sample.values[c], deck.columns[c])).toLowerCase();
      const plain = deck.columns[c].kind === "category" || deck.columns[c].words ? shown.includes(want.value) : shown.replaceAll(",", "") === want.value;
      if (!plain) return false;
    }
    return true;
  };
  let hits = [], shown = 0;
  const extend = () => {
    const next = hits.slice(shown, shown + PAGE);
    box.append(...next.map(card));
    shown += next.length;
    more.hidden = shown >= hits.length;
    told.textContent = hits.length ? `${hits.length} of ${deck.samples.length} samples, ${shown} shown` : "No sample is like that.";
  };
  const update = () => {
    const want = asked();
    box.replaceChildren();
    first.hidden = want.any;
    shown = 0;
    hits = want.any ? deck.samples.map((_, place) => place).filter((place) => fits(want, place)) : [];
    if (want.any) extend();
    else { more.hidden = true; told.textContent = ""; }
  };
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", extend);
  form.hidden = false;
})();
