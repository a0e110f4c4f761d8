"use strict";
// Hovering, zoom and the keyboard for the charts, and the slider of the pictures. The page is whole without it; it makes no
// markup from text, and fetches nothing.
(() => {
  const SIDE = 1000, PAD = 0.012, STEPS = 4, CLOSE = 1e-9;
  const all = (where, what) => [...where.querySelectorAll(what)];
  const short = value => Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "";
  const numbers = text => text ? text.split(" ").map(Number) : [];

  const charts = all(document, ".chart").map(figure => {
    const lines = all(figure, "g[data-x]").map(group => ({
      group, name: group.dataset.name, x: numbers(group.dataset.x), y: numbers(group.dataset.y),
      spread: (group.dataset.spread || "").split(" "), shown: true,
    }));
    const { first, last, low, high } = figure.dataset;
    return {
      figure, lines, first: +first, last: +last, low: +low, high: +high, from: +first, to: +last, at: null,
      svg: figure.querySelector("svg"), frame: figure.querySelector(".frame"), cursor: figure.querySelector(".cursor"),
      tip: figure.querySelector(".tip"), y: all(figure, ".y span"), x: all(figure, ".x span"),
    };
  });

  // Five round numbers from the highest to the lowest, as round_scale in charts.py has them.
  function roundScale(low, high) {
    if (high === low) [low, high] = [low - 0.05 * Math.abs(low), high + 0.05 * Math.abs(high) || 1];
    const wide = Math.max(high - low, 1e-6 * Math.max(Math.abs(low), Math.abs(high)), 1e-280);
    const unit = 10 ** Math.floor(Math.log10(wide / STEPS));
    let step, bottom;
    for (const factor of [1, 2, 2.5, 5, 10, 20, 25, 50]) {
      step = factor * unit;
      bottom = Math.floor(low / step + CLOSE) * step;
      if (bottom + (STEPS + CLOSE) * step >= high) break;
    }
    return Array.from({ length: STEPS + 1 }, (_, i) => bottom + (STEPS - i) * step);
  }

  function labels(values) {
    const largest = Math.max(...values.map(Math.abs)), step = Math.abs(values[0] - values[1]);
    const digits = step && largest ? 2 + Math.floor(Math.log10(largest)) - Math.floor(Math.log10(step)) : 4;
    return values.map(value => String(Number((Math.abs(value) > step / 2 ? value : 0).toPrecision(Math.min(12, Math.max(2, digits))))));
  }

  // The part of a chart that is seen: the iterations from `from` to `to`, and the values of the lines that are not put away.
  function view(chart) {
    let low = Infinity, high = -Infinity;
    for (const line of chart.lines.filter(line => line.shown)) {
      line.x.forEach((x, i) => {
        if (x < chart.from || x > chart.to) return;
        const reach = Number(line.spread[i]) || 0;
        low = Math.min(low, line.y[i] - reach);
        high = Math.max(high, line.y[i] + reach);
      });
    }
    const scale = low > high ? roundScale(chart.low, chart.high) : roundScale(low, high);
    const across = SIDE / Math.max(1, chart.last - chart.first), up = SIDE / (chart.high - chart.low);
    const left = (chart.from - chart.first) * across, width = (chart.to - chart.from) * across;
    const top = (chart.high - scale[0]) * up, height = (scale[0] - scale[STEPS]) * up;
    const room = [width * PAD, height * PAD];
    chart.svg.setAttribute("viewBox", `${left - room[0]} ${top - room[1]} ${width + 2 * room[0]} ${height + 2 * room[1]}`);
    const rules = scale.map(y => `M${left - room[0]} ${(chart.high - y) * up}H${left + width + room[0]}`);
    chart.svg.querySelector(".grid").setAttribute("d", rules.join(""));
    labels(scale).forEach((text, i) => { chart.y[i].textContent = text; });
    [chart.from, Math.floor((chart.from + chart.to) / 2), chart.to].forEach((value, i) => { chart.x[i].textContent = value; });
  }

  // What a chart tells of an iteration: of each line the point that is nearest.
  function read(chart, iteration) {
    chart.at = Math.min(chart.to, Math.max(chart.from, iteration));
    const told = [];
    let nearest = null;
    for (const line of chart.lines.filter(line => line.shown)) {
      let best = -1;
      line.x.forEach((x, i) => {
        if (x >= chart.from && x <= chart.to && (best < 0 || Math.abs(x - chart.at) < Math.abs(line.x[best] - chart.at))) best = i;
      });
      if (best < 0) continue;
      const x = line.x[best];
      if (nearest === null || Math.abs(x - chart.at) < Math.abs(nearest - chart.at)) nearest = x;
      const spread = Number(line.spread[best]) ? ` ± ${short(Number(line.spread[best]))}` : "";
      told.push([x, `${line.name} ${short(line.y[best])}${spread}`]);
    }
    if (nearest === null) return;
    chart.tip.textContent = `${nearest}: ` + told.map(([x, text]) => x === nearest ? text : `${text} (${x})`).join(", ");
    chart.cursor.hidden = false;
    const share = (nearest - chart.from) / Math.max(1, chart.to - chart.from);
    chart.cursor.style.left = `${100 * (share + PAD) / (1 + 2 * PAD)}%`;
    return nearest;
  }

  function zoom(from, to) {
    for (const chart of charts) {
      chart.from = Math.max(chart.first, Math.min(from, to - 1));
      chart.to = Math.min(chart.last, Math.max(to, chart.from + 1));
      chart.cursor.hidden = true;
      chart.tip.textContent = "";
      view(chart);
    }
    const [chart] = charts;
    if (chart && limits.length) { limits[0].value = chart.from; limits[1].value = chart.to; }
    if (reset) reset.disabled = !chart || (chart.from === chart.first && chart.to === chart.last);
  }

  const limits = all(document, "#from, #to"), reset = document.querySelector("#whole");
  const whole = () => { const [chart] = charts; if (chart) zoom(chart.first, chart.last); };
  limits.forEach(input => input.addEventListener("change", () => zoom(+limits[0].value, +limits[1].value)));
  if (reset) reset.addEventListener("click", whole);
  all(document, ".toolbar.zoom").forEach(bar => { bar.hidden = false; });

  if (charts.length && limits.length) { limits[0].value = charts[0].first; limits[1].value = charts[0].last; }

  for (const chart of charts) {
    const at = event => {
      const box = chart.frame.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width * (1 + 2 * PAD) - PAD));
      return chart.from + share * (chart.to - chart.from);
    };
    let start = null, band = null;
    chart.frame.addEventListener("pointermove", event => {
      read(chart, Math.round(at(event)));
      if (start === null) return;
      const box = chart.frame.getBoundingClientRect(), ends = [start, event.clientX].sort((a, b) => a - b);
      band.style.left = `${ends[0] - box.left}px`;
      band.style.width = `${ends[1] - ends[0]}px`;
    });
    chart.frame.addEventListener("pointerdown", event => {
      read(chart, Math.round(at(event)));
      if (event.pointerType !== "mouse" || event.button) return;
      start = event.clientX;
      band = chart.frame.appendChild(document.createElement("div"));
      band.className = "select";
      chart.frame.setPointerCapture(event.pointerId);
    });
    const end = event => {
      if (start === null) return;
      const far = Math.abs(event.clientX - start) > 8, ends = [at({ clientX: start }), at(event)].sort((a, b) => a - b);
      start = null;
      band.remove();
      if (far && event.type === "pointerup") zoom(Math.floor(ends[0]), Math.ceil(ends[1]));
    };
    chart.frame.addEventListener("pointerup", end);
    chart.frame.addEventListener("pointercancel", end);
    chart.frame.addEventListener("pointerleave", () => { if (start === null) { chart.cursor.hidden = true; chart.tip.textContent = ""; } });
    chart.frame.addEventListener("dblclick", whole);
    chart.frame.addEventListener("keydown", event => {
      const there = [...new Set(chart.lines.filter(line => line.shown).flatMap(line => line.x))]
        .filter(x => x >= chart.from && x <= chart.to).sort((a, b) => a - b);
      if (!there.length) return;
      const now = there.findIndex(x => chart.at !== null && x >= chart.at);
      const go = { ArrowRight: now < 0 ? 0 : now + 1, ArrowLeft: now < 0 ? there.length - 1 : now - 1, Home: 0, End: there.length - 1 }[event.key];
      const width = chart.to - chart.from, middle = chart.at ?? (chart.from + chart.to) / 2;
      if (go !== undefined) read(chart, there[Math.min(there.length - 1, Math.max(0, go))]);
      else if (event.key === "+") zoom(Math.floor(middle - width / 4), Math.ceil(middle + width / 4));
      else if (event.key === "-") zoom(Math.floor(middle - width), Math.ceil(middle + width));
      else if (event.key === "0" || event.key === "Escape") whole();
      else return;
      event.preventDefault();
    });
    all(chart.figure, ".legend button").forEach((button, i) => button.addEventListener("click", () => {
      const line = chart.lines[i];
      line.shown = !line.shown;
      line.group.classList.toggle("off", !line.shown);
      button.setAttribute("aria-pressed", String(line.shown));
      view(chart);
    }));
  }

  // The pictures of the evaluation that the slider names, sorted as chosen, and enlarged in a dialog.
  const gallery = document.querySelector("#gallery"), dialog = document.querySelector("dialog");
  const slider = document.querySelector("#evaluation"), order = document.querySelector("#order");
  const cards = gallery ? [...gallery.children] : [];
  let open = null;

  function show(place) {
    if (!slider) return;
    slider.value = place;
    const name = slider.dataset.names.split("|")[place];
    document.querySelector("#evaluated").textContent = name;
    slider.setAttribute("aria-valuetext", name);
    for (const card of cards) all(card, "[data-evaluation]").forEach(part => { part.hidden = +part.dataset.evaluation !== place; });
    if (open) enlarge(open);
  }

  function enlarge(card) {
    open = card;
    const side = dialog.querySelector(".side");
    side.replaceChildren(...all(card, ".shown").filter(part => !part.closest("[hidden]")).map(part => {
      const copy = part.cloneNode(true);
      all(copy, "[data-evaluation]").forEach(inner => { if (inner.hidden) inner.remove(); });
      all(copy, "button").forEach(button => button.replaceWith(...button.childNodes));
      return copy;
    }));
    dialog.querySelector(".told").textContent = card.querySelector(".prompt").textContent;
    if (!dialog.open) dialog.showModal();
  }

  if (slider) slider.addEventListener("input", () => show(+slider.value));
  if (order) order.addEventListener("change", () => {
    const [label, sign] = order.value.split(":").map(Number);
    const gain = card => { const found = card.dataset.gains.split(" ")[label]; return found === "-" || !found ? NaN : sign * Number(found); };
    const sorted = order.value === "" ? cards : [...cards].sort((a, b) => (isNaN(gain(a)) - isNaN(gain(b))) || gain(b) - gain(a));
    gallery.replaceChildren(...sorted);
  });
  for (const button of all(document, ".enlarge")) button.addEventListener("click", () => enlarge(button.closest("li")));
  if (dialog) {
    dialog.addEventListener("close", () => { open = null; });
    dialog.addEventListener("click", event => { if (event.target === dialog || event.target.closest(".close")) dialog.close(); });
    dialog.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || !slider || !open || open.parentNode !== gallery) return;
      event.preventDefault();
      show(Math.min(+slider.max, Math.max(0, +slider.value + step)));
    });
  }
  if (slider) { show(+slider.max); document.querySelector("#pictures-toolbar").hidden = false; }
})();
