// --- the map: colour, pointer, keyboard ---
const mapForm = document.getElementById("map-form");
if (deck?.map && mapForm) {
  const tip = document.getElementById("map-tip"), announced = document.getElementById("map-said");
  const legend = document.getElementById("map-legend"), choice = mapForm.elements.namedItem("colour");
  const planes = [...document.querySelectorAll(".plane")].map((frame) => ({
    frame, dots: [...frame.querySelectorAll(".dots circle")], rings: [...frame.querySelectorAll(".rings circle")],
    names: frame.querySelector(".names"),
  }));
  const atStart = { legend: [...legend.childNodes], colours: planes.map((plane) => [plane.dots, plane.rings].map((marks) => marks.map((mark) => mark.getAttribute("class")))),
    names: planes.map((plane) => [...plane.names.childNodes]) };
  const SVG = "http://www.w3.org/2000/svg";
  const paint = (mark, name) => mark.setAttribute("class", mark.classList.contains("on") ? `${name} on` : name);

  // What can colour the map: key -> [words, value of a sample, whether it is a code, its name]
  const choices = new Map();
  if (deck.samples.some((sample) => sample.label >= 0)) choices.set("label", ["class", (s) => s.label, true, className]);
  if (deck.map.concepts.length) choices.set("concept", ["discovered concept", (s) => s.concept ?? -1, true, (code) => deck.map.concepts[code]]);
  deck.columns.forEach((column, c) => {
    const isCode = column.kind === "category" || Boolean(column.words);
    choices.set(`column-${c}`, [column.name, (s) => s.values?.[c] ?? null, isCode, (value) => cell(value, column)]);
  });
  for (const [key, words] of [["agree", "agreement"], ["near", "closeness (small: novel)"], ["mix", "mixing"], ["top", "score of the first landmark"]]) {
    if (deck.samples.some((sample) => (sample[key] ?? null) !== null)) choices.set(key, [words, (s) => s[key] ?? null, false]);
  }
  Object.entries(deck.map.effects).forEach(([name, values], g) => {
    choices.set(`effect-${g}`, [`effect of leaving out ${name}`, (s, place) => values[place], false]);
  });
  for (const [key, [words]] of choices) choice.append(make("option", { value: key }, words));

  const key = (name, words) => make("li", {}, make("i", { class: name }), words === null ? "" : make("bdi", {}, words));
  // Names do not cover each other: from the top, each stands below those it touches.
  const separate = (names) => {
    const done = [];
    for (const name of [...names].sort((a, b) => a.y - b.y)) {
      for (const other of done.sort((a, b) => a.y - b.y)) {
        const reach = 9 * (name.word.length + other.word.length) / 2;
        if (Math.abs(other.x - name.x) < reach && Math.abs(other.y - name.y) < 17) name.y = other.y + 17;
      }
      done.push(name);
    }
    return names;
  };
  const nameAt = (plane, colours, words) => {
    const names = words.map((word, colour) => {
      const mine = plane.dots.filter((_, i) => colours[i] === `k${colour}`);
      const middle = (name) => mine.map((dot) => Number(dot.getAttribute(name))).sort((a, b) => a - b)[mine.length >> 1];
      return { word: word.length > 16 ? `${word.slice(0, 15)}\u2026` : word, x: middle("cx"), y: middle("cy") };
    });
    plane.names.replaceChildren(...separate(names).map(({ word, x, y }) => {
      const text = document.createElementNS(SVG, "text");
      text.textContent = word;
      for (const [name, value] of [["x", x], ["y", y], ["dy", "0.35em"], ["class", "middle"]]) text.setAttribute(name, value);
      return text;
    }));
  };
  const byCode = (values, words, name) => {
    const counts = new Map();
    for (const value of values) if (value !== null && value !== -1) counts.set(value, (counts.get(value) ?? 0) + 1);
    const codes = [...counts].sort((a, b) => b[1] - a[1]).slice(0, COLOURS).map(([code]) => code).sort((a, b) => a - b);
    const colours = values.map((value) => `k${codes.includes(value) ? codes.indexOf(value) : COLOURS}`);
    const texts = codes.map((code) => String(name(code)));
    legend.replaceChildren(make("li", {}, make("span", { class: "quiet" }, words)), ...texts.map((text, i) => key(`k${i}`, text)),
      ...(counts.size > codes.length ? [key(`k${COLOURS}`, "others")] : []));
    return [colours, texts];
  };
  const byValue = (values, words) => {
    const known = values.filter((value) => value !== null).sort((a, b) => a - b);
    // One outlier must not take all colours but two.
    const low = known[Math.floor(0.02 * (known.length - 1))], high = known[Math.ceil(0.98 * (known.length - 1))];
    const step = (value) => value === null ? `k${COLOURS}`
      : `s${Math.max(0, Math.min(STEPS - 1, Math.floor((value - low) / ((high - low) || 1) * STEPS)))}`;
    const swatches = Array.from({ length: STEPS }, (_, i) => make("i", { class: `s${i}` }));
    legend.replaceChildren(make("li", {}, make("span", { class: "quiet" }, words)),
      make("li", { class: "ramp" }, format(low, "", 3), " ", ...swatches, " ", format(high, "", 3)));
    return values.map(step);
  };
  const recolour = () => {
    const chosen = choices.get(choice.value);
    if (!chosen) {
      planes.forEach((plane, side) => {
        [plane.dots, plane.rings].forEach((marks, which) => marks.forEach((mark, i) => paint(mark, atStart.colours[side][which][i])));
        plane.names.replaceChildren(...atStart.names[side]);
      });
      legend.replaceChildren(...atStart.legend);
      return;
    }
    const [words, value, isCode, name] = chosen;
    const values = deck.samples.map((sample, place) => value(sample, place));
    const [colours, texts] = isCode ? byCode(values, words, name) : [byValue(values, words), []];
    for (const plane of planes) {
      plane.dots.forEach((dot, i) => paint(dot, colours[i]));
      plane.rings.forEach((ring) => paint(ring, `k${COLOURS}`));
      nameAt(plane, colours, texts);
    }
  };
  const showRings = () => planes.forEach((plane) => { plane.frame.classList.toggle("no-rings", !mapForm.elements.namedItem("rings").checked); });

  let current = null;
  const wordsOf = (isRing, i) => {
    if (isRing) {
      const [name, label] = deck.map.rings[i];
      return `landmark ${className(label)} ${name}`.replace(/\s+/g, " ");
    }
    const sample = deck.samples[i];
    const chosen = choices.get(choice.value) ?? null;
    const value = chosen ? chosen[1](sample, i) : null;
    const beside = value === null || value === -1 ? "" : `, ${chosen[0]} ${chosen[2] ? chosen[3](value) : format(value, "", 3)}`;
    return `sample ${className(sample.label)} ${sample.name}${beside}`.replace(/\s+/g, " ");
  };
  const mark = (isRing, i) => {
    for (const plane of planes) {
      for (const on of plane.frame.querySelectorAll(".on")) on.classList.remove("on");
      if (i !== null) (isRing ? plane.rings : plane.dots)[i].classList.add("on");
    }
    current = isRing ? null : i;
  };
  const showTip = (isRing, i, x, y) => {
    tip.replaceChildren();
    if (!isRing && pictures) tip.append(picture("samples", i, deck.samples[i]));
    tip.append(make("bdi", {}, wordsOf(isRing, i)));
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 8))}px`;
  };
  const found = (plane, target) => {
    const i = plane.dots.indexOf(target);
    if (i >= 0) return [false, i];
    const j = plane.rings.indexOf(target);
    return j >= 0 ? [true, j] : null;
  };
  const open = (i) => { tip.hidden = true; goTo(`sample-${deck.samples[i].id}`); };
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const next = (plane, [dx, dy]) => {
    const at = (i) => [Number(plane.dots[i].getAttribute("cx")), Number(plane.dots[i].getAttribute("cy"))];
    if (current === null) return 0;
    const [x, y] = at(current);
    let best = current, least = Infinity;
    plane.dots.forEach((_, i) => {
      const [u, v] = at(i), along = (u - x) * dx + (v - y) * dy, across = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
      const cost = along + 3 * across;
      if (i !== current && along > 0 && cost < least) { least = cost; best = i; }
    });
    return best;
  };
  for (const plane of planes) {
    plane.frame.addEventListener("pointermove", (event) => {
      const hit = found(plane, event.target);
      if (!hit) { tip.hidden = true; return; }
      mark(...hit);
      showTip(...hit, event.clientX, event.clientY);
    });
    plane.frame.addEventListener("pointerleave", () => { tip.hidden = true; });
    plane.frame.addEventListener("blur", () => { tip.hidden = true; });
    plane.frame.addEventListener("click", (event) => {
      const hit = found(plane, event.target);
      if (hit && !hit[0]) open(hit[1]);
    });
    plane.frame.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && current !== null) { event.preventDefault(); open(current); return; }
      const way = ways[event.key];
      if (!way) return;
      event.preventDefault();
      const i = next(plane, way);
      mark(false, i);
      const place = plane.dots[i].getBoundingClientRect();
      showTip(false, i, place.right, place.bottom);
      announced.textContent = wordsOf(false, i);
    });
  }
  mapForm.addEventListener("input", () => { recolour(); showRings(); });
  mapForm.addEventListener("submit", (event) => event.preventDefault());
  mapForm.hidden = false;
}
