"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const {tests, flows, workers} = data;
tests.forEach((test, index) => { test.index = index; test.end = test.start + test.duration; });
let selected = null;

const escape = (text) => String(text).replace(/[&<>"]/g, (sign) => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})[sign]);
const many = (count, one, more = one + "s") => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
const seconds = (value) => value === null ? "" : value >= 100 ? `${value.toFixed(0)} s` : value >= 1 ? `${value.toFixed(2)} s` : `${(value * 1000).toFixed(1)} ms`;
const bytes = (value) => value < 1000 ? `${value} B` : value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
const clock = (time) => new Date(time * 1000).toLocaleTimeString("en-GB") + "." + String(Math.floor(time * 1000) % 1000).padStart(3, "0");
const cut = (text, length) => text.length > length ? text.slice(0, length - 1) + "…" : text;
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const shade = (outcome) => ({passed: "passed", failed: "failed", error: "failed", skipped: "skipped"})[outcome] || "other";

function header() {
  const day = new Date(data.started * 1000).toLocaleString("en-GB", {dateStyle: "long", timeStyle: "short"});
  byId("subtitle").textContent = `${day}, ${data.settings}. ${data.application}`;
  const count = (outcomes) => tests.filter((test) => outcomes.includes(test.outcome)).length;
  const tiles = [
    [tests.length, "tests"], [count(["passed"]), "passed"], [count(["failed", "error"]), "failed", "failed"],
    [tests.filter((test) => test.leaf).length, "isolated"], [data.counts.allowed, "flows allowed"],
    [data.counts.blocked, "attempts blocked", "blocked"], [workers.length, workers.length === 1 ? "worker" : "workers"],
    [seconds(data.finished - data.started), "in all"],
  ];
  byId("tiles").innerHTML = tiles.map(([value, name, kind]) =>
    `<div class="tile ${value ? kind || "" : ""}"><b>${typeof value === "number" ? value.toLocaleString("en") : value}</b><span>${name}</span></div>`).join("");
  byId("legend").innerHTML = [["passed", "passed"], ["failed", "failed"], ["skipped", "skipped"], ["other", "other"]]
    .map(([name, text]) => `<i style="background: var(--${name})"></i>${text}`).join("");
}

const timeline = {
  from: data.started, to: Math.max(data.finished, data.started + .001), lane: 26, gap: 12, top: 6, left: 64,
  y(worker) { return this.top + worker * (this.lane + this.gap); },
  x(time) { return this.left + (time - this.from) / (this.to - this.from) * (this.width - this.left); },
  time(x) { return this.from + (x - this.left) / (this.width - this.left) * (this.to - this.from); },
  draw() {
    const canvas = byId("lanes"), ratio = window.devicePixelRatio || 1;
    this.width = canvas.clientWidth;
    this.height = this.y(workers.length) + 20;
    canvas.style.height = `${this.height}px`;
    canvas.width = this.width * ratio;
    canvas.height = this.height * ratio;
    const paint = canvas.getContext("2d");
    paint.scale(ratio, ratio);
    paint.font = "13px system-ui, sans-serif";
    workers.forEach((name, worker) => {
      paint.fillStyle = color("soft");
      paint.fillText(cut(name, 8), 0, this.y(worker) + 18);
      paint.fillStyle = color("lane");
      paint.fillRect(this.left, this.y(worker), this.width - this.left, this.lane);
    });
    paint.save();
    paint.beginPath();
    paint.rect(this.left, 0, this.width - this.left, this.height);
    paint.clip();
    // Failures last, so that none is hidden by its neighbours.
    for (const kind of ["passed", "other", "skipped", "failed"]) {
      paint.fillStyle = color(kind);
      for (const test of tests) {
        if (shade(test.outcome) !== kind || test.end < this.from || test.start > this.to) continue;
        const x = this.x(test.start), width = Math.max(kind === "failed" ? 2 : .5, this.x(test.end) - x - (this.x(test.end) - x > 4 ? 1 : 0));
        paint.globalAlpha = selected === null || selected === test ? 1 : .3;
        paint.fillRect(x, this.y(test.worker), width, this.lane);
      }
    }
    paint.globalAlpha = 1;
    paint.fillStyle = color("blocked");
    for (const test of tests) if (test.blocked) paint.fillRect(this.x(test.start), this.y(test.worker) + this.lane + 2, Math.max(2, Math.min(6, this.x(test.end) - this.x(test.start))), 5);
    paint.restore();
    this.axis(paint);
  },
  axis(paint) {
    const span = this.to - this.from, rough = span / 8, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
    paint.fillStyle = color("soft");
    paint.textAlign = "center";
    for (let at = Math.ceil((this.from - data.started) / step) * step; at <= this.to - data.started; at += step) {
      const x = this.x(data.started + at);
      paint.fillRect(x, this.height - 18, 1, 4);
      if (x > this.left + 16 && x < this.width - 20) paint.fillText(at === 0 ? "0" : at < 1 ? `${+(at * 1000).toFixed(3)} ms` : `${+at.toFixed(4)} s`, x, this.height - 3);
    }
    paint.textAlign = "left";
  },
  find(event) {
    const box = byId("lanes").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const worker = Math.floor((y - this.top) / (this.lane + this.gap)), time = this.time(x), near = (this.to - this.from) / (this.width - this.left) * 2;
    const found = tests.filter((test) => test.worker === worker && test.start - near <= time && time <= test.end + near);
    const away = (test) => Math.max(0, test.start - time, time - test.end);
    return found.sort((a, b) => away(a) - away(b) || (shade(b.outcome) === "failed") - (shade(a.outcome) === "failed"))[0] || null;
  },
  bind() {
    const canvas = byId("lanes"), tip = byId("tip");
    let dragged = null;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const middle = this.time(event.clientX - canvas.getBoundingClientRect().left), factor = event.deltaY > 0 ? 1.25 : .8;
      this.show(middle - (middle - this.from) * factor, middle + (this.to - middle) * factor);
    }, {passive: false});
    canvas.addEventListener("pointerdown", (event) => { dragged = {x: event.clientX, from: this.from, to: this.to, moved: false}; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (dragged) {
        const shift = (event.clientX - dragged.x) / (this.width - this.left) * (dragged.to - dragged.from);
        dragged.moved = dragged.moved || Math.abs(event.clientX - dragged.x) > 3;
        if (dragged.moved) this.show(dragged.from - shift, dragged.to - shift);
        return;
      }
      const test = this.find(event), box = canvas.getBoundingClientRect();
      tip.hidden = test === null;
      if (test === null) return;
      tip.innerHTML = `${escape(test.name)}<br>${test.outcome}, ${seconds(test.duration)}${test.leaf ? `, leaf ${escape(test.leaf)}` : ""}${test.blocked ? `, ${many(test.blocked, "attempt")} blocked` : ""}`;
      tip.style.left = `${Math.min(event.clientX - box.left + 12, Math.max(0, box.width - 380))}px`;
      tip.style.top = `${event.clientY - box.top + 16}px`;
    });
    canvas.addEventListener("pointerup", (event) => { if (dragged && !dragged.moved) select(this.find(event)); dragged = null; });
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    canvas.addEventListener("dblclick", () => this.show(data.started, data.finished));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  },
  show(from, to) {
    const span = Math.min(Math.max(to - from, 1e-4), data.finished - data.started || .001);
    this.from = Math.min(Math.max(from, data.started), Math.max(data.started, data.finished - span));
    this.to = this.from + span;
    this.draw();
  },
};

function endpoints(some) {
  const found = new Map();
  for (const flow of some) {
    const key = `${flow.verdict} ${flow.endpoint}`, known = found.get(key) || {endpoint: flow.endpoint, verdict: flow.verdict, count: 0, size: 0, leaves: new Set()};
    known.count += 1;
    known.size += flow.sent + flow.received;
    known.leaves.add(flow.worker);
    found.set(key, known);
  }
  return [...found.values()].sort((a, b) => b.count - a.count);
}

function picture() {
  const shown = selected === null ? flows : flows.filter((flow) => flow.test === selected.index);
  const all = endpoints(shown), most = 18, ends = all.slice(0, most);
  const sources = selected === null
    ? workers.map((name, worker) => ({title: `worker ${name}`, text: `its network, and ${many(tests.filter((test) => test.worker === worker && test.leaf).length, "test's", "tests'")}`, uses: (end) => end.leaves.has(worker)}))
    : [{title: selected.leaf || "no network of its own", text: cut(selected.name.split("::").slice(1).join("::") || selected.name, 34), uses: () => true},
       {title: `worker ${workers[selected.worker]}`, text: "session's fixtures; shares loopback", uses: () => false}];
  byId("picture-hint").innerHTML = selected === null
    ? "Every way out leads through the gateway. Blue was let through, dashed red was refused; the number says how often."
    : `Only what <b>${escape(selected.name)}</b> tried. <button type="button" id="all">show all</button>`;
  const row = 34, rows = Math.max(ends.length + (all.length > most ? 1 : 0), sources.length * 2, 3), height = rows * row + 20, middle = height / 2;
  const parts = [], place = (index, count) => (index + .5) * height / count, hub = 470, right = 730;
  sources.forEach((source, index) => {
    const y = place(index, sources.length), used = ends.some(source.uses);
    parts.push(`<path class="link" stroke-width="${used ? 2 : 1}" d="M250 ${y} C 350 ${y}, 380 ${middle}, ${hub - 60} ${middle}"/>`);
    parts.push(`<rect class="box" x="10" y="${y - 24}" width="240" height="48" rx="7"/><text x="22" y="${y - 4}">${escape(cut(source.title, 30))}</text><text class="soft" x="22" y="${y + 14}">${escape(source.text)}</text>`);
  });
  parts.push(`<rect class="box hub" x="${hub - 60}" y="${middle - 26}" width="120" height="52" rx="7"/><text x="${hub}" y="${middle - 3}" text-anchor="middle">gateway</text><text class="soft" x="${hub}" y="${middle + 15}" text-anchor="middle">${many(shown.length, "flow")}</text>`);
  if (selected !== null) parts.push(`<path class="link" style="stroke-dasharray: 3 3" stroke-width="2" d="M130 ${place(0, 2) + 24} V ${place(1, 2) - 24}"/>`);
  ends.forEach((end, index) => {
    const y = place(index, ends.length + (all.length > most ? 1 : 0)), width = Math.min(6, 1 + Math.log10(end.count) * 1.6);
    const stop = end.verdict === "blocked" ? right - 34 : right - 8;
    parts.push(`<path class="${end.verdict}" stroke-width="${width}" d="M${hub + 60} ${middle} C 600 ${middle}, 600 ${y}, ${stop} ${y}"/>`);
    if (end.verdict === "blocked") parts.push(`<path class="blocked" style="stroke-dasharray: none" stroke-width="2.5" d="M${stop + 5} ${y - 6} l12 12 m0 -12 l-12 12"/>`);
    parts.push(`<text x="${right}" y="${y + 4}"><title>${escape(end.endpoint)}</title>${escape(cut(end.endpoint, 46))}</text><text class="${end.verdict}" x="1090" y="${y + 4}" text-anchor="end">${end.count.toLocaleString("en")}${end.size ? ` · ${bytes(end.size)}` : ""}</text>`);
  });
  if (all.length > most) parts.push(`<text class="soft" x="${right}" y="${place(most, most + 1) + 4}">and ${all.length - most} more, in the table below</text>`);
  if (!all.length) parts.push(`<text class="soft" x="${right}" y="${middle + 4}">nothing was tried</text>`);
  byId("picture").innerHTML = `<svg viewBox="0 0 1100 ${height}" role="img" aria-label="Who talked to whom">${parts.join("")}</svg>`;
  const back = byId("all");
  if (back) back.addEventListener("click", () => select(null));
}

function needed() {
  const {all, tests: each, blocked, table} = data.needed;
  if (!all.length) { byId("needed").innerHTML = `<p class="hint">${blocked ? "What was blocked, no rule could allow." : "Nothing: nothing was tried that is not allowed already."}</p>`; return; }
  const toml = `${table}\nnetns_allow = [\n${all.map((rule) => `    "${rule}",`).join("\n")}\n]`;
  const rows = Object.entries(each).map(([name, rules]) => `<tr><td>${escape(name)}</td><td><code>${escape(rules)}</code></td></tr>`);
  byId("needed").innerHTML = `<p class="hint">With these rules nothing of this run would have been blocked. Allow what you trust, rather than all of it.</p>
    <button class="copy" type="button">copy</button><h3>For every test, in pyproject.toml</h3><pre>${escape(toml)}</pre>
    <h3>Or by marker, for ${many(rows.length, "test")}</h3><div class="scroll"><table><tbody>${rows.slice(0, 200).join("")}</tbody></table></div>${rows.length > 200 ? `<p class="hint">and ${rows.length - 200} more</p>` : ""}`;
  byId("needed").querySelector(".copy").addEventListener("click", (event) => {
    navigator.clipboard?.writeText(toml).then(() => { event.target.textContent = "copied"; });
  });
}

class Table {
  constructor(place, filters, rows, columns, selects) {
    Object.assign(this, {place: byId(place), filters: byId(filters), rows, columns, page: 0, key: null, down: false});
    const options = selects.map(([name, words]) => `<select aria-label="${name}" data-name="${name}"><option value="">${name}: all</option>${words.map((word) => `<option>${escape(word)}</option>`).join("")}</select>`);
    this.filters.innerHTML = `<input type="search" placeholder="Filter: words that must all be there" aria-label="Filter">${options.join("")}<output></output>`;
    this.filters.addEventListener("input", () => { this.page = 0; this.show(); });
    this.place.addEventListener("click", (event) => this.click(event));
  }
  found() {
    const words = this.filters.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = [...this.filters.querySelectorAll("select")].map((one) => [one.dataset.name, one.value]).filter(([, value]) => value);
    const found = this.rows.filter((row) => (!selected || row.selects(selected)) && words.every((word) => row.text.includes(word)) && wanted.every(([name, value]) => row[name] === value));
    if (this.key !== null) {
      const value = (row) => row.sort[this.key] ?? -1;
      found.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (this.down ? -1 : 1));
    }
    return found;
  }
  show() {
    const found = this.found(), size = 50, pages = Math.max(1, Math.ceil(found.length / size));
    this.page = Math.min(this.page, pages - 1);
    const shown = found.slice(this.page * size, (this.page + 1) * size);
    this.filters.querySelector("output").textContent = `${found.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")}`;
    const head = this.columns.map(([name, kind], index) => `<th class="${kind}" data-key="${index}"${this.key === index ? ` aria-sort="${this.down ? "descending" : "ascending"}"` : ""}>${name}${this.key === index ? (this.down ? " ↓" : " ↑") : ""}</th>`).join("");
    const body = shown.map((row) => `<tr${row.test >= 0 ? ` data-test="${row.test}"` : ""}>${row.cells().map((cell, index) => `<td class="${this.columns[index][1]}">${cell}</td>`).join("")}</tr>`).join("");
    const turn = pages > 1 ? `<div class="pages"><button type="button" data-turn="-1"${this.page ? "" : " disabled"}>previous</button><span>page ${this.page + 1} of ${pages}</span><button type="button" data-turn="1"${this.page < pages - 1 ? "" : " disabled"}>next</button></div>` : "";
    this.place.innerHTML = shown.length ? `<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table></div>${turn}` : `<p class="hint">none</p>`;
  }
  click(event) {
    const head = event.target.closest("th"), turn = event.target.closest("[data-turn]"), row = event.target.closest("tr[data-test]");
    if (head) { const key = Number(head.dataset.key); this.down = this.key === key ? !this.down : true; this.key = key; this.show(); }
    if (turn) { this.page += Number(turn.dataset.turn); this.show(); }
    if (row) { const test = tests[Number(row.dataset.test)]; select(test === selected ? null : test); }
  }
}

const flowTable = new Table("flows", "flow-filters", flows.map((flow) => {
  const test = flow.test >= 0 ? tests[flow.test].name : flow.owner, why = flow.reason || (flow.rule ? `by ${flow.rule}` : flow.allow ? `allow with ${flow.allow}` : "");
  return {
    test: flow.test, verdict: flow.verdict, protocol: flow.protocol, selects: (one) => flow.test === one.index,
    text: `${test} ${flow.leaf} ${flow.endpoint} ${flow.address || ""} ${flow.verdict} ${why}`.toLowerCase(),
    sort: [flow.time, flow.verdict, flow.endpoint, why, flow.sent, flow.received, flow.duration, test],
    cells: () => [clock(flow.time), `<span class="${flow.verdict}">${flow.verdict}</span>`, escape(flow.endpoint) + (flow.address && !flow.endpoint.includes(flow.address) ? `<br><small>${escape(flow.address)}</small>` : ""), escape(why), flow.sent ? bytes(flow.sent) : "", flow.received ? bytes(flow.received) : "", flow.verdict === "blocked" ? "" : seconds(flow.duration), escape(test)],
  };
}), [["time", "short"], ["verdict", "short"], ["to", "wide"], ["why, or what would allow it", ""], ["sent", "number"], ["received", "number"], ["lasted", "number"], ["test", ""]],
[["verdict", ["allowed", "blocked"]], ["protocol", [...new Set(flows.map((flow) => flow.protocol))].sort()]]);

const testTable = new Table("tests", "test-filters", tests.map((test) => ({
  test: test.index, outcome: test.outcome, worker: workers[test.worker], attempts: test.blocked ? "some blocked" : "none blocked",
  selects: (one) => test === one, text: `${test.name} ${test.leaf} ${test.outcome}`.toLowerCase(),
  sort: [test.name, test.outcome, workers[test.worker], test.leaf, test.start, test.duration, test.setup, test.allowed, test.blocked],
  cells: () => [escape(test.name), `<span class="${shade(test.outcome)}">${test.outcome}</span>`, escape(workers[test.worker]), escape(test.leaf), seconds(test.start - data.started), seconds(test.duration), seconds(test.setup), test.allowed || "", test.blocked ? `<span class="blocked">${test.blocked}</span>` : ""],
})), [["test", ""], ["outcome", "short"], ["worker", "short"], ["leaf", "short"], ["began after", "number"], ["lasted", "number"], ["set-up", "number"], ["allowed", "number"], ["blocked", "number"]],
[["outcome", [...new Set(tests.map((test) => test.outcome))].sort()], ["worker", workers], ["attempts", ["some blocked", "none blocked"]]]);

function slow() {
  const found = tests.filter((test) => test.setup !== null).sort((a, b) => b.setup - a.setup);
  if (!found.length) { byId("slow").innerHTML = `<p class="hint">no test had a network of its own</p>`; return; }
  const most = found[0].setup || 1, middle = found[Math.floor(found.length / 2)].setup;
  byId("slow").innerHTML = `<p class="hint">The median of ${many(found.length, "test")} is ${seconds(middle)}.</p><table><tbody>${found.slice(0, 15).map((test) =>
    `<tr data-test="${test.index}"><td class="number" style="width: 90px">${seconds(test.setup)}</td><td style="width: 30%"><div class="bar" style="width: ${100 * test.setup / most}%"></div></td><td>${escape(test.name)}</td></tr>`).join("")}</tbody></table>`;
  byId("slow").addEventListener("click", (event) => { const row = event.target.closest("tr[data-test]"); if (row) select(tests[Number(row.dataset.test)]); });
}

function select(test) {
  selected = test;
  history.replaceState(null, "", test === null ? " " : `#${encodeURIComponent(test.name)}`);
  timeline.draw();
  picture();
  for (const table of [flowTable, testTable]) { table.page = 0; table.show(); }
}

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  timeline.draw();
});
document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
header();
timeline.bind();
needed();
slow();
select(tests.find((test) => test.name === decodeURIComponent(location.hash.slice(1))) || null);
if (data.left_out) byId("flow-filters").insertAdjacentHTML("afterend", `<p class="hint">The page has the first ${flows.length.toLocaleString("en")} flows; ${many(data.left_out, "more one", "more")} are in the file of --netns-egress-log.</p>`);
