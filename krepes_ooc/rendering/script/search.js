// --- search and order over all samples ---
const form = document.getElementById("find");
if (deck && form) {
  const box = document.getElementById("found"), first = document.getElementById("cards");
  const said = document.getElementById("matched"), more = document.getElementById("more");
  const field = (name) => form.elements.namedItem(name);
  // Small agreement and closeness come first, large scores and mixing.
  const descending = { top: true, mix: true, agree: false, near: false };
  let isHome = true;
  const showHome = (home) => {
    // Two cards of one sample would have one address
    if (home && !isHome) box.before(first);
    if (!home && isHome) first.remove();
    isHome = home;
  };

  const asked = () => {
    const query = field("query").value.trim().toLowerCase().replace(/^#/, "");
    const label = field("label").value, sign = field("sign").value, order = field("order").value;
    const column = field("column") ? field("column").value : "";
    const value = field("value") ? field("value").value.trim().toLowerCase() : "";
    return { query, label, sign, column, value, order, any: Boolean(query || label || sign || order || (column && value)) };
  };
  const fits = (want, place) => {
    const sample = deck.samples[place];
    // A name that is only the position, #17, is found by exactly this number.
    const text = sample.name === `#${sample.id}` ? "" : sample.name.toLowerCase() + (sample.text ?? "").toLowerCase();
    if (want.query && String(sample.id) !== want.query && !text.includes(want.query)) return false;
    if (want.label && String(sample.label) !== want.label) return false;
    if (want.sign && !sample.links.some((link) => kind(link[2]) === want.sign)) return false;
    if (want.column && want.value) {
      const c = Number(want.column), column = deck.columns[c];
      const shown = String(cell(sample.values[c], column)).toLowerCase();
      const plain = column.kind === "category" || column.words ? shown.includes(want.value) : shown.replaceAll(",", "") === want.value;
      if (!plain) return false;
    }
    return true;
  };
  const sorted = (places, key) => {
    if (!key) return places;
    const sign = descending[key] ? -1 : 1;
    const value = (place) => deck.samples[place][key] ?? Infinity * sign;
    return places.sort((a, b) => sign * (value(a) - value(b)) || a - b);
  };
  let hits = [], shown = 0;
  const extend = () => {
    const next = hits.slice(shown, shown + PAGE);
    box.append(...next.map(card));
    shown += next.length;
    more.hidden = shown >= hits.length;
    said.textContent = hits.length ? `${hits.length} of ${deck.samples.length} samples, ${shown} shown`
      : `No match among the ${deck.samples.length} audited samples. Others: krepes explain --sample N`;
  };
  const update = () => {
    const want = asked();
    box.replaceChildren();
    showHome(!want.any);
    shown = 0;
    const places = deck.samples.map((_, place) => place).filter((place) => fits(want, place));
    hits = want.any ? sorted(places, want.order) : [];
    if (want.any) extend();
    else { more.hidden = true; said.textContent = ""; }
  };
  drawCard = (id) => {
    const place = deck.samples.findIndex((sample) => sample.id === id);
    if (place < 0) return null;
    const node = card(place);
    box.prepend(node);
    return node;
  };
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", extend);
  form.hidden = false;
}
