"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const search = byId("search"), only = byId("only"), body = byId("rows"), heads = [...document.querySelectorAll("#table th[data-key]")];
  const start = { q: "", only: "all", sort: "", page: 1 };
  const state = { ...start };

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  // A text is a string, or a list of strings and of [mark]
  const pieces = (text) => [text].flat(1).map((piece) => Array.isArray(piece) ? make("span", { class: "mark" }, piece[0]) : piece);
  const plain = (text) => [text].flat(2).join("");

  // ---- records: data.figures has [failed, a count for each of data.statuses, probability, seconds] of every one, in the order of the run
  const figures = data.figures;
  // [id, href, prompt, answer, record, sources, review]; for a long run only the first ones, until the data pages are loaded
  const texts = [...data.texts];
  const NUMBERS = Object.fromEntries([...data.statuses, "probability", "seconds"].map((name, i) => [name, i + 1]));
  const COUNTS = data.statuses.length, FLAGGED = data.statuses.filter((status) => !data.fine.includes(status));
  const flagged = (row) => FLAGGED.some((status) => row[NUMBERS[status]] > 0);
  const WORDS = { id: 0, prompt: 2, answer: 3, sources: 5, review: 6 };
  const fold = (text) => text.normalize("NFKC").toLowerCase();
  const cased = []; // the searchable text, built when first needed
  const searched = (i) => cased[i] ??= fold([0, 2, 3, 4, 5, 6].map((at) => plain(texts[i][at])).join("\n"));
  const kept = {
    all: () => true,
    failed: ([failed]) => failed,
    ...Object.fromEntries(data.statuses.filter((status) => data.fine.includes(status)).map((status) => [status, (row) => !row[0] && data.statuses.every((other) => other === status || !row[NUMBERS[other]])])),
    flagged,
    ...Object.fromEntries(FLAGGED.map((status) => [status, (row) => row[NUMBERS[status]] > 0])),
  };
  const collator = new Intl.Collator(undefined, { numeric: true });

  // ---- data pages of a long run. Each is shown in a frame that cannot touch this page, and sends its text as a message.
  // Text without the digest that this page names is rejected.
  const files = data.parts ? data.parts.files : [], size = data.parts ? data.parts.size : 1;
  const AT_ONCE = 4, GRACE = 3000; // a message may arrive after the load event of the frame
  const asked = new Set(), queue = [], trouble = [];
  let reading = 0;

  const posted = (file) => new Promise((resolve, reject) => {
    const frame = make("iframe", { sandbox: "allow-scripts", src: file, title: "data of the records", hidden: "" });
    const end = (how, what) => {
      removeEventListener("message", listen);
      frame.remove();
      how(what);
    };
    const listen = (event) => {
      if (event.source === frame.contentWindow && typeof event.data === "string") end(resolve, event.data);
    };
    addEventListener("message", listen);
    frame.addEventListener("load", () => setTimeout(() => end(reject, new Error("is missing or cannot be read")), GRACE));
    document.body.append(frame);
  });

  async function checked(text, digest) {
    if (!globalThis.crypto?.subtle) throw new Error("cannot be checked here: open this page from a file, from localhost or over https");
    const found = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
    if ([...found].map((byte) => byte.toString(16).padStart(2, "0")).join("") !== digest) throw new Error("is not the one that this page was made with");
    return JSON.parse(text);
  }

  async function read(part) {
    const [file, digest] = files[part], first = part * size, end = Math.min(figures.length, first + size);
    try {
      (await checked(await posted(file), digest)).forEach((row, i) => { texts[first + i] = row; });
    } catch (error) {
      for (let i = first; i < end; i += 1) texts[i] ??= [`record ${i + 1}`, null, "", "(its data page cannot be read)", "", "", ""];
      trouble.push(`${file} ${error.message}.`);
    }
    reading -= 1;
    next();
    draw();
  }

  function next() {
    for (; reading < AT_ONCE && queue.length; reading += 1) read(queue.shift());
  }

  /** Whether the texts of these records are loaded. If not, request their data pages; the table is redrawn when they arrive. */
  function have(wanted) {
    const missing = new Set();
    for (const i of wanted) if (!texts[i]) missing.add(Math.floor(i / size));
    for (const part of missing) {
      if (!asked.has(part)) queue.push(part);
      asked.add(part);
    }
    next();
    return !missing.size;
  }

  const sortKey = () => state.sort.replace(/^-/, "");

  /** Rows without a value stay last in either order. */
  function sorted(found) {
    const key = sortKey(), way = state.sort.startsWith("-") ? -1 : 1;
    if (Object.hasOwn(WORDS, key)) return found.map((i) => [plain(texts[i][WORDS[key]]), i]).sort(([a], [b]) => way * collator.compare(a, b)).map(([, i]) => i);
    if (!Object.hasOwn(NUMBERS, key)) return found;
    const of = (i) => figures[i][0] ? null : figures[i][NUMBERS[key]];
    return found.map((i) => [of(i), i]).sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : way * (a - b))).map(([, i]) => i);
  }

  /** As people say it: 57%, 5.7%, 99.8%. */
  const percent = (p) => p >= 0.1 && p < 0.985 ? `${Math.round(100 * p)}%` : p !== 0 && p < 0.0005 ? (p < 0.00001 ? "under 0.001%" : `${(100 * p).toFixed(3)}%`) : `${(100 * p).toFixed(1)}%`;
  const text = (name, said) => make("td", { "data-name": name }, make("span", { dir: "auto" }, ...pieces(said)));

  function cells([id, href, prompt, answer, record, sources, review], [failed, ...numbers]) {
    const name = make("bdi", {}, ...pieces(id)), said = text("answered", answer);
    if (failed) said.prepend(make("span", { class: "warning" }, "failed: "));
    const row = make("tr", {}, make("th", { scope: "row" }, href ? make("a", { href }, name) : name, ...(record.length ? [make("code", { class: "soft" }, ...pieces(record))] : [])), text("asked", prompt), said);
    const decided = data.reviewed ? [make("td", { "data-name": "review" }, ...(review.length ? pieces(review) : ["–"]))] : [];
    if (failed) {
      row.append(make("td", { colspan: COUNTS + 3, class: "soft" }, "no explanation"), ...decided);
      return row;
    }
    const [probability, seconds] = numbers.slice(COUNTS);
    const figure = (name, value, write) => make("td", { class: "num", "data-name": name }, value === null ? "–" : write(value));
    row.append(text("first sources", sources), figure("probability", probability, percent));
    numbers.slice(0, COUNTS).forEach((count, i) => {
      const status = data.statuses[i];
      const linked = count && href ? [make("a", { href: `${href}#${status}`, "aria-label": `${count} ${status}, go to the first` }, String(count))] : [String(count)];
      row.append(make("td", { class: `num${count ? ` status-${status}` : ""}`, "data-name": status }, ...linked));
    });
    row.append(figure("seconds", seconds, (value) => value.toFixed(1)), ...decided);
    return row;
  }

  function draw() {
    const words = fold(state.q).split(/\s+/).filter(Boolean);
    const filtered = [...figures.keys()].filter((i) => kept[state.only](figures[i]));
    if ((words.length || Object.hasOwn(WORDS, sortKey())) && !have(filtered)) return wait();
    const found = sorted(words.length ? filtered.filter((i) => words.every((word) => searched(i).includes(word))) : filtered);
    const pages = Math.max(1, Math.ceil(found.length / data.page));
    state.page = Math.min(Math.max(1, state.page), pages);
    const first = (state.page - 1) * data.page, shown = found.slice(first, first + data.page);
    if (!have(shown)) return wait();
    body.replaceChildren(...shown.map((i) => cells(texts[i], figures[i])));
    if (!shown.length) body.append(make("tr", {}, make("td", { colspan: COUNTS + 6 + (data.reviewed ? 1 : 0) }, "No record matches.")));
    say(`${found.length} of ${figures.length} records${shown.length ? `, ${first + 1} to ${first + shown.length} shown` : ""}.`);
    byId("page").textContent = `Page ${state.page} of ${pages}`;
    byId("previous").disabled = state.page === 1;
    byId("next").disabled = state.page === pages;
    for (const head of heads) {
      const way = state.sort === head.dataset.key ? "ascending" : state.sort === `-${head.dataset.key}` ? "descending" : "none";
      head.setAttribute("aria-sort", way);
      head.querySelector(".way").textContent = { ascending: "▲", descending: "▼", none: "" }[way];
    }
  }

  function wait() {
    say(`Loading the records’ texts: ${asked.size - reading - queue.length} of ${asked.size} data pages.`);
    byId("found").setAttribute("aria-busy", "true");
  }

  function say(text) {
    byId("found").textContent = text;
    byId("found").removeAttribute("aria-busy");
    const notice = byId("trouble");
    if (notice && trouble.length) {
      notice.textContent = `${trouble.join(" ")} Its records are listed without their texts and cannot be found by a search. “llmxai report” with this folder’s name rebuilds the index.`;
      notice.hidden = false;
    }
  }

  /** Draw, and keep the state in the address, so that it can be linked to. */
  function update(change) {
    Object.assign(state, change);
    draw();
    const said = Object.entries(state).filter(([key, value]) => value !== start[key]);
    const place = location.href.split("#")[0];
    try {
      history.replaceState(null, "", said.length ? `${place}#${new URLSearchParams(said)}` : place);
    } catch { /* a page inside another one may have no address of its own */ }
  }

  function follow() {
    const said = new URLSearchParams(location.hash.slice(1));
    Object.assign(state, start);
    state.q = said.get("q") ?? "";
    state.only = Object.hasOwn(kept, said.get("only") ?? "") ? said.get("only") : "all";
    state.sort = said.get("sort") ?? "";
    state.page = Number.parseInt(said.get("page"), 10) || 1;
    search.value = state.q;
    only.value = state.only;
    draw();
  }

  for (const head of heads) {
    const key = head.dataset.key, name = head.textContent;
    const button = make("button", { type: "button", class: "sort" }, name, make("span", { class: "way", "aria-hidden": "true" }));
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = Object.hasOwn(NUMBERS, key); // numbers: the largest first
      const turns = down ? [`-${key}`, key] : [key, `-${key}`];
      update({ sort: turns[(turns.indexOf(state.sort) + 1) % 2], page: 1 });
    });
  }
  search.addEventListener("input", () => update({ q: search.value, page: 1 }));
  only.addEventListener("change", () => update({ only: only.value, page: 1 }));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => {
    search.value = "";
    only.value = "all";
    update({ ...start });
  });
  for (const [id, step] of [["previous", -1], ["next", 1]]) byId(id).addEventListener("click", () => update({ page: state.page + step }));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !event.target.matches("input, select")) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && event.target === search) {
      search.value = "";
      update({ q: "", page: 1 });
    }
  });
  const folded = document.querySelectorAll("details.printed");
  addEventListener("beforeprint", () => folded.forEach((details) => { details.open = true; }));
  document.documentElement.classList.add("scripted");
  follow();
  addEventListener("hashchange", follow);
})();
