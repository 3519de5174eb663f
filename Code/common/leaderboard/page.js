"use strict";
// Glue between the numbers in #data and the libraries that draw (Plot) and sort (sortable). It computes no statistics.
(() => {
  const { boards, pictures: photos } = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const NULLS = { random: "random", downsample: "smaller image" };
  const HINT = get("strip").textContent;
  const state = { board: boards[0], position: 0, hidden: new Set(), chosen: null };

  // Places come as whole numbers, in the order of content.py: accuracy in hundredths of a point; lost, above each null row
  // and behind in tenths; agreement and divergence in ten-thousandths.
  function unpack(packed, nulls) {
    if (!packed) return null;
    const numbers = packed.map((value, i) => (value == null ? null : value / (i === 0 ? 100 : i < packed.length - 2 ? 10 : 10000)));
    const three = (start) => (numbers[start] == null ? null : numbers.slice(start, start + 3));
    const [agreement, divergence] = numbers.slice(-2);
    const above = Object.fromEntries(nulls.map((name, number) => [name, three(4 + 3 * number)]));
    return { accuracy: numbers[0], lost: three(1), above, behind: three(4 + 3 * nulls.length), agreement, divergence };
  }
  for (const board of boards) for (const line of board.lines) line.places = line.places.map((place) => unpack(place, board.nulls));

  function node(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== false && value != null) made.setAttribute(name, value);
    made.append(...children.filter((child) => child != null));
    return made;
  }

  const fixed = (value, digits = 2) => (value == null ? "" : value.toFixed(digits));
  const signed = (value, digits = 2) => (value >= 0 ? "+" : "\u2212") + Math.abs(value).toFixed(digits);
  const interval = ([mean, low, high]) => [`${signed(mean, 1)} `, node("small", {}, `(${signed(low, 1)} to ${signed(high, 1)})`)];

  // What is shown

  const groups = (line) => [
    line.null ? "null rows" : line.family,
    line.trained ? "trained" : "training-free",
    line.cls ? "needs CLS" : "works without CLS",
  ];
  const visible = () => state.board.lines.filter((line) => !groups(line).some((name) => state.hidden.has(name)));
  const place = (line) => line.places[state.position];
  const saved = () => state.board.positions[state.position];

  function nearest(line) {
    return line.points.reduce((best, point) => (Math.abs(point.saved - saved()) < Math.abs(best.saved - saved()) ? point : best));
  }

  // Filters, boards, slider

  function fillFilters() {
    const present = new Set(state.board.lines.flatMap(groups));
    const kinds = [["drops", "merges", "mixes", "idles", "resizes", "null rows"], ["training-free", "trained"], ["needs CLS", "works without CLS"]];
    get("filters").replaceChildren(get("filters").querySelector("legend"));
    kinds.forEach((names, number) => {
      const shown = names.filter((name) => present.has(name));
      if (number > 0 && shown.length) get("filters").append(node("span", { "aria-hidden": "true" }));
      for (const name of shown) {
        const box = node("input", { type: "checkbox", value: name, checked: state.hidden.has(name) ? false : "" });
        box.addEventListener("change", () => { state.hidden[box.checked ? "delete" : "add"](name); update(); });
        get("filters").append(node("label", {}, box, ` ${name}`));
      }
    });
  }

  function showBoard(number) {
    const board = (state.board = boards[number]);
    const middle = board.budgets[Math.floor((board.budgets.length - 1) / 2)];
    state.position = Math.max(0, board.positions.indexOf(Math.round(middle)));
    state.chosen = null;
    get("about").textContent = `${board.about}.`;
    get("answers").replaceChildren(...board.sentences.map((text) => node("li", {}, text)));
    get("leads").replaceChildren(...board.leads.map((lead) => node("li", { class: lead.sure ? "sure" : null }, lead.text)));
    const trained = new Set(board.lines.filter((line) => line.trained).map((line) => line.how));
    get("trained").textContent = trained.size ? `Trained models (dashed): ${[...trained].join(" / ")}; compared with the unreduced model as it was run above.` : "";
    get("unmeasured").textContent = board.speed ? `Speed-up over the unreduced model, its share of the MAC promise, and peak memory: ${board.speed}.` : "Speed and memory were not measured at these schedules, so none are shown.";
    Object.assign(get("budget"), { min: 0, max: board.positions.length - 1, step: 1, value: state.position });
    get("budgets").replaceChildren(...board.budgets.map((budget) => node("option", { value: Math.round(budget) })));
    fillFilters();
    fillHead();
    update();
  }

  function update() {
    const share = saved() / 100;
    get("saved").textContent = `${saved()} %`;
    get("cost").textContent = `\u2013 ${(state.board.whole.gmac * (1 - share)).toPrecision(3)} of ${state.board.whole.gmac.toPrecision(3)} GMAC an image`;
    get("budget").setAttribute("aria-valuetext", `${saved()} percent saved`);
    fillTable();
    draw();
    inspect(state.chosen);
  }

  // Table

  const known = (name) => state.board.lines.some((line) => line.points.some((point) => point[name] != null));
  const columns = () => [
    { name: "#", plain: true, cell: (line, there, rank) => [`${rank}${rank > 1 && tied(line, there) ? " =" : ""}`] },
    { name: "Model", left: true, wrap: true, sort: (line) => line.label, cell: model },
    { name: "Accuracy, %", sort: (line, there) => there.accuracy, cell: (line, there) => [fixed(there.accuracy)] },
    { name: "To unreduced", sort: (line, there) => there.lost[0], cell: (line, there) => interval(there.lost), tone: (line, there) => there.lost },
    ...state.board.nulls.map((name) => ({
      name: `Over ${NULLS[name]}`,
      sort: (line, there) => there.above[name]?.[0],
      cell: (line, there) => (there.above[name] ? interval(there.above[name]) : []),
      tone: (line, there) => there.above[name],
    })),
    known("divergence") && { name: "KL, nats", sort: (line, there) => there.divergence, cell: (line, there) => [fixed(there.divergence, 3)] },
    known("agreement") && { name: "Same class, %", sort: (line, there) => there.agreement, cell: (line, there) => [there.agreement == null ? "" : fixed(100 * there.agreement, 1)] },
    { name: "Family", left: true, sort: (line) => line.family, cell: (line) => [line.family] },
    { name: "CLS", left: true, sort: (line) => String(line.cls), cell: (line) => [line.cls ? "needs it" : ""] },
    { name: "Verified", left: true, wrap: true, sort: (line) => line.verified, cell: (line) => [line.verified] },
  ].filter(Boolean);

  function model(line) {
    const badges = [line.null && "null row", line.trained && "trained"].filter(Boolean);
    return [swatch(line), line.label.replace(" (trained)", ""), ...badges.map((text) => node("span", { class: "badge" }, text))];
  }

  function swatch(line) {
    const name = `symbol${line.symbol[0].toUpperCase()}${line.symbol.slice(1)}`;
    const svg = d3.create("svg").attr("class", "swatch").attr("width", 14).attr("height", 14).attr("viewBox", "-7 -7 14 14").attr("aria-hidden", "true");
    svg.append("path").attr("d", d3.symbol(d3[name], 50)()).attr("fill", line.null ? "#fff" : line.color).attr("stroke", line.color).attr("stroke-width", 1.5);
    return svg.node();
  }

  function fillHead() {
    const heads = columns().map((column) => node("th", { scope: "col", class: [column.left && "left", column.plain && "no-sort"].filter(Boolean).join(" ") || null }, column.name));
    heads[2].setAttribute("aria-sort", "descending");
    get("table").tHead.rows[0].replaceChildren(...heads);
    enhanceSortableAccessibility([get("table")]);
  }

  function fillTable() {
    const focused = document.activeElement?.closest?.("#table tbody tr")?.dataset.key;
    const there = visible().filter(place);
    const ranks = new Map(d3.sort(there, (line) => -place(line).accuracy).map((line, number) => [line, number + 1]));
    get("table").tBodies[0].replaceChildren(...there.map((line) => row(line, ranks.get(line))));
    sortSortable(get("table"), false);
    const absent = visible().filter((line) => !place(line)).map((line) => line.label);
    get("absent").textContent = absent.length ? `Not measured on both sides of this cost: ${absent.join(", ")}.` : "";
    if (focused) get("table").querySelector(`tr[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  const tied = (line, there) => !line.trained && (there.behind == null || there.behind[1] <= 0);

  function row(line, rank) {
    const at = place(line);
    const made = node("tr", { "data-key": line.key, tabindex: 0, class: tied(line, at) ? "tied" : null, "aria-label": `${line.label}: details` });
    for (const column of columns()) {
      const tone = column.tone?.(line, at);
      const names = [column.left && "left", column.wrap && "wrap", tone && tone[1] > 0 && "sure", tone && tone[2] < 0 && "worse"];
      const value = column.sort?.(line, at) ?? "";
      made.append(node("td", { class: names.filter(Boolean).join(" ") || null, "data-sort": value }, ...column.cell(line, at, rank)));
    }
    return made;
  }

  // Plot

  function draw() {
    const lines = visible();
    const points = lines.flatMap((line) => line.points.map((point) => ({ ...point, line })));
    const path = lines.flatMap((line) => {
      const start = line.trained ? [] : [{ saved: 0, accuracy: state.board.whole.accuracy }];
      return [...start, ...line.points].map((point) => ({ saved: point.saved, accuracy: point.accuracy, line }));
    });
    const width = get("plot").clientWidth || 640;
    const strong = (point) => point.line === state.chosen;
    const stroke = {
      x: "saved", y: "accuracy", z: (point) => point.line.key, stroke: (point) => point.line.color,
      strokeWidth: (point) => (strong(point) ? 4 : 1.5), strokeOpacity: (point) => (state.chosen && !strong(point) ? 0.35 : 1),
    };
    const plot = Plot.plot({
      width, height: Math.min(430, Math.max(260, width * 0.5)), marginLeft: 40, marginBottom: 40, marginRight: 16,
      style: { fontSize: "12px", fontFamily: "inherit" },
      x: { label: "multiply-accumulates saved (%) \u2192", domain: [0, state.board.positions.at(-1)] },
      y: { label: "\u2191 accuracy (%)", grid: true, nice: true },
      marks: [
        Plot.ruleY([state.board.whole.accuracy], { strokeDasharray: "5 4", stroke: "#555" }),
        Plot.line(path.filter((point) => !point.line.null && !point.line.trained), stroke),
        Plot.line(path.filter((point) => point.line.trained), { ...stroke, strokeDasharray: "7 3" }),
        Plot.line(path.filter((point) => point.line.null), { ...stroke, strokeWidth: 2.4, strokeDasharray: "2 4" }),
        Plot.dot(points, { x: "saved", y: "accuracy", stroke: (point) => point.line.color, fill: (point) => (point.line.null ? "#fff" : point.line.color), symbol: (point) => point.line.symbol, r: 4 }),
        Plot.ruleX([saved()], { stroke: "#0b62a3", strokeWidth: 2, className: "cursor" }),
        Plot.tip(points, Plot.pointer({ x: "saved", y: "accuracy", title: tip, lineWidth: 26, textPadding: 8, maxRadius: 30 })),
      ],
    });
    plot.addEventListener("input", () => { if (plot.value) inspect(plot.value.line, plot.value); });
    plot.addEventListener("click", () => { if (plot.value) open(plot.value.line); });
    get("plot").replaceChildren(plot);
  }

  const schedule = (point) => `keep rate ${point.keep_rate}${point.counts ? `, patches left ${point.counts}` : ""}`;
  const speeds = (point) => [["speedup", "\u00d7 as fast"], ["promise", " of the MAC promise"], ["memory", " MB at most"]].filter(([name]) => point.speed[name] != null).map(([name, unit]) => `${point.speed[name].toFixed(2)}${unit}`);
  const call = (line, point) => line.call.join(point.rate);
  const tip = (point) => [point.line.label, `${fixed(point.accuracy)} % at ${fixed(point.saved, 1)} % saved, ${fixed(point.gmac, 3)} GMAC`, ...speeds(point), schedule(point), call(point.line, point)].join("\n");

  function inspect(line, point) {
    if (!line) return get("strip").replaceChildren(HINT);
    const shown = point ?? nearest(line);
    get("strip").replaceChildren(
      node("b", {}, line.label), ` \u2013 ${point ? "" : "nearest measured: "}${fixed(shown.accuracy)} % at ${fixed(shown.saved, 1)} % saved, ${fixed(shown.gmac, 3)} GMAC; ${[...speeds(shown), schedule(shown)].join(", ")}`,
      node("br"), node("code", {}, call(line, shown)), line.trained ? ` ${line.how.split(";")[0]}` : "",
    );
  }

  // Details

  function open(line) {
    state.chosen = line;
    get("details-title").replaceChildren(...model(line));
    const points = line.points.map((point) => node("tr", {}, ...[fixed(point.saved, 1), fixed(point.gmac, 3), point.keep_rate, point.counts, fixed(point.accuracy)].map((text) => node("td", {}, text)), node("td", {}, ...interval(point.lost)), node("td", {}, speeds(point).join(", "))));
    const names = ["MAC saved, %", "GMAC", "Keep rate", "Patches left", "Accuracy, %", "To unreduced", "Speed"];
    const used = state.board.speed ? names : names.slice(0, -1);
    if (!state.board.speed) points.forEach((each) => each.lastChild.remove());
    get("details-body").replaceChildren(
      node("p", { class: "note" }, `${line.how}. ${FAMILIES[line.family]} Verified by: ${line.verified}${line.tests.length ? ` (${line.tests.join(", ")})` : ""}.`),
      node("p", {}, node("code", {}, call(line, nearest(line))), line.trained ? ` ${line.how.split(";")[0]}` : ""),
      photographs(line),
      node("div", { class: "scroll" }, node("table", {}, node("thead", {}, node("tr", {}, ...used.map((name) => node("th", {}, name)))), node("tbody", {}, ...points))),
    );
    get("details").showModal();
    update();
  }

  const FAMILIES = {
    drops: "A patch that goes is dropped.", merges: "A patch that goes is merged into another.", mixes: "Patches are mixed into fewer tokens.",
    idles: "A patch that goes skips blocks and comes back.", resizes: "No patch goes: the image is smaller.",
  };

  function photographs(line) {
    const pictures = photos[state.board.pictures];
    const kept = pictures?.kept[line.key];
    if (!kept?.length) return node("p", { class: "note" }, pictures ? "What it keeps was not traced: the weights that it was trained to are not part of the results." : "Photographs were not traced: the network's weights were not there when the page was made.");
    const shown = kept.reduce((best, each) => (Math.abs(each.saved - saved()) < Math.abs(best.saved - saved()) ? each : best));
    const figures = pictures.images.map((image, number) => node("figure", {}, picture(image, pictures.grid, shown.groups[number])));
    return node("div", {}, node("p", { class: "note" }, `What is left after the last reduction at ${fixed(shown.saved, 1)} % saved: pale patches are gone, patches inside one outline share a token, yellow ones share the token of all that is left over. ${pictures.about}`), node("div", { class: "photos" }, ...figures));
  }

  // One byte a patch: 0 = gone, 255 = in the one token of all that was left over, other equal bytes = one token.
  function picture(image, [rows, columns], text) {
    const groups = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const svg = d3.create("svg").attr("viewBox", `0 0 ${columns} ${rows}`).attr("role", "img").attr("aria-label", "patches that are kept");
    svg.append("image").attr("href", image).attr("width", columns).attr("height", rows).attr("preserveAspectRatio", "none");
    const sizes = d3.rollup(groups, (those) => those.length, (group) => group);
    const outlined = (group) => group !== 0 && group !== 255 && sizes.get(group) > 1;
    let gone = "", fused = "", edges = "";
    groups.forEach((group, place) => {
      const [y, x] = [Math.floor(place / columns), place % columns];
      if (group === 0) gone += `M${x} ${y}h1v1h-1z`;
      if (group === 255) fused += `M${x} ${y}h1v1h-1z`;
      const border = (other) => groups[other] !== group && (outlined(group) || outlined(groups[other]));
      if (x + 1 < columns && border(place + 1)) edges += `M${x + 1} ${y}v1`;
      if (y + 1 < rows && border(place + columns)) edges += `M${x} ${y + 1}h1`;
    });
    svg.append("path").attr("d", gone).attr("fill", "#fff").attr("fill-opacity", 0.85);
    svg.append("path").attr("d", fused).attr("fill", "#f0e442").attr("fill-opacity", 0.6);
    svg.append("path").attr("d", edges).attr("stroke", "#fff").attr("stroke-width", 0.14).attr("stroke-linecap", "square");
    svg.append("path").attr("d", edges).attr("stroke", "#d55e00").attr("stroke-width", 0.07).attr("stroke-linecap", "square");
    return svg.node();
  }

  // Events

  const lineOf = (target) => {
    const key = target.closest?.("#table tbody tr")?.dataset.key;
    return state.board.lines.find((line) => line.key === key);
  };
  for (const event of ["mouseover", "focusin"]) {
    get("table").addEventListener(event, ({ target }) => { const line = lineOf(target); if (line) inspect(line); });
  }
  get("table").addEventListener("click", ({ target }) => { const line = lineOf(target); if (line) open(line); });
  get("table").addEventListener("keydown", (event) => {
    const line = event.key === "Enter" && lineOf(event.target);
    if (!line) return;
    event.preventDefault(); // else the same press would push the button that the dialog gives the focus to
    open(line);
  });
  get("details").addEventListener("close", () => {
    const key = state.chosen?.key;
    state.chosen = null;
    update();
    if (key) get("table").querySelector(`tr[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
  });
  get("budget").addEventListener("input", ({ target }) => { state.position = Number(target.value); update(); });
  get("board").addEventListener("change", ({ target }) => showBoard(Number(target.value)));
  addEventListener("resize", draw);
  addEventListener("beforeprint", draw);
  showBoard(0);
})();
