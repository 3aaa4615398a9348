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

  // ---- rows, as the data has them: [id, href, prompt, answer, failed, agree, diluted, disagree, unconverged, unchecked, gap, spearman, seconds, record]
  const AT = { id: 0, prompt: 2, answer: 3, agree: 5, diluted: 6, disagree: 7, unconverged: 8, unchecked: 9, gap: 10, spearman: 11, seconds: 12 };
  const fold = (text) => text.normalize("NFKC").toLowerCase();
  const rows = data.rows.map((row) => ({ row, text: fold([row[0], row[2], row[3], row[13]].map(plain).join("\n")) }));
  const kept = {
    all: () => true,
    failed: ([, , , , failed]) => failed,
    agree: (row) => !row[4] && row[6] + row[7] + row[8] + row[9] === 0,
    flagged: (row) => row[6] + row[7] + row[8] + row[9] > 0,
    diluted: (row) => row[6] > 0,
    disagree: (row) => row[7] > 0,
    unconverged: (row) => row[8] > 0,
    unchecked: (row) => row[9] > 0,
  };
  const collator = new Intl.Collator(undefined, { numeric: true });

  /** Rows without a value stay last in either order. */
  function sorted(found) {
    const key = state.sort.replace(/^-/, "");
    if (!Object.hasOwn(AT, key)) return found;
    const at = AT[key], way = state.sort.startsWith("-") ? -1 : 1;
    const of = at <= 3 ? ({ row }) => plain(row[at]) : ({ row }) => row[4] ? null : row[at];
    const compare = at <= 3 ? (a, b) => collator.compare(a, b) : (a, b) => a - b;
    return found.map((entry) => [of(entry), entry]).sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : way * compare(a, b))).map(([, entry]) => entry);
  }

  function cells([id, href, prompt, answer, failed, ...numbers]) {
    const name = make("bdi", {}, ...pieces(id));
    const said = make("td", {}, make("span", { dir: "auto" }, ...pieces(answer)));
    if (failed) said.prepend(make("span", { class: "warning" }, "failed: "));
    const row = make("tr", {}, make("th", { scope: "row" }, href ? make("a", { href }, name) : name, ...(numbers[8].length ? [make("code", { class: "soft" }, ...pieces(numbers[8]))] : [])), make("td", {}, make("span", { dir: "auto" }, ...pieces(prompt))), said);
    if (failed) {
      row.append(make("td", { colspan: 8, class: "soft" }, "no explanation"));
      return row;
    }
    numbers.slice(0, 5).forEach((count, i) => {
      const status = data.statuses[i];
      const linked = count && href ? [make("a", { href: `${href}#${status}`, "aria-label": `${count} ${status}, go to the first` }, String(count))] : [String(count)];
      row.append(make("td", { class: `num${count ? ` status-${status}` : ""}` }, ...linked));
    });
    numbers.slice(5, 8).forEach((value, i) => row.append(make("td", { class: "num" }, value === null ? "–" : value.toFixed([2, 2, 1][i]).replace("-", "−"))));
    return row;
  }

  function draw() {
    const words = fold(state.q).split(/\s+/).filter(Boolean);
    const found = sorted(rows.filter(({ row, text }) => kept[state.only](row) && words.every((word) => text.includes(word))));
    const pages = Math.max(1, Math.ceil(found.length / data.page));
    state.page = Math.min(Math.max(1, state.page), pages);
    const first = (state.page - 1) * data.page, shown = found.slice(first, first + data.page);
    body.replaceChildren(...shown.map(({ row }) => cells(row)));
    if (!shown.length) body.append(make("tr", {}, make("td", { colspan: 11 }, "No record fits.")));
    byId("found").textContent = `${found.length} of ${rows.length} records${shown.length ? `, ${first + 1} to ${first + shown.length} shown` : ""}.`;
    byId("page").textContent = `Page ${state.page} of ${pages}`;
    byId("previous").disabled = state.page === 1;
    byId("next").disabled = state.page === pages;
    for (const head of heads) {
      const way = state.sort === head.dataset.key ? "ascending" : state.sort === `-${head.dataset.key}` ? "descending" : "none";
      head.setAttribute("aria-sort", way);
      head.querySelector(".way").textContent = { ascending: "▲", descending: "▼", none: "" }[way];
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
    } catch { /* a page inside of another one may have no address of its own */ }
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
      const down = AT[key] > 3; // numbers: the largest first
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
