"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("units");
  const panel = document.getElementById("panel");
  const live = document.getElementById("live");
  const help = document.getElementById("help");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const state = { level: "words", method: "gradients", pinned: null, shown: null };
  let nodes = [];      // one element a unit
  let byUnit = new Map(); // unit number -> its target's figures
  let painted = [];

  const level = () => data.levels[state.level];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // Blue supports, orange opposes; the ink on top is whichever contrasts more.
  const POSITIVE = [33, 102, 172], NEGATIVE = [194, 98, 14], MASS = [60, 95, 135];
  const mix = (ends, share) => {
    const ground = dark.matches ? [29, 33, 38] : [255, 255, 255];
    return ends.map((c, i) => Math.round(ground[i] + (c - ground[i]) * share));
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paint = (element, ends, share) => {
    const colour = mix(ends, share), light = luminance(colour);
    element.style.backgroundColor = `rgb(${colour.join(",")})`;
    element.style.color = (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000" : "#fff";
  };
  const unpaint = () => {
    for (const element of painted) {
      element.style.backgroundColor = "";
      element.style.color = "";
      element.classList.remove("pos", "neg");
    }
    painted = [];
  };

  const nats = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
  const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
  const either = (value, show) => value === null || value === undefined ? "not defined" : show(value);

  function build() {
    const { units, targets } = level();
    byUnit = new Map(targets.map((target) => [target.unit, target]));
    box.textContent = "";
    painted = [];
    let role = null;
    nodes = units.map(([text, own, status, label], i) => {
      const structure = own === "template" || own === "bos";
      if (!structure && own !== role) box.append(make("span", { class: "turn-label" }, own === "generated" ? "answer" : own));
      role = structure ? role : own;
      const target = byUnit.get(i);
      const element = target
        ? make("button", { type: "button", class: `unit role-${own} status-${status}`, "aria-pressed": "false", "data-unit": i,
            "aria-label": `${label}, ${status}` }, text || "·")
        : make("span", { class: `unit role-${own}` }, text);
      if (target) element.title = `${data.statuses[status].sign} ${status}`;
      box.append(element);
      return element;
    });
  }

  function repaint() {
    unpaint();
    const target = byUnit.get(state.shown);
    legend(target);
    if (!target) {
      panel.replaceChildren(make("h3", { id: "panel-head" }, "No word chosen"), make("p", {}, "Choose a word of the answer to see where it came from."));
      return;
    }
    const signed = state.method === "gradients";
    const pairs = target[state.method];
    const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1);
    for (const [unit, value] of pairs) {
      if (unit === state.shown) continue;
      const element = nodes[unit], share = 0.08 + 0.92 * Math.abs(value) / most;
      paint(element, signed ? (value < 0 ? NEGATIVE : POSITIVE) : MASS, share);
      if (signed) element.classList.add(value < 0 ? "neg" : "pos");
      painted.push(element);
    }
    fill(target);
  }

  function legend(target) {
    const where = document.getElementById("legend");
    where.replaceChildren();
    if (!target) return;
    const signed = state.method === "gradients", scale = level().scale[state.method];
    const most = Math.max(...target[state.method].map(([, value]) => Math.abs(value)), 1) / scale;
    for (const step of signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.5, 1]) {
      const key = make("span", {}, signed ? nats(step * most) : percent(step * most, 2));
      paint(key, signed ? (step < 0 ? NEGATIVE : POSITIVE) : MASS, Math.abs(step));
      where.append(key);
    }
    where.append(signed ? " nats: − lowers, + raises" : " of the attention mass");
  }

  function bars(target, method) {
    const { units, scale } = level(), signed = method === "gradients";
    const pairs = target[method];
    const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1);
    const list = make("ol", { class: "bars" });
    for (const [unit, whole] of pairs.slice(0, 8)) {
      const value = whole / scale[method];
      const fill = make("span", { class: `fill ${signed ? (value < 0 ? "neg" : "pos") : "mass"}` });
      fill.style.width = `${100 * Math.abs(whole) / most}%`;
      const figure = signed ? `${nats(value)} · ${percent(Math.abs(value) / target.total, 0)}` : percent(value, 2);
      const held = ["template", "bos"].includes(units[unit][1]) ? ` (${units[unit][1]})` : "";
      list.append(make("li", {}, make("bdi", { title: units[unit][3] }, units[unit][3] + held), make("span", { class: "bar" }, fill), make("span", { class: "num" }, figure)));
    }
    if (!pairs.length) list.append(make("li", {}, "no source above rounding"));
    return list;
  }

  function fill(target) {
    const unit = level().units[state.shown];
    const facts = [
      ["probability", `${percent(target.probability)} (log-prob ${target.logprob.toFixed(3)} nats)`],
      ["rank", target.rank === 1 ? "1: the model's first choice" : String(target.rank)],
      ["gap / allowed", `${nats(target.gap)} / ${target.tolerance.toFixed(3)} nats, ${target.nodes} nodes`],
      ["F real / baseline", `${target.f_input.toFixed(3)} / ${target.f_baseline.toFixed(3)} nats`],
      ["agreement", either(target.spearman, (v) => `Spearman ${v.toFixed(2)} (p = ${target.spearman_p.toFixed(3)})`)],
      [`top ${target.top_k} in common`, either(target.top_k_overlap, (v) => percent(v, 0))],
      ["rollout on the first token", percent(target.sink_mass, 2)],
      ["rollout on the features", percent(target.feature_mass, 3)],
      ["rollout on template and BOS", percent(target.structure, 2)],
      ["divergence from the null", `${target.null_divergence.toFixed(4)} bits`],
    ];
    const table = make("table", { class: "pairs" });
    for (const [name, value] of facts) table.append(make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
    const joined = target.joined > 1 ? [make("p", { class: "soft" }, `This word is ${target.joined} tokens: gradient values are summed over them, rollout is averaged, and the status is the most careful of theirs.`)] : [];
    panel.replaceChildren(
      make("h3", { id: "panel-head" }, make("bdi", {}, `“${unit[3]}”`), " ", make("span", { class: `status-${target.status}` }, `${data.statuses[target.status].sign} ${target.status}`)),
      make("p", {}, target.reason), ...joined,
      make("h4", {}, "Integrated gradients: nats, share of all"), bars(target, "gradients"),
      make("h4", {}, "Attention rollout: share of the mass"), bars(target, "rollout"),
      table,
    );
  }

  function show(unit) {
    state.shown = unit;
    repaint();
  }
  function pin(unit) {
    if (state.pinned !== null) nodes[state.pinned].setAttribute("aria-pressed", "false");
    state.pinned = unit;
    if (unit !== null) {
      nodes[unit].setAttribute("aria-pressed", "true");
      const target = byUnit.get(unit), best = target.gradients[0];
      live.textContent = `Pinned ${level().units[unit][3]}: ${target.status}.` + (best ? ` First source: ${level().units[best[0]][3]}.` : "");
      history.replaceState(null, "", `#${state.level}-${unit}`);
    } else {
      live.textContent = "Released.";
    }
    show(unit);
  }
  function walk(step, wanted) {
    const order = level().targets.filter(wanted).map((target) => target.unit);
    if (!order.length) return;
    const here = state.shown ?? -1;
    const next = step > 0 ? order.find((unit) => unit > here) ?? order[0] : order.findLast((unit) => unit < here) ?? order.at(-1);
    nodes[next].focus();
    pin(next);
  }
  const unitOf = (event) => {
    const button = event.target.closest?.("button.unit");
    return button ? Number(button.dataset.unit) : null;
  };

  box.addEventListener("click", (event) => {
    const unit = unitOf(event);
    if (unit !== null) pin(unit === state.pinned ? null : unit);
  });
  const preview = (event) => {
    const unit = unitOf(event);
    if (unit !== null && state.pinned === null) show(unit);
  };
  box.addEventListener("pointerover", preview);
  box.addEventListener("focusin", preview);
  box.addEventListener("pointerleave", () => state.pinned === null && show(null));
  document.getElementById("switches").addEventListener("change", (event) => {
    state[event.target.name] = event.target.value;
    if (event.target.name === "level") {
      state.pinned = state.shown = null;
      build();
    }
    repaint();
  });
  document.getElementById("help-button").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open || event.target.matches("input")) return;
    const act = {
      ArrowRight: () => walk(1, () => true),
      ArrowLeft: () => walk(-1, () => true),
      n: () => walk(1, (target) => target.status !== "agree"),
      p: () => walk(-1, (target) => target.status !== "agree"),
      Escape: () => pin(null),
      "?": () => help.showModal(),
    }[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });
  dark.addEventListener("change", repaint);
  const details = document.querySelector("details.all");
  let opened = false;
  addEventListener("beforeprint", () => { opened = details.open; details.open = true; });
  addEventListener("afterprint", () => { details.open = opened; });

  document.documentElement.classList.add("scripted");
  const link = location.hash.match(/^#(words|tokens)-(\d+)$/);
  if (link) {
    state.level = link[1];
    document.querySelector(`input[name=level][value=${link[1]}]`).checked = true;
  }
  build();
  if (link && byUnit.has(Number(link[2]))) pin(Number(link[2]));
  else repaint();
})();
