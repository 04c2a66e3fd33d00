/** Show a conversation, and send messages in it. */

import { Problem } from "../api.js";
import { button, element } from "../dom.js";
import { Outbox } from "./outbox.js";
import { isAutomatic } from "./problems.js";
import { Sender } from "./sender.js";
import { Turn } from "./turn.js";
import { TurnView } from "./view.js";

const PAGE_TURNS = 30;
const LOOK_MILLISECONDS = 2000; // between two looks at a turn that another tab or device runs
const FRESH_MILLISECONDS = 15 * 60 * 1000; // a message on its way for longer is sent again only when the person says so

/**
 * @typedef {object} Place
 * @property {string | null} conversation
 * @property {string | null} message key of a message that has no conversation yet
 */

export class Chat {
  /**
   * @param {object} needs
   * @param {import("../api.js").Api} needs.api
   * @param {HTMLElement} needs.log
   * @param {HTMLElement} needs.scroller
   * @param {import("../config.js").Domain} needs.domain
   * @param {(text: string) => void} needs.announce
   * @param {(place: Place) => void} needs.onPlace the turn that is shown has got a place of its own
   * @param {(turn: Turn) => void} needs.onEnded
   * @param {() => void} needs.onChange
   * @param {(text: string) => void} needs.edit
   */
  constructor({ api, log, scroller, domain, announce, onPlace, onEnded, onChange, edit }) {
    this.api = api;
    this.log = log;
    this.scroller = scroller;
    this.domain = domain;
    this.announce = announce;
    this.onPlace = onPlace;
    this.onEnded = onEnded;
    this.onChange = onChange;
    this.edit = edit;
    this.outbox = new Outbox(api.session.userId);
    this.sender = new Sender({
      api,
      outbox: this.outbox,
      onAccepted: (turn) => this.#accepted(turn),
      onEnded: (turn) => this.#ended(turn),
    });
    this.outbox.onChange((now, before) => this.#changedElsewhere(now, before));
    /** @type {Place} */
    this.place = { conversation: null, message: null };
    /** @type {Turn[]} */
    this.turns = [];
    /** @type {Map<Turn, TurnView>} */
    this.views = new Map();
    /** @type {string | null} */
    this.older = null;
    this.opening = new AbortController();
    this.#keepAtTheEnd();
  }

  /** The turn of this conversation that runs, or undefined. */
  get running() {
    return this.turns.find((turn) => turn.isRunning);
  }

  /**
   * Show a place, and go on with its messages on their way.
   * @param {Place} place
   */
  async open(place) {
    this.#clear(place);
    const { signal } = this.opening;
    try {
      if (place.conversation) await this.#read(place.conversation, signal);
      else this.#showMessage(place.message);
    } catch (error) {
      if (!signal.aborted && error instanceof Problem) this.#showProblem(error, place);
    }
  }

  /** @param {string} message */
  send(message) {
    const known = this.turns.filter((turn) => turn.id);
    const turn = this.sender.send(message, this.place.conversation, known.at(-1)?.id ?? null);
    if (!this.place.conversation) this.place = { conversation: null, message: turn.key };
    this.turns.push(turn);
    this.#show();
    this.scrollToEnd();
    this.announce("Sent.");
    if (!this.place.conversation) this.onPlace(this.place);
  }

  stop() {
    const turn = this.running;
    if (turn?.key) this.sender.leave(turn);
    this.#changed();
  }

  scrollToEnd() {
    this.isAtEnd = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** @param {Place} place */
  #clear(place) {
    this.opening.abort();
    this.opening = new AbortController();
    this.place = place;
    for (const view of this.views.values()) view.close();
    this.views.clear();
    this.turns = [];
    this.older = null;
    this.log.replaceChildren();
    this.scrollToEnd();
    this.#changed();
  }

  /** @param {string | null} key */
  #showMessage(key) {
    const entry = key && this.outbox.get(key);
    if (entry) this.#addEntries([entry]);
    this.#show();
  }

  /**
   * Read the newest turns, and add them to those that are shown.
   * @param {string} conversation
   * @param {AbortSignal} signal
   */
  async #read(conversation, signal) {
    const page = await this.#page(conversation, signal);
    if (signal.aborted) return;
    if (this.turns.length === 0) this.older = page.next_cursor;
    this.#merge(conversation, page.turns.reverse());
    this.#addEntries(this.outbox.all().filter((entry) => entry.conversation === conversation));
    this.#show();
    if (this.turns.some((turn) => turn.isRunning && !turn.isLive && !turn.key)) this.#lookAgain(conversation, signal);
  }

  /**
   * @param {string} conversation
   * @param {AbortSignal} signal
   * @param {string | null} [cursor]
   */
  #page(conversation, signal, cursor) {
    const query = new URLSearchParams({ limit: String(PAGE_TURNS), ...(cursor ? { cursor } : {}) });
    return this.api.json("GET", `${this.api.person}/conversations/${conversation}?${query}`, { signal });
  }

  /**
   * @param {string} conversation
   * @param {AbortSignal} signal
   */
  #lookAgain(conversation, signal) {
    setTimeout(() => {
      if (!signal.aborted) this.#read(conversation, signal).catch(() => this.#lookAgain(conversation, signal));
    }, LOOK_MILLISECONDS);
  }

  /**
   * Take in turns of the history, the oldest first. A turn that this tab follows is left to its events.
   * @param {string} conversation
   * @param {Record<string, any>[]} stored
   */
  #merge(conversation, stored) {
    for (const each of stored) {
      const known = this.turns.find((turn) => turn.id === each.turn_id)
        ?? [...this.sender.turns.values()].find((turn) => turn.id === each.turn_id);
      if (!known) this.turns.push(Turn.ofHistory(conversation, each));
      else if (!known.isLive) this.#update(known, each);
      if (known && !this.turns.includes(known)) this.turns.push(known);
    }
  }

  /**
   * @param {Turn} turn
   * @param {Record<string, any>} stored
   */
  #update(turn, stored) {
    if (stored.status === "done") {
      if (turn.key) this.sender.discard(turn);
      turn.key = null;
      turn.readHistory(stored);
    } else if (!turn.key) turn.readHistory(stored);
  }

  /**
   * Show messages on their way, and go on with them.
   * @param {import("./outbox.js").Entry[]} entries
   */
  #addEntries(entries) {
    for (const entry of entries) {
      const done = this.turns.find((turn) => turn.id && turn.id === entry.turn && turn.state === "done");
      if (done) this.outbox.remove(entry.key);
      else this.#goOn(entry);
    }
  }

  /** @param {import("./outbox.js").Entry} entry */
  #goOn(entry) {
    const turn = this.sender.turnOf(entry);
    this.turns = this.turns.filter((each) => each === turn || each.id === null || each.id !== turn.id);
    if (!this.turns.includes(turn)) this.turns.push(turn);
    const isFresh = Date.now() - entry.sentAt < FRESH_MILLISECONDS;
    const waits = turn.failure ? isAutomatic(turn.failure) : turn.state === "sending";
    if (waits && isFresh) this.sender.resume(turn);
    else if (waits) turn.setState("interrupted");
  }

  /** Bring the log in line with the turns. */
  #show() {
    const roots = this.turns.map((turn) => this.#view(turn).root);
    const children = [...(this.older ? [this.#olderButton()] : []), ...(roots.length ? roots : [this.#welcome()])];
    const kept = new Set(children);
    for (const child of [...this.log.children]) if (!kept.has(/** @type {HTMLElement} */ (child))) child.remove();
    children.forEach((child, place) => {
      if (this.log.children[place] !== child) this.log.insertBefore(child, this.log.children[place] ?? null);
    });
    this.#changed();
  }

  /** @param {Turn} turn */
  #view(turn) {
    const known = this.views.get(turn);
    if (known) return known;
    const view = new TurnView(turn, {
      retry: (each) => { this.sender.resume(each); this.scrollToEnd(); },
      discard: (each) => this.#discard(each),
      edit: this.edit,
      sendAgain: (each) => this.send(each.message),
      describe: (call) => describe(this.domain, call),
      announce: this.announce,
    });
    turn.listeners.add(this.onChange);
    this.views.set(turn, view);
    return view;
  }

  #welcome() {
    const suggestions = (this.domain.suggestions ?? []).map((text) =>
      element("li", {}, button(text, () => this.send(text), { dir: "auto" })));
    return element("div", { class: "welcome" },
      element("h2", {}, "What would you like to do?"),
      element("p", {}, "Write it as you would say it."),
      suggestions.length > 0 && element("ul", { class: "suggestions", "aria-label": "Suggestions" }, suggestions));
  }

  #olderButton() {
    this.olderNode ??= element("p", { class: "older" }, button("Show earlier messages", () => this.#showOlder()));
    return this.olderNode;
  }

  async #showOlder() {
    const { signal } = this.opening;
    const { conversation } = this.place;
    if (!conversation || !this.older) return;
    const page = await this.#page(conversation, signal, this.older).catch(() => null);
    if (signal.aborted || !page) return;
    const fromEnd = this.scroller.scrollHeight - this.scroller.scrollTop;
    this.older = page.next_cursor;
    const newer = this.turns;
    this.turns = [];
    this.#merge(conversation, page.turns.reverse());
    this.turns = [...this.turns, ...newer.filter((turn) => !this.turns.includes(turn))];
    this.#show();
    this.scroller.scrollTop = this.scroller.scrollHeight - fromEnd;
  }

  /**
   * @param {Problem} error
   * @param {Place} place
   */
  #showProblem(error, place) {
    const isGone = error.status === 404;
    const way = isGone
      ? button("New conversation", () => this.onPlace({ conversation: null, message: null }), { class: "primary" })
      : button("Retry", () => this.open(place), { class: "primary" });
    this.log.replaceChildren(element("div", { class: "notice bad" },
      element("p", { class: "title" }, isGone ? "This conversation is gone." : error.problem.title),
      element("div", { class: "buttons" }, way)));
  }

  /** @param {Turn} turn */
  #discard(turn) {
    this.sender.discard(turn);
    this.views.get(turn)?.close();
    this.turns = this.turns.filter((each) => each !== turn);
    this.#show();
  }

  /** @param {Turn} turn */
  #accepted(turn) {
    if (this.place.message === turn.key && !this.place.conversation) {
      this.place = { conversation: turn.conversation, message: null };
      this.onPlace(this.place);
    }
    const others = this.turns.filter((each) => each === turn || each.id !== turn.id);
    if (others.length < this.turns.length) {
      this.turns = others;
      this.#show();
    }
  }

  /** @param {Turn} turn */
  #ended(turn) {
    if (this.turns.includes(turn)) {
      this.announce(turn.response ?? turn.failure?.problem.title ?? "");
      this.#changed();
    }
    this.onEnded(turn);
  }

  /**
   * @param {import("./outbox.js").Entry | null} now
   * @param {import("./outbox.js").Entry | null} before
   */
  #changedElsewhere(now, before) {
    const conversation = now?.conversation ?? before?.conversation ?? null;
    if (!now) this.onEnded(new Turn({ conversation }));
    if (conversation && conversation === this.place.conversation) {
      this.#read(conversation, this.opening.signal).catch(() => {});
    }
  }

  #changed() {
    this.onChange();
  }

  /** Keep the newest line in sight while the log grows, unless the person has scrolled up. */
  #keepAtTheEnd() {
    this.isAtEnd = true;
    this.scroller.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.scroller;
      this.isAtEnd = scrollHeight - scrollTop - clientHeight < 80;
    });
    new ResizeObserver(() => {
      if (this.isAtEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    }).observe(this.log);
  }
}

/**
 * Return one line for a tool call, by the domain's words or by the tool's name.
 * @param {import("../config.js").Domain} domain
 * @param {import("../config.js").Call} call
 */
function describe(domain, call) {
  try {
    const line = domain.describe?.(call);
    if (line) return line;
  } catch (error) {
    console.warn("The panel's module cannot describe a call.", error);
  }
  const name = call.tool.replaceAll("_", " ");
  return name.charAt(0).toUpperCase() + name.slice(1);
}
