/** Show turns. A turn that changes is drawn once per frame, however many events came. */

import { button, element } from "../dom.js";
import { MarkdownView } from "./markdown.js";
import { explain, isRetryable } from "./problems.js";

/**
 * @typedef {object} Actions
 * @property {(turn: import("./turn.js").Turn) => void} retry
 * @property {(turn: import("./turn.js").Turn) => void} discard
 * @property {(turn: import("./turn.js").Turn) => void} edit
 * @property {(turn: import("./turn.js").Turn) => void} sendAgain
 * @property {(turn: import("./turn.js").Turn) => void} sendApart
 * @property {(call: import("../config.js").Call) => string} describe
 * @property {(text: string) => void} announce
 */

const TIME = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });

/** @type {Set<TurnView>} */
const stale = new Set();

/** @param {TurnView} view */
function drawSoon(view) {
  if (stale.size === 0) requestAnimationFrame(drawAll);
  stale.add(view);
}

function drawAll() {
  const views = [...stale];
  stale.clear(); // first, so that an error in one view does not stop the others for ever
  for (const view of views) view.draw();
}

export class TurnView {
  /**
   * @param {import("./turn.js").Turn} turn
   * @param {Actions} actions
   */
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.parts = element("div", { class: "parts" });
    this.reply = element("div", { class: "reply" });
    this.markdown = new MarkdownView(this.reply);
    this.end = element("div", { class: "end" });
    /** @type {Map<string, {drawn: string, node: HTMLElement}>} */
    this.drawn = new Map();
    this.drawnEnd = "";
    this.root = element("article", { class: "turn", "aria-live": "off" }, this.#message(), this.parts, this.reply, this.end);
    this.listener = () => drawSoon(this);
    turn.listeners.add(this.listener);
    this.draw();
  }

  /** Stop following the turn. */
  close() {
    this.turn.listeners.delete(this.listener);
  }

  draw() {
    this.root.classList.toggle("failed", this.turn.state === "failed"); // its notice has the button to edit
    this.#drawParts();
    this.reply.hidden = this.turn.response === null;
    if (this.turn.response !== null) this.markdown.show(this.turn.response);
    this.#drawEnd();
  }

  #message() {
    return element("div", { class: "message" },
      element("h2", { class: "hidden" }, "You"),
      element("p", { class: "bubble", dir: "auto" }, this.turn.message),
      element("div", { class: "tools" },
        button("Edit", () => this.actions.edit(this.turn), { "aria-label": "Edit and send as a new message" })));
  }

  #drawParts() {
    const wanted = this.turn.parts.map((part, place) => this.#part(part, place));
    const kept = new Set(wanted);
    for (const child of [...this.parts.children]) if (!kept.has(/** @type {HTMLElement} */ (child))) child.remove();
    wanted.forEach((node, place) => {
      if (this.parts.children[place] !== node) this.parts.insertBefore(node, this.parts.children[place] ?? null);
    });
  }

  /**
   * Return the element of a part, made anew only if the part has changed.
   * @param {import("./turn.js").Part} part
   * @param {number} place
   */
  #part(part, place) {
    const name = "call" in part ? `call ${part.call.call_id}` : `text ${place}`;
    const state = "call" in part ? part.call.outcome ?? "" : part.text;
    const known = this.drawn.get(name);
    if (known?.drawn === state) return known.node;
    const node = "call" in part ? callElement(part.call, this.actions.describe) : this.#text(part.text, known?.node);
    this.drawn.set(name, { drawn: state, node });
    return node;
  }

  /**
   * @param {string} text
   * @param {HTMLElement} [node]
   */
  #text(text, node = element("div", { class: "reply growing" })) {
    const view = views.get(node) ?? new MarkdownView(node);
    views.set(node, view);
    view.show(text);
    return node;
  }

  #drawEnd() {
    const { state, failure, isLive, key, calls } = this.turn;
    const drawn = JSON.stringify([state, failure, isLive, key, calls.length]);
    if (drawn === this.drawnEnd) return;
    this.drawnEnd = drawn;
    this.end.replaceChildren(...this.#endOf(state));
  }

  /**
   * @param {import("./turn.js").State} state
   * @returns {HTMLElement[]}
   */
  #endOf(state) {
    if (state === "done") return [this.#copy()];
    if (state === "failed") return [this.#failure()];
    if (state === "left") return [this.#left()];
    if (state === "interrupted") return [this.#interrupted()];
    return [working(this.turn)];
  }

  #copy() {
    const copy = button("Copy", async () => {
      const isCopied = await copyText(this.turn.response ?? "");
      copy.textContent = isCopied ? "Copied" : "Not copied";
      this.actions.announce(isCopied ? "Copied." : "The browser does not allow to copy.");
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
    const time = new Date(this.turn.startedAt);
    return element("div", { class: "tools" }, copy,
      element("time", { datetime: time.toISOString(), title: time.toLocaleString() }, TIME.format(time)));
  }

  #failure() {
    const failure = /** @type {import("./turn.js").Failure} */ (this.turn.failure);
    const [title, ...lines] = explain(this.turn);
    return element("div", { class: "notice bad" },
      element("p", { class: "title" }, title), lines.map((line) => element("p", {}, line)), countdown(failure),
      element("div", { class: "buttons" }, this.#ways(failure)));
  }

  /** @param {import("./turn.js").Failure} failure */
  #ways(failure) {
    const { turn, actions } = this;
    return [
      isRetryable(failure) && retryButton(failure, () => actions.retry(turn)),
      failure.status === 404 && button("Send in a new conversation", () => actions.sendApart(turn), { class: "primary" }),
      button("Edit", () => actions.edit(turn)),
      !turn.id && button("Discard", () => actions.discard(turn)),
    ];
  }

  #left() {
    return element("div", { class: "notice" },
      element("p", {}, "You stopped waiting. The server goes on with this message."),
      element("div", { class: "buttons" }, button("Show the answer", () => this.actions.retry(this.turn))));
  }

  #interrupted() {
    const { key } = this.turn;
    const text = this.turn.calls.length
      ? "This message got no answer. The steps above were done and stay done."
      : "This message got no answer.";
    const way = key
      ? button("Retry", () => this.actions.retry(this.turn))
      : button("Send as a new message", () => this.actions.sendAgain(this.turn));
    return element("div", { class: "notice" }, element("p", {}, text), element("div", { class: "buttons" }, way));
  }
}

/**
 * Return true if the text is in the clipboard now.
 * @param {string} text
 */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** @type {WeakMap<HTMLElement, MarkdownView>} */
const views = new WeakMap();

/**
 * @param {import("../config.js").Call} call
 * @param {(call: import("../config.js").Call) => string} describe
 */
function callElement(call, describe) {
  const state = call.outcome ?? "started";
  const json = JSON.stringify({ tool: call.tool, arguments: call.arguments, result: call.result }, null, 2);
  return element("details", { class: `call ${state}` },
    element("summary", {}, element("span", { class: "mark", "aria-hidden": "true" }), element("span", { dir: "auto" }, describe(call))),
    element("pre", { tabindex: 0, "aria-label": `Details of ${call.tool}` }, json));
}

/** @param {import("./turn.js").Turn} turn */
function working(turn) {
  const text = turn.state === "running" ? "Working" : "Sending";
  return element("p", { class: "waiting" },
    element("span", { class: "dots", "aria-hidden": "true" }, element("i"), element("i"), element("i")),
    element("span", {}, text),
    element("span", { class: "elapsed", "data-since": turn.startedAt }, ""));
}

/**
 * @param {import("./turn.js").Failure} failure
 * @param {() => void} onclick
 */
function retryButton(failure, onclick) {
  const mustWait = failure.retryAt !== null && failure.status !== 0 && failure.status !== 409;
  return button("Retry", onclick, { class: "primary", "data-from": mustWait ? failure.retryAt : null, disabled: mustWait });
}

/** @param {import("./turn.js").Failure} failure */
function countdown(failure) {
  return failure.retryAt === null ? null : element("p", { class: "countdown", "data-until": failure.retryAt }, "");
}

/** Bring times that pass up to date: elapsed seconds, seconds until a retry. */
function tick() {
  const now = Date.now();
  for (const node of all(".elapsed")) node.textContent = spell(now - Number(node.dataset.since));
  for (const node of all(".countdown")) {
    const left = Number(node.dataset.until) - now;
    node.textContent = left > 0 ? `Retry in ${spell(left)}` : "";
  }
  for (const node of all("button[data-from]")) {
    if (Number(node.dataset.from) <= now) node.removeAttribute("disabled");
  }
}

/**
 * @param {string} selector
 * @returns {NodeListOf<HTMLElement>}
 */
function all(selector) {
  return document.querySelectorAll(selector);
}

/** @param {number} milliseconds */
function spell(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.ceil((seconds % 3600) / 60)} min`;
}

setInterval(tick, 250);
