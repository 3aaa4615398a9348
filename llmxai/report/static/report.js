"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const given = byId("given"), answer = byId("answer"), panel = byId("panel"), live = byId("live"), help = byId("help");
  const whole = byId("whole"), allRoles = byId("all-roles"), tip = byId("tip");
  const BARS = 8; // sources shown at once; the rest can be unfolded
  const state = { level: "words", method: document.querySelector("input[name=method]").value, pinned: null, shown: null };
  let nodes = [];         // one element per unit
  let byUnit = new Map(); // number of a unit -> its figures
  let painted = [];
  let leaving = false;
  let stop = null;        // the one word that Tab reaches

  const level = () => data.levels[state.level];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  // A text is a string, or a list of strings and of [mark]
  const pieces = (text) => [text].flat(1).map((piece) => Array.isArray(piece) ? make("span", { class: "mark" }, piece[0]) : piece);
  const quoted = (text) => make("bdi", { class: "quoted" }, ...pieces(text));
  /** A folded part of the panel, filled when its heading is pressed or it is opened in another way ("toggle" fires a moment
   *  after the opening, when an empty part would already be visible); parts that were open for the last word stay open. */
  function folded(name, summary, fill) {
    const heading = make("summary", {}, summary), details = make("details", { class: name }, heading);
    const filled = () => details.childElementCount === 1 && details.append(...fill());
    heading.addEventListener("click", filled);
    details.addEventListener("toggle", () => details.open && filled());
    details.open = name !== "rest" && (panel.querySelector(`details.${name}`)?.open ?? false);
    if (details.open) filled();
    return details;
  }
  const isStructure = (role) => role === "template" || role === "bos";
  /** A word that the list of terms explains, in a tooltip or, when it is chosen, in the list itself. */
  const term = (key, text) => byId(`term-${key}`) ? make("a", { class: "term", href: `#term-${key}` }, text) : text;

  // ---- numbers
  const nats = (value, digits = 3) => {
    const text = Math.abs(value).toFixed(digits);
    return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
  };
  const plain = (value, digits = 3) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
  const percent = (value) => {
    if (value === 0) return "0%";
    if (value > 0 && value < 0.00001) return `${(100 * value).toPrecision(1).replace("e-", "·10⁻").replace(/⁻(\d+)/, (_, n) => "⁻" + [...n].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).join(""))}%`;
    return `${(100 * value).toFixed(value < 0.0005 ? 4 : value < 0.9995 || value === 1 ? 1 : 3)}%`;
  };
  /** As people say it: 57%, 5.7%, 99.8%. */
  const short = (value) => value >= 0.1 && value < 0.985 ? `${Math.round(100 * value)}%` : percent(value);
  const chance = (p) => p < 0.001 ? "under 0.001" : p.toPrecision(2);
  const either = (value, show) => value === null ? "not defined here" : show(value);

  // ---- colours: blue raises, orange lowers, in steps; the style sheet has a text colour with enough contrast for each
  const sides = (value, hasSign) => hasSign ? (value < 0 ? "neg" : "pos") : "mass";
  const step = (value, most) => Math.max(1, Math.ceil(data.steps * Math.abs(value) / most));
  const STEPS = Array.from({ length: data.steps }, (_, i) => `s${i + 1}`);
  const paint = (element, value, most, hasSign) => {
    element.classList.add("source", sides(value, hasSign), `s${step(value, most)}`);
    painted.push(element);
  };
  const unpaint = () => {
    for (const element of painted) element.classList.remove("source", "pos", "neg", "mass", ...STEPS);
    painted = [];
  };
  const signed = () => ["effects", "deletion", "gradients", "removal"].includes(state.method);
  /** A removed part may touch several units, and a unit several parts; a unit shows the strongest of them. */
  const spread = (pairs) => {
    const found = new Map();
    for (const [part, value] of pairs) for (let i = level().parts[part][0]; i < level().parts[part][1]; i += 1)
      if (Math.abs(value) > Math.abs(found.get(i) ?? 0)) found.set(i, value);
    return [...found];
  };
  /** The same for measured parts, which may be words with all their mentions. */
  const measured = (effects) => {
    const found = new Map();
    for (const [part, value] of effects) for (const [first, end] of level().measured[part]) for (let i = first; i < end; i += 1)
      if (Math.abs(value) > Math.abs(found.get(i) ?? 0)) found.set(i, value);
    return [...found];
  };
  /** [[unit, value]] of the units that light up, in whole numbers, for the chosen method. */
  const lit = (target) => ({
    effects: () => measured(target.effects),
    deletion: () => target.deletion,
    gradients: () => target.gradients,
    rollout: () => [...target.rollout_structure, ...target.rollout],
    variant: () => [...target.variant_structure, ...target.variant],
    removal: () => spread(target.removal),
  })[state.method]();
  /** Whether the figures of the chosen method must not be read for this word. */
  const unreadable = (target) => ({ gradients: !target.converged, deletion: target.status === "unconverged", rollout: target.diluted })[state.method] ?? false;
  const largest = (pairs) => Math.max(0, ...pairs.map(([, value]) => Math.abs(value))) || 1;

  // ---- the text
  function build() {
    const { units, turns, targets } = level();
    byUnit = new Map(targets.map((target) => [target.unit, target]));
    painted = [];
    nodes = [];
    given.replaceChildren();
    answer.replaceChildren();
    given.classList.toggle("all", allRoles.checked);
    const before = turns.findLastIndex(([role]) => role !== "generated" && role !== "thinking");
    for (const [number, [role, name, first, end]] of turns.entries()) {
      const said = make("div", { class: "said", dir: "auto" });
      for (let i = first; i < end; i += 1) said.append(...unit(units[i], i));
      const turn = make("div", { class: `turn-box role-${role}` }, make("span", { class: "turn-label" }, name), said);
      (number > before ? answer : given).append(turn);
    }
    if (data.ends) nodes.at(-1).classList.add("ends");
    stop = targets.length ? nodes[targets[0].unit] : null;
    stop?.setAttribute("tabindex", "0");
  }

  /** The nodes of one unit; white space before a word does not light up. */
  function unit([text, role, status, , name], i) {
    const content = pieces(text);
    const before = typeof content[0] === "string" ? content[0].match(/^ */)[0] : "";
    if (before && (content.length > 1 || before.length < content[0].length)) content[0] = content[0].slice(before.length);
    const kept = content[0] === text ? "" : before;
    const leads = kept === " " && level().turns.some(([, , first]) => first === i); // the space before a text's first word
    const element = make(isStructure(role) ? "bdi" : "span", { class: "unit" }, ...content);
    if (String(content.at(-1)).endsWith("\n")) element.classList.add("breaks"); // room after it would be a line of its own
    if (byUnit.has(i)) {
      element.classList.add("target", `status-${status}`);
      for (const [key, value] of Object.entries({ role: "button", tabindex: "-1", "aria-pressed": "false", "data-unit": i, "aria-label": `${name}, ${status}`, title: `${data.statuses[status].sign} ${status}` })) element.setAttribute(key, value);
    }
    nodes[i] = element;
    return kept && !leads ? [kept, element] : [element];
  }

  function repaint() {
    unpaint();
    const target = byUnit.get(state.shown), hasSign = !target || signed();
    const pairs = target ? lit(target) : level().focus, most = largest(pairs);
    legend(target);
    given.classList.toggle("all", allRoles.checked || (target !== undefined && ["rollout", "variant"].includes(state.method)));
    for (const [number, value] of pairs) if (number !== state.shown) paint(nodes[number], value, most, hasSign);
    whole.hidden = target !== undefined;
    panel.hidden = target === undefined;
    document.body.classList.toggle("chosen", target !== undefined);
    if (target) fill(target);
    else panel.replaceChildren();
  }

  const plainLegend = [...byId("legend").childNodes];
  function legend(target) {
    const where = byId("legend");
    if (!target) {
      where.replaceChildren(...plainLegend);
      return;
    }
    const hasSign = signed(), top = largest(lit(target)) / data.scale[state.method];
    where.replaceChildren(hasSign ? "lowers " : "no attention ");
    for (const share of hasSign ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) {
      const colour = share ? ` source ${sides(share, hasSign)} s${step(share, 1)}` : "";
      where.append(make("span", { class: `key${colour}` }, hasSign ? nats(share * top, 2) : percent(share * top)));
    }
    where.append(...(hasSign ? [" raises, in ", term("nat", "nats")] : [state.method === "variant" ? " of its row" : " of all attention"]));
    if (unreadable(target)) where.append(make("b", {}, " · do not read for this word"));
  }

  // ---- the panel
  const unitName = (number) => {
    const [, role, , name] = level().units[number];
    return [name, number === state.shown ? " (its own earlier tokens)" : isStructure(role) ? " (template)" : role === "generated" ? " (answer)" : ""];
  };
  const partName = (part) => [data.removal.parts[part][0], ""];
  /** A ranked list: name and numbers on one line, a bar below; signed bars start in the middle. */
  function bars(pairs, { scale, signed, share = null, named = unitName, write = signed ? (value) => nats(value) : percent, detail = null, before = "", faint = 0 }) {
    const most = largest(pairs), item = (pair) => {
      const [number, whole] = pair, value = whole / scale, [text, note] = named(number);
      const bar = make("span", { class: `bar${signed ? " signed" : ""}`, "aria-hidden": "true" });
      const fill = make("span", { class: `fill ${signed ? (value < 0 ? "neg" : "pos") : "mass"}` });
      fill.style.setProperty("width", `${(signed ? 50 : 100) * Math.abs(whole) / most}%`);
      bar.append(fill);
      return make("li", {}, make("span", { class: "named" }, ...(before ? [make("span", { class: "soft" }, before)] : []), make("bdi", {}, ...pieces(text)), make("span", { class: "soft" }, note)),
        make("span", { class: "num" }, write(value, pair), ...(share ? [make("span", { class: "soft" }, ` · ${percent(share(value))}`)] : [])),
        ...(detail ? [make("span", { class: "detail soft" }, ...detail(pair))] : []), bar);
    };
    if (!pairs.length) return [make("p", { class: "soft" }, "No source above rounding.")];
    const n = Math.min(BARS, pairs.filter(([, value]) => Math.abs(value) >= faint * most).length); // the others are folded
    const list = make("ol", { class: "bars" }, ...pairs.slice(0, n).map(item));
    if (pairs.length <= n) return [list];
    return [list, folded("rest", `${pairs.length - n} more`, () => [make("ol", { class: "bars", start: n + 1 }, ...pairs.slice(n).map(item))])];
  }

  function facts(title, rows) {
    const table = make("table", { class: "pairs" }, make("caption", {}, title)), body = make("tbody");
    for (const [name, value] of rows) body.append(make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
    table.append(body);
    return table;
  }

  function likelihood(target) {
    const rank = target.rank === 1 ? "1: the model’s first choice" : String(target.rank);
    const recorded = target.recorded === null ? "not recorded: the answer was supplied" : `${plain(target.recorded)} nats`;
    return facts("How likely was it", [
      ["Probability", percent(target.probability)],
      ["Log-probability", `${plain(target.logprob)} nats`],
      ["The same, while generating", recorded],
      [target.joined > 1 ? "Highest rank of its tokens" : "Rank", rank],
    ]);
  }

  function certainty(target) {
    return facts(data.deletion ? "Integrated gradients: how accurate" : "Can the gradient values be read", [
      ["Error / allowed", `${plain(target.local_error)} / ${plain(target.tolerance)} nats: ${target.converged ? "within" : target.joined > 1 ? "over, for one token at least" : "over"}`],
      ["Gap", `${nats(target.gap)} nats`],
      ...(target.floor === null ? [] : [["The score itself jumps by about", `${plain(target.floor)} nats: the model rounds its activations`]]),
      ["Evaluations (nodes)", String(target.nodes)],
      ["Score with the real text", `${plain(target.f_input)} nats`],
      ["Score with the neutral text", `${plain(target.f_baseline)} nats`],
      ["Change to explain", `${nats(target.f_input - target.f_baseline)} nats`],
      ["Values on start mark and template", percent(target.gradients_total ? target.gradients_structure / target.gradients_total : 0)],
    ]);
  }

  function attention(target) {
    if (data.refused) return make("p", { class: "note" }, "Attention rollout: refused for this model.");
    return facts("Can attention be read", [
      ["On the first token (sink)", percent(target.sink_mass)],
      ["On start mark and template", percent(Math.max(0, 1 - target.rollout_content - target.lost_mass))],
      ["On all other words", percent(target.rollout_content)],
      ["On the tokens compared (features)", percent(target.feature_mass)],
      ["On no token", percent(target.lost_mass)],
      ["Evenness over those compared", either(target.entropy, (v) => `${v.toFixed(2)} (1: all equal)`)],
      ["Distance from the null", `${target.null_divergence.toFixed(4)} bits`],
      ["Similarity to the rows of other words", either(target.similarity, (v) => v.toFixed(3))],
    ]);
  }

  function agreement(target) {
    if (data.refused) return make("p", { class: "note" }, "Agreement: there is no second method to compare with.");
    return facts("Do the two methods agree", [
      ["Rank agreement (Spearman)", either(target.spearman, (v) => plain(v, 2))],
      ["p against chance", either(target.spearman_p, chance)],
      ["p against chance that favours near words", either(target.recency_p, chance)],
      [data.measured ? "Corrected p" : "Corrected p (decides the status)", either(target.adjusted_p, chance)],
      ["Rank agreement (Kendall)", either(target.kendall, (v) => plain(v, 2))],
      [`Top ${target.top_k} in common`, either(target.top_k_overlap, percent)],
      ["Rank-biased overlap", either(target.rank_biased_overlap, (v) => v.toFixed(2))],
      ["Distance of the two", either(target.jensen_shannon, (v) => `${v.toFixed(3)} bits`)],
      ...(data.variant ? [[`${data.variant}: Spearman`, either(target.variant_spearman, (v) => plain(v, 2))], [`${data.variant}: corrected p`, either(target.variant_p, chance)]] : []),
    ]);
  }

  // ---- dilution by layer: a small chart, the same in words, and the same as a table
  const SHAPE = { width: 300, height: 96, left: 34, right: 6, top: 8, bottom: 22 };
  const draw = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  function dilution(target) {
    const sink = target.curve.sink_mass, far = target.curve.null_divergence;
    if (!sink?.length) return [];
    const { width, height, left, right, top, bottom } = SHAPE, n = sink.length;
    const x = (i) => left + (width - left - right) * (n === 1 ? 1 : i / (n - 1)), y = (v) => top + (height - top - bottom) * (1 - v / 1000);
    const line = (values, name) => draw("polyline", { class: name, points: values.map((v, i) => `${x(i).toFixed(1)},${y(Math.min(1000, v)).toFixed(1)}`).join(" ") });
    const word = (text, at, up, anchor) => draw("text", { x: at, y: up, "text-anchor": anchor }, text);
    const chart = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", "aria-hidden": "true", focusable: "false" },
      draw("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
      word("1", left - 5, top + 5, "end"), word("0", left - 5, height - bottom + 4, "end"),
      word("top layer", left, height - 6, "start"), word(`all ${n}`, width - right, height - 6, "end"),
      line(sink, "sink"), line(far, "far"));
    const half = sink.findIndex((v) => v > 500), gone = sink.findIndex((v) => v > 900);
    const after = (i) => `after ${i + 1} of ${n} layers`;
    const said = `${half < 0 ? "The first token never holds more than half of the row" : `The first token holds more than half of the row ${after(half)}${gone < 0 ? "" : `, and more than 90% ${after(gone)}`}`}; at the end it holds ${percent(sink[n - 1] / 1000)}. The distance from the null ends at ${(far[n - 1] / 1000).toFixed(3)} bits.`;
    const head = ["layers", "first token", "distance from the null (bits)", "similarity to other words", "evenness"];
    const table = () => [make("table", { class: "numbers" }, make("caption", { class: "hidden" }, "Dilution by layer"), make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...sink.map((v, i) => make("tr", {}, make("th", { scope: "row" }, String(i + 1)), ...[percent(v / 1000), (far[i] / 1000).toFixed(3), (target.curve.similarity[i] / 1000).toFixed(3), (target.curve.entropy[i] / 1000).toFixed(3)].map((cell) => make("td", { class: "num" }, cell))))))];
    return [make("section", { "aria-label": "Dilution by layer" }, make("h4", {}, "Dilution by layer"), chart,
      make("p", { class: "unit-note" }, make("span", { class: "key-line sink", "aria-hidden": "true" }), " share on the first token, ", make("span", { class: "key-line far", "aria-hidden": "true" }), " distance from the null (bits)"), make("p", { class: "note" }, said), folded("layers", "The same as a table", table))];
  }

  /** What becomes of the word without a part: its probability or, for a mean and where that says little, a ratio. */
  const becomes = (target, value, without) => {
    if (target.contrast) return `lead ${nats(-value, 2)} nats`;
    if (without !== null && target.probability >= 0.005) return `${short(target.probability)} → ${short(without)}`;
    const ratio = Math.exp(Math.min(50, Math.abs(value)));
    return ratio < 1.05 ? "about as likely" : `${ratio > 1e6 ? "over a million" : ratio < 10 ? ratio.toFixed(1) : Number(ratio.toPrecision(2)).toLocaleString("en")} times ${value < 0 ? "more" : "less"} likely`;
  };

  function effects(target) {
    if (!data.effects) return data.measured ? [make("p", { class: "note" }, "Nothing was taken away, so there are no measured effects.")] : [];
    const named = (part) => [data.effects.parts[part][0], data.effects.parts[part][2] ? ` (${data.effects.parts[part][2]})` : ""];
    const detail = ([, value, low, high]) => [`${nats(value, 2)} nats${low === high ? "" : `, ${nats(low, 2)} to ${nats(high, 2)}`}`];
    const write = (value, [, , , , without]) => becomes(target, value, without);
    return [make("section", { "aria-label": "Measured effects", class: "effects" }, make("h4", {}, term("effect", "Measured effects")),
      make("p", { class: "unit-note" }, `${target.contrast ? "its lead over the foil" : "its probability"} without the part, on average where it was measured more than once; below, the fall of the log-probability, with the ${data.effects.confidence} interval of such a mean`),
      ...bars(target.effects, { scale: 1, signed: true, named, write, detail, before: "without ", faint: 0.05 }))];
  }

  const cameFrom = (target) => !target.came_from.length ? [] : [make("p", { class: "came-from" }, ...target.came_from.map((part) => Array.isArray(part) ? quoted(part[0]) : part))];

  /** The same sources before and after the answer's own words are followed back to the prompt. */
  function traced(target) {
    if (!data.trace || !target.traced.length) return [];
    const path = ([, , , steps]) => [...steps.flatMap((step) => [quoted(data.trace[step][0]), data.trace[step][1] ? ` in the answer${data.trace[step][2] ? " ≈" : ""} → ` : " → "]), quoted(level().units[state.shown][3])];
    const write = (value, [, , direct]) => `${percent(value)} traced · ${percent(direct / 1000)} directly`;
    return [make("section", { "aria-label": "Traced through the answer" }, folded("traced", "Traced through the answer", () => [
      make("p", { class: "unit-note" }, "share of the contributions, after the answer’s own words are followed back to the prompt, and before; below, the path that carries the most. A share is no measured effect." + (data.trace.some((part) => part[2]) ? " ≈: with the sources of the whole passage that it is in." : "")),
      ...bars(target.traced, { scale: 1000, signed: false, named: (part) => [data.trace[part][0], ""], write, detail: path })]))];
  }

  function deletion(target) {
    if (data.deletion_refused) return [make("section", { "aria-label": "Contributions" }, make("h4", {}, "Contributions"), make("p", { class: "note" }, make("b", {}, "Refused. "), ...pieces(data.deletion_refused)))];
    if (!data.deletion) return [];
    const doubtful = target.status === "unconverged";
    const list = () => [make("p", { class: "unit-note" }, term("nat", "nats"), " · share of all values"), ...doubt(doubtful, "unconverged"),
      make("p", { class: "note" }, `All values together may be off by ${plain(target.deletion_error)} nats (${plain(target.deletion_tolerance)} allowed).`),
      ...bars(target.deletion, { scale: data.scale.deletion, signed: true, share: (value) => target.deletion_total ? Math.abs(value) / target.deletion_total : 0 })];
    if (doubtful) return [make("section", { "aria-label": "Contributions", class: "doubtful" }, folded("deletion", "Contributions: not to be read", list))];
    return [make("section", { "aria-label": "Contributions" }, make("h4", {}, term("contribution", "Contributions (deletion path)")), ...list())];
  }

  function removal(target) {
    if (!data.removal || data.effects) return [];
    return [make("section", { "aria-label": "Sources by removal" }, make("h4", {}, "Removal of one part"), make("p", { class: "unit-note" }, `drop in ${target.contrast ? "the lead over the foil" : "the log-probability"}, in nats, when the part is ${data.removal.operator} · share`),
      ...bars(target.removal, { scale: data.scale.removal, signed: true, named: partName, share: (value) => target.removal_total ? Math.abs(value) / target.removal_total : 0 }))];
  }

  function referee(target) {
    if (!target.referee) return data.measured ? [] : [make("p", { class: "referee" }, make("b", {}, "Referee: "), "not asked. Nothing was removed from the input to see which method is right.")];
    const score = (value) => make("td", { class: "num" }, value === null ? "–" : plain(value, 2));
    const table = () => [make("table", { class: "numbers" }, make("caption", { class: "hidden" }, "How well each method predicts removal"),
      make("thead", {}, make("tr", {}, ...["method", "random sets of parts (LDS)", "one part at a time"].map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...target.referee.scores.map(({ name, lds, leave_one_out: alone }) => make("tr", {}, make("th", { scope: "row" }, name), score(lds), score(alone)))))];
    const which = target.referee.read ? [make("p", { class: "unit-note" }, target.referee.read)] : [];
    if (data.measured) return [...which, folded("scores", "How well each method predicts removal", table)];
    return [make("p", { class: "referee" }, make("b", {}, "Referee: "), target.referee.said), folded("scores", "How well each method predicts it", table)];
  }

  /** The variant is unfolded if plain rollout is diluted, else folded. */
  function variant(target) {
    if (!data.variant) return [];
    const list = () => [make("p", { class: "unit-note" }, "of its row · share of the words’ part"), ...bars(target.variant, { scale: data.scale.variant, signed: false, share: (value) => target.variant_content ? value / target.variant_content : 0 })];
    const attributes = { "aria-label": `Sources by ${data.variant}` };
    if (target.diluted && !data.measured) return [make("section", attributes, make("h4", {}, data.variant), make("p", { class: "note" }, "Another way to follow attention, shown because plain rollout cannot be read here."), ...list())];
    return [make("section", attributes, folded("variant", data.variant, list))];
  }

  /** The other requested methods, folded. Their units differ, so numbers have three digits. */
  function also(target) {
    return data.also.map(({ name, source, signed, attention, refused }, i) => {
      const { pairs, total } = target.also[i], digits = (value) => (signed && value > 0 ? "+" : "") + String(Number(value.toPrecision(3))).replaceAll("-", "−");
      const ranked = () => [make("p", { class: "unit-note" }, attention ? "of its row · share of the words’ part" : "value · share of all values"),
        ...bars(pairs, { scale: 1, signed, write: attention ? percent : digits, share: (value) => total ? Math.abs(value) / total : 0 })];
      const list = () => [make("p", { class: "note" }, ...pieces(source)), ...(refused ? [make("p", { class: "note" }, make("b", {}, "Refused. "), ...pieces(refused))] : ranked())];
      return make("section", { "aria-label": `Sources by ${name}` }, folded(`also-${i}`, refused ? `${name}: refused` : name, list));
    });
  }

  function rollout(target) {
    const attributes = { "aria-label": "Sources by attention rollout", class: target.diluted ? "doubtful" : "" };
    if (data.measured && target.attention !== "readable" && !data.refused) return make("section", attributes, folded("attention", `Attention rollout: ${target.attention}, not to be read`, () => [make("p", { class: "note" }, target.attention_reason), ...shares(target)]));
    if (target.diluted && !data.refused) return make("section", attributes, folded("attention", "Attention rollout: not to be read", () => shares(target)));
    const section = make("section", attributes, make("h4", {}, term("attention", "Attention rollout")));
    if (data.refused) section.append(make("p", { class: "note" }, make("b", {}, "Refused. "), ...pieces(data.refused)));
    else section.append(...shares(target));
    return section;
  }

  const shares = (target) => [make("p", { class: "unit-note" }, "of all attention · share of the words’ part"), ...doubt(target.diluted, "diluted"),
      make("p", { class: "note" }, `Start mark and template take ${percent(Math.max(0, 1 - target.rollout_content - target.lost_mass))}; bars compare the rest.`),
      ...bars(target.rollout, { scale: data.scale.rollout, signed: false, share: (value) => target.rollout_content ? value / target.rollout_content : 0 })];

  const doubt = (holds, status) => !holds ? [] : [make("p", { class: `doubt status-${status}` }, `${data.statuses[status].sign} ${status}: do not read these bars`)];

  function fill(target) {
    const own = level().units[state.shown], meaning = data.statuses[target.status];
    const joined = target.joined > 1 ? [make("p", { class: "note" }, `These are ${target.joined} tokens. ${data.measured ? "Effects with their intervals, contributions" : "Gradient values"}, log-probabilities, gaps and errors are summed over them; attention shares are averaged. Status, reason and rank agreement are those of the token `, quoted(target.judged), ".")] : [];
    const [before, between, after] = data.contrast, [token, foil] = target.contrast ?? [];
    const against = target.contrast ? [make("p", { class: "note" }, before, quoted(token), between, quoted(foil), after)] : [];
    const mark = make("div", { id: "mark" });
    panel.replaceChildren(
      make("div", { class: "panel-top" }, make("h3", { id: "panel-head" }, quoted(own[3]), " ", make("span", { class: `status-${target.status}` }, `${meaning.sign} ${target.status}`)), closing()),
      make("p", { class: "chance" }, `${short(target.probability)} likely here${target.rank === 1 ? ", the model’s first choice" : target.joined > 1 ? "" : `, the model’s choice number ${target.rank}`}.`),
      ...cameFrom(target), ...against, ...effects(target), ...traced(target),
      make("p", {}, `${meaning.meaning[0].toUpperCase()}${meaning.meaning.slice(1)}. `, make("span", { class: "soft" }, target.reason)), ...joined,
      make("div", { class: "pair" }, ...deletion(target), gradients(target), ...removal(target), rollout(target), ...variant(target), ...also(target)),
      ...referee(target), folded("figures", "All figures of this word", () => [...dilution(target), make("div", { class: "pair" }, likelihood(target), certainty(target), attention(target), agreement(target))]),
      make("section", { "aria-label": "Your review of this word" }, make("h4", {}, "Your review of this word"), mark),
    );
    const { units } = level(), next = units[state.shown + 1]?.[5] ?? own[5] + target.joined;
    document.dispatchEvent(new CustomEvent("llmxai-word", { detail: { place: mark, tokens: [own[5], next], text: own[4] } }));
  }

  const closing = () => {
    const button = make("button", { type: "button", class: "close", "aria-label": "Close, back to the whole answer" }, "✕");
    button.addEventListener("click", () => {
      const word = nodes[state.shown];
      pin(null);
      leaving = true; // the word gets the focus again, and is not shown for that
      word?.focus({ preventScroll: true });
      leaving = false;
    });
    return button;
  };

  /** Open where they are the only contributions; else folded, as a second opinion. */
  function gradients(target) {
    const list = () => [make("p", { class: "unit-note" }, term("nat", "nats"), " · share of all values"), ...doubt(!target.converged, "unconverged"),
      ...bars(target.gradients, { scale: data.scale.gradients, signed: true, share: (value) => target.gradients_total ? Math.abs(value) / target.gradients_total : 0 })];
    const attributes = { "aria-label": "Sources by integrated gradients", class: target.converged ? "" : "doubtful" };
    if (data.deletion || !target.converged) return make("section", attributes, folded("gradients", `Integrated gradients${target.converged ? "" : ": not to be read"}`, list));
    return make("section", attributes, make("h4", {}, "Integrated gradients"), ...list());
  }

  // ---- choosing
  function show(number) {
    state.shown = number;
    repaint();
  }

  /** Scroll each text box, and nothing else, so that its strongest source is visible. */
  function reveal(target) {
    for (const box of target ? [given, answer] : [given]) {
      const best = (target ? lit(target) : level().focus).find(([number]) => number !== state.shown && box.contains(nodes[number]));
      if (!best || box.scrollHeight <= box.clientHeight) continue;
      const unit = nodes[box === answer ? state.shown : best[0]], node = unit.getBoundingClientRect();
      const frame = box.getBoundingClientRect(), turn = unit.closest(".turn-box").getBoundingClientRect();
      const start = node.bottom - turn.top < frame.height ? turn.top : node.top - frame.height / 3; // no line is cut at a turn's start
      if (node.top < frame.top || node.bottom > frame.bottom) box.scrollTop += start - frame.top;
    }
  }

  /** Keep the word in the address; inside a notebook a page may have no address of its own. */
  function remember(fragment) {
    try {
      history.replaceState(null, "", location.href.split("#")[0] + fragment);
    } catch { /* then there is nothing to link to */ }
  }

  function pin(number) {
    if (state.pinned !== null) nodes[state.pinned].setAttribute("aria-pressed", "false");
    state.pinned = number;
    show(number);
    if (number === null) {
      live.textContent = "Released.";
      remember("#text");
      return;
    }
    const target = byUnit.get(number), best = target[state.method][0], name = (i) => level().units[i][4];
    const source = best && (state.method === "effects" ? data.effects.parts[best[0]][1] : state.method === "removal" ? data.removal.parts[best[0]][1] : name(best[0]));
    nodes[number].setAttribute("aria-pressed", "true");
    reach(nodes[number]);
    reveal(target);
    nodes[number].scrollIntoView?.({ block: "nearest" });
    live.textContent = `Pinned ${name(number)}: ${target.status}.${unreadable(target) ? " Do not read these colours." : best ? ` Top source: ${source}.` : ""}`;
    remember(`#${state.level}-${number}`);
  }

  function reach(element) {
    stop?.setAttribute("tabindex", "-1");
    stop = element;
    stop.setAttribute("tabindex", "0");
  }

  function walk(step, wanted) {
    const order = level().targets.filter(wanted).map((target) => target.unit);
    if (!order.length) {
      live.textContent = `Every word is “${level().targets[0]?.status}”.`;
      return;
    }
    const here = state.shown ?? -1;
    const next = step > 0 ? order.find((number) => number > here) ?? order[0] : order.findLast((number) => number < here) ?? order.at(-1);
    nodes[next].focus({ preventScroll: answer.scrollHeight > answer.clientHeight });
    pin(next);
  }

  /** Change the units; a pinned word stays pinned as the unit that holds its first token. */
  function change(name) {
    const first = state.pinned === null ? null : level().units[state.pinned][5];
    state.level = name;
    state.pinned = state.shown = null;
    build();
    const { units, targets } = level();
    const same = first === null ? undefined : targets.findLast((target) => units[target.unit][5] <= first) ?? targets[0];
    if (same) pin(same.unit);
    else repaint();
  }

  const numberOf = (event) => {
    const element = event.target.closest?.(".target");
    return element ? Number(element.dataset.unit) : null;
  };
  const toggle = (event) => {
    const number = numberOf(event);
    if (number !== null) pin(number === state.pinned ? null : number);
    return number !== null;
  };
  const preview = (event) => {
    const number = numberOf(event);
    if (number !== null && state.pinned === null && number !== state.shown && !leaving) show(number);
  };
  allRoles.addEventListener("change", repaint);
  answer.addEventListener("click", toggle);
  answer.addEventListener("pointerover", preview);
  answer.addEventListener("focusin", preview);
  answer.addEventListener("pointerleave", () => state.pinned === null && state.shown !== null && show(null));
  byId("switches").addEventListener("change", (event) => {
    if (event.target.name === "level") change(event.target.value);
    else if (event.target.name === "method") {
      state.method = event.target.value;
      repaint();
    }
  });
  byId("help-button").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const own = event.target.matches("input, .scroll, textarea"); // these use the arrow keys themselves
    if (event.target.matches("textarea, [type=text]")) return;
    const act = {
      ArrowRight: () => !own && (walk(1, () => true), true),
      ArrowLeft: () => !own && (walk(-1, () => true), true),
      n: () => (walk(1, (target) => !data.fine.includes(target.status)), true),
      p: () => (walk(-1, (target) => !data.fine.includes(target.status)), true),
      Enter: () => toggle(event),
      " ": () => toggle(event),
      Escape: () => (tip.hidden ? pin(null) : untip(), true),
      "?": () => (help.showModal(), true),
    }[event.key];
    if (act?.()) event.preventDefault();
  });

  // ---- terms: a tooltip over the word; choosing it leads to the list of terms
  const untip = () => { tip.hidden = true; };
  const showTip = (event) => {
    const link = event.target.closest?.("a.term"), meaning = link && byId(link.getAttribute("href").slice(1));
    if (!meaning) return;
    tip.replaceChildren(...meaning.cloneNode(true).childNodes);
    tip.hidden = false;
    link.setAttribute("aria-describedby", "tip");
    const at = link.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${at.bottom + own.height + 6 < innerHeight ? at.bottom + 2 : Math.max(8, at.top - own.height - 2)}px`;
  };
  const leave = (event) => {
    const to = event.relatedTarget;
    if (!(to instanceof Node) || (!tip.contains(to) && !to.closest?.("a.term"))) untip();
  };
  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, showTip);
  document.addEventListener("pointerout", (event) => (event.target.closest?.("a.term") || tip.contains(event.target)) && leave(event));
  document.addEventListener("focusout", (event) => event.target.closest?.("a.term") && untip());
  addEventListener("scroll", untip, { passive: true });

  // Inside a notebook "#limits" would be an address in the notebook
  if (location.protocol === "about:") document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (!link) return;
    event.preventDefault();
    visit(link.getAttribute("href").slice(1));
  });

  // ---- paper: what the page opens on, and the folded parts behind it
  const printed = [...document.querySelectorAll("details.printed")];
  let opened = null, shown = null;
  addEventListener("beforeprint", () => {
    if (opened) return;
    [opened, shown] = [printed.map((details) => details.open), state.shown];
    for (const details of printed) details.open = true;
    if (shown !== null) show(null);
  });
  addEventListener("afterprint", () => {
    printed.forEach((details, i) => { details.open = opened?.[i] ?? details.open; });
    if (shown !== null) show(shown);
    opened = shown = null;
  });

  // ---- start, with the word that the address names
  /** Pin the first word that has a status, or unfold and show a place on the page. */
  function visit(name) {
    if (Object.hasOwn(data.statuses, name)) {
      const first = level().targets.find((target) => target.status === name);
      if (first) pin(first.unit);
      return;
    }
    const place = byId(name), around = place?.closest("details:not([open])");
    if (around) around.open = true;
    if (around || location.protocol === "about:") place?.scrollIntoView();
  }

  function follow() {
    visit(location.hash.slice(1));
    const link = location.hash.match(/^#([a-z]+)-(\d+)$/);
    if (!link || !Object.hasOwn(data.levels, link[1])) return;
    const number = Number(link[2]);
    if (link[1] === state.level && number === state.pinned) return;
    if (!data.levels[link[1]].targets.some((target) => target.unit === number)) return;
    document.querySelector(`input[name=level][value=${link[1]}]`).checked = true;
    change(link[1]);
    pin(number);
  }
  document.documentElement.classList.add("scripted");
  document.querySelector("input[name=level]").checked = true;
  document.querySelector("input[name=method]").checked = true;
  build();
  repaint();
  reveal();
  follow();
  addEventListener("hashchange", follow);
})();
