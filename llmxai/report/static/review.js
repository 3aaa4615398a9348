"use strict";
// The reviewer's marks on the answer and on its words. They stay in the browser until they are saved as a file.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent).review;
  const byId = (id) => document.getElementById(id);
  const KINDS = { agree: "✓ Agree", question: "? Question", comment: "✎ Comment" };
  const WHOLE = "answer", KEPT = `llmxai.review ${data.record || data.page}`;
  const state = { by: "", marks: new Map() }; // key: "answer", or "first-end" of the tokens

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  function keep() {
    try {
      localStorage.setItem(KEPT, JSON.stringify({ by: state.by, marks: [...state.marks] }));
    } catch { /* some browsers keep nothing for pages from files */ }
  }

  function recall() {
    try {
      const { by, marks } = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
      state.by = String(by ?? "");
      state.marks = new Map((marks ?? []).filter(([, mark]) => Object.hasOwn(KINDS, mark?.mark)));
    } catch { /* nothing was kept */ }
  }

  function set(key, change, text) {
    const mark = { mark: "", comment: "", text, ...state.marks.get(key), ...change };
    if (mark.mark === "" && mark.comment.trim() === "") state.marks.delete(key);
    else state.marks.set(key, mark);
    keep();
    list();
  }

  /** Buttons and a comment for the answer or for one word. */
  function controls(key, text, name) {
    const known = state.marks.get(key);
    const buttons = Object.entries(KINDS).map(([kind, label]) => {
      const button = make("button", { type: "button", "aria-pressed": String(known?.mark === kind), "data-mark": kind }, label);
      button.addEventListener("click", () => {
        const pressed = state.marks.get(key)?.mark === kind;
        set(key, { mark: pressed ? "" : kind }, text);
        for (const other of buttons) other.setAttribute("aria-pressed", String(!pressed && other === button));
        if (!pressed && kind !== "agree") field.focus();
      });
      return button;
    });
    const field = make("textarea", { rows: "2", maxlength: "2000", "aria-label": `Comment on ${name}`, placeholder: "Comment (optional)" });
    field.value = known?.comment ?? "";
    field.addEventListener("input", () => set(key, { comment: field.value, mark: state.marks.get(key)?.mark || "comment" }, text));
    return [make("div", { class: "buttons", role: "group", "aria-label": `Your mark on ${name}` }, ...buttons), field];
  }

  function list() {
    byId("marks").replaceChildren(...[...state.marks].map(([key, { mark, comment, text }]) => {
      const remove = make("button", { type: "button", "aria-label": `Remove the mark on ${key === WHOLE ? "the answer" : text}` }, "Remove");
      remove.addEventListener("click", () => {
        state.marks.delete(key);
        keep();
        list();
        if (key === WHOLE) whole();
        else byId("panel").querySelectorAll(`#mark[data-key='${key}'] [aria-pressed]`).forEach((button) => button.setAttribute("aria-pressed", "false"));
      });
      return make("li", {}, make("span", {}, KINDS[mark] ?? mark, " ", key === WHOLE ? "the answer" : make("bdi", { class: "quoted" }, text), comment ? `: ${comment}` : ""), " ", remove);
    }));
    byId("review-count").textContent = state.marks.size ? `${state.marks.size} mark${state.marks.size === 1 ? "" : "s"}` : "";
  }

  const whole = () => byId("review-whole").replaceChildren(...controls(WHOLE, "", "the answer"));

  // the panel of a word asks for its controls
  document.addEventListener("llmxai-word", ({ detail: { place, tokens: [first, end], text } }) => {
    const key = `${first}-${end}`;
    place.dataset.key = key;
    place.replaceChildren(...controls(key, text, text));
  });

  function written() {
    return {
      schema: "llmxai.review/1",
      record: data.record || null,
      explanation_sha256: data.explanation_sha256 || null,
      page: data.page,
      by: state.by.trim(),
      saved: new Date().toISOString(),
      marks: [...state.marks].map(([key, { mark, comment, text }]) => ({ tokens: key === WHOLE ? null : key.split("-").map(Number), text, mark, comment: comment.trim() })),
    };
  }

  byId("save-review").addEventListener("click", () => {
    if (!state.by.trim()) {
      byId("reviewer").reportValidity();
      byId("live").textContent = "Give a pseudonym first.";
      return;
    }
    const address = URL.createObjectURL(new Blob([JSON.stringify(written(), null, 1) + "\n"], { type: "application/json" }));
    make("a", { href: address, download: "review.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
  byId("reviewer").addEventListener("input", (event) => {
    state.by = event.target.value;
    keep();
  });
  recall();
  byId("reviewer").value = state.by;
  whole();
  list();
})();
