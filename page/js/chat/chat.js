/** Show a conversation, send messages in it, and go on with those that are on their way. */

import { Problem } from "../api.js";
import { History } from "./history.js";
import { Log } from "./log.js";
import { Outbox } from "./outbox.js";
import { isAutomatic } from "./problems.js";
import { Sender } from "./sender.js";
import { Turn } from "./turn.js";
import { Turns } from "./turns.js";
import { gone, unread, waiting, welcome } from "./welcome.js";

const LOOK_MILLISECONDS = 2000; // between two looks at a turn that another tab or device runs
const FRESH_MILLISECONDS = 15 * 60 * 1000; // an older message is sent again only when the person says so

/**
 * @typedef {object} Place
 * @property {string | null} conversation
 * @property {string | null} message key of a message that has no conversation yet
 */

/**
 * @typedef {object} Needs
 * @property {import("../api.js").Api} api
 * @property {HTMLElement} log
 * @property {HTMLElement} scroller
 * @property {HTMLElement} toEnd
 * @property {import("../config.js").Domain} domain
 * @property {(text: string) => void} announce
 * @property {(place: Place, how: "pushState" | "replaceState") => void} onMove the shown turns have another place now
 * @property {(place: Place) => void} onGo the person wants to see another place
 * @property {(call: import("../config.js").Call) => void} onCall a call was made, and its turn goes on
 * @property {(turn: Turn) => void} onEnded a turn of any conversation has ended, in this tab or another one
 * @property {() => void} onChange
 * @property {(text: string) => void} edit put a text into the composer
 * @property {() => void} focus go to the composer: the button that was pressed is gone
 */

export class Chat {
  /** @param {Needs} needs */
  constructor(needs) {
    this.needs = needs;
    this.history = new History(needs.api);
    this.outbox = new Outbox(needs.api.session.userId);
    this.sender = new Sender({
      api: needs.api,
      outbox: this.outbox,
      onEvent: (turn, event) => this.#heard(turn, event),
      onEnded: (turn) => this.#ended(turn),
      onChange: needs.onChange,
    });
    this.log = new Log({
      root: needs.log,
      scroller: needs.scroller,
      toEnd: needs.toEnd,
      actions: this.#actions(),
      onOlder: () => this.#showOlder(),
    });
    /** @type {Place} */
    this.place = { conversation: null, message: null };
    this.turns = new Turns();
    /** @type {string | null} */
    this.older = null;
    this.opening = new AbortController();
    this.hasRead = false;
    this.isReadingOlder = false;
    /** @type {Turn | null} the turn of another tab or device that is followed */
    this.followed = null;
    this.outbox.onChange((now, before) => this.#changedElsewhere(now, before));
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#comeBack(); });
    addEventListener("pageshow", ({ persisted }) => { if (persisted) this.#comeBack(); });
  }

  /** The turn of the shown conversation that this tab reads, or undefined. */
  get live() {
    return this.turns.list.find((turn) => turn.isLive);
  }

  /**
   * Show a place.
   * @param {Place} place
   */
  async open(place) {
    this.#clear(place);
    const entry = place.message ? this.outbox.get(place.message) : null;
    const conversation = place.conversation ?? entry?.conversation ?? conversationOf(place.message);
    if (conversation) await this.#openConversation(conversation);
    else this.#openMessage(entry);
  }

  /** Go on with all messages that were on their way when the page was left. */
  goOnWithAll() {
    for (const entry of this.outbox.all()) if (!this.sender.turns.has(entry.key)) this.#goOnUnseen(entry);
  }

  /** @param {string} message */
  send(message) {
    const known = this.turns.list.filter((turn) => turn.id);
    const turn = this.sender.send(message, this.place.conversation, known.at(-1)?.id ?? null);
    this.turns.add(turn);
    if (!this.place.conversation) this.#move({ conversation: null, message: turn.key }, "pushState");
    this.#show();
    this.log.goToEnd();
    this.needs.focus();
    this.needs.announce("Sent.");
  }

  stop() {
    if (this.live) this.sender.leave(this.live);
  }

  /** @returns {import("./view.js").Actions} */
  #actions() {
    const { announce, edit } = this.needs;
    return {
      announce,
      describe: (call) => describe(this.needs.domain, call),
      edit: (turn) => {
        if (turn.failure && turn.failure.status >= 400 && !turn.id) this.#discard(turn);
        edit(turn.message);
      },
      retry: (turn) => {
        this.sender.retry(turn);
        this.needs.focus();
      },
      discard: (turn) => this.#discard(turn),
      sendAgain: (turn) => this.send(turn.message),
      sendApart: (turn) => {
        this.#discard(turn);
        this.needs.onGo({ conversation: null, message: null });
        this.send(turn.message);
      },
    };
  }

  /** @param {Place} place */
  #clear(place) {
    this.opening.abort();
    this.opening = new AbortController();
    this.place = place;
    this.turns = new Turns();
    this.older = null;
    this.hasRead = false;
    this.log.clear();
    this.needs.onChange();
  }

  /** @param {import("./outbox.js").Entry | null} entry a message without a conversation, or null for an empty log */
  #openMessage(entry) {
    if (entry) this.#goOn(entry);
    else if (this.place.message) this.#move({ conversation: null, message: null }, "replaceState");
    this.#show();
  }

  /** @param {string} conversation */
  async #openConversation(conversation) {
    const { signal } = this.opening;
    if (this.place.conversation !== conversation) this.#move({ conversation, message: null }, "replaceState");
    this.log.showLoading();
    try {
      await this.#read(conversation, signal);
    } catch (error) {
      if (!signal.aborted && error instanceof Problem) this.#showProblem(error);
    }
  }

  /**
   * Read the newest turns, and show them with the messages on their way. Raises Problem.
   * @param {string} conversation
   * @param {AbortSignal} signal
   */
  async #read(conversation, signal) {
    const page = await this.history.page(conversation, signal);
    if (signal.aborted) return;
    if (!this.hasRead) this.older = page.older;
    this.hasRead = true;
    this.#addEntries(conversation);
    this.turns.merge(conversation, page.turns, "newest");
    this.#settle();
    this.#show();
    this.#followOthers(conversation, signal);
  }

  /** The page was away: the browser may have ended its connections, and another device may have sent messages. */
  #comeBack() {
    this.sender.retryLost();
    for (const turn of this.sender.turns.values()) if (turn.isRunning) this.sender.resume(turn);
    this.look();
  }

  /** Read the shown conversation again, if there is one. */
  look() {
    const { conversation } = this.place;
    const { signal } = this.opening;
    if (!conversation || !this.hasRead) return;
    this.#read(conversation, signal).catch((error) => {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status === 404) this.#showProblem(error);
      else this.#followOthers(conversation, signal);
    });
  }

  /**
   * Follow the turn that another tab or device runs, and read the history at its end.
   * @param {string} conversation
   * @param {AbortSignal} signal
   */
  async #followOthers(conversation, signal) {
    const turn = this.turns.list.find((each) => each.isRunning && !each.isLive && each.id);
    if (!turn || this.followed === turn) return;
    this.followed = turn;
    const hasEnded = await this.history.follow(turn, conversation, signal).catch(() => false);
    this.followed = null;
    setTimeout(() => { if (!signal.aborted) this.look(); }, hasEnded ? 0 : LOOK_MILLISECONDS);
  }

  /** @param {string} conversation */
  #addEntries(conversation) {
    for (const entry of this.outbox.all()) if (entry.conversation === conversation) this.#goOn(entry);
  }

  /** Forget the keys of turns that the history shows as done. */
  #settle() {
    for (const turn of this.turns.list) if (turn.key && turn.state === "done") this.sender.forget(turn);
  }

  /**
   * Show a message on its way, and go on with it.
   * @param {import("./outbox.js").Entry} entry
   */
  #goOn(entry) {
    this.turns.add(this.#goOnUnseen(entry));
  }

  /** @param {import("./outbox.js").Entry} entry */
  #goOnUnseen(entry) {
    const turn = this.sender.turnOf(entry);
    const waits = turn.failure ? isAutomatic(turn.failure) : turn.isRunning;
    if (!waits || this.sender.isBusy(turn)) return turn;
    if (Date.now() - entry.sentAt < FRESH_MILLISECONDS) this.sender.resume(turn);
    else turn.setState("interrupted");
    return turn;
  }

  /** Bring the log in line with the turns. */
  #show() {
    const { list } = this.turns;
    const before = list.length ? [] : [this.#welcome()];
    this.log.show(list, { hasOlder: this.older !== null, before });
    this.needs.onChange();
  }

  #welcome() {
    const left = this.outbox.all().filter((entry) => !entry.conversation && !this.sender.isBusy(this.sender.turnOf(entry)));
    return welcome(this.needs.domain.suggestions ?? [], (text) => this.send(text),
      waiting(left, (key) => this.needs.onGo({ conversation: null, message: key })));
  }

  async #showOlder() {
    const { conversation } = this.place;
    const { signal } = this.opening;
    if (!conversation || !this.older || this.isReadingOlder) return;
    this.isReadingOlder = true;
    const page = await this.history.page(conversation, signal, this.older).catch(() => null);
    this.isReadingOlder = false;
    if (signal.aborted) return;
    this.log.sayOlder(page ? "" : "They cannot be read now. Try again in a moment.");
    if (!page) return;
    this.older = page.older;
    this.turns.merge(conversation, page.turns, "older");
    this.log.keepPlace(() => this.#show());
  }

  /** @param {Problem} error */
  #showProblem(error) {
    const { place } = this;
    const isGone = error.status === 404;
    if (isGone) {
      this.#addEntries(place.conversation ?? "");
      this.turns.keepOnTheWay();
      this.older = null;
    }
    const notice = isGone
      ? gone(() => this.needs.onGo({ conversation: null, message: null }))
      : unread(error, () => this.open(place));
    this.log.show(this.turns.list, { hasOlder: false, before: [notice] });
  }

  /** @param {Turn} turn */
  #discard(turn) {
    this.sender.forget(turn);
    this.turns.remove(turn);
    this.#show();
    this.needs.focus();
    if (turn.id) this.look();
  }

  /**
   * @param {Place} place
   * @param {"pushState" | "replaceState"} how
   */
  #move(place, how) {
    this.place = place;
    this.needs.onMove(place, how);
  }

  /**
   * @param {Turn} turn
   * @param {import("./stream.js").Event} event
   */
  #heard(turn, { name, data }) {
    const announce = this.turns.list.includes(turn) ? this.needs.announce : () => {};
    if (name === "accepted") this.#accepted(turn);
    if (name === "lost" && turn.tries === 1) announce(data.title);
    if (name !== "tool_finished") return;
    this.needs.onCall(data);
    announce(describe(this.needs.domain, data));
  }

  /** @param {Turn} turn */
  #accepted(turn) {
    rememberConversation(turn);
    if (this.place.message === turn.key) {
      this.#move({ conversation: turn.conversation, message: null }, "replaceState");
      this.hasRead = true; // a new conversation has no turns but this one
    }
    if (this.turns.list.includes(turn) && this.turns.removeDoubles(turn)) this.#show();
  }

  /** @param {Turn} turn */
  #ended(turn) {
    if (this.turns.list.includes(turn)) this.needs.announce(turn.response ?? turn.failure?.problem.title ?? "");
    this.needs.onEnded(turn);
  }

  /** @param {Turn} turn */
  #endedElsewhere(turn) {
    this.sender.forget(turn);
    if (turn.id) return;
    this.turns.remove(turn); // the person has discarded the message
    this.#show();
  }

  /**
   * Take in a change of another tab: of a message that is shown here, or one for the conversation that is shown here.
   * @param {import("./outbox.js").Entry | null} now
   * @param {import("./outbox.js").Entry | null} before
   */
  #changedElsewhere(now, before) {
    const entry = now ?? before;
    if (!entry) return;
    const turn = this.sender.turns.get(entry.key);
    if (turn && !turn.isLive) turn.readEntry(entry);
    if (!now && turn && !turn.isLive) this.#endedElsewhere(turn);
    if (!now) this.needs.onEnded(turn ?? Turn.ofEntry(entry));
    if (entry.conversation && this.place.message === entry.key) this.open(this.place);
    else if (entry.conversation === this.place.conversation) this.look();
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

/**
 * Remember the conversation of a message, for "back" to the address that the message had before.
 * @param {Turn} turn
 */
function rememberConversation(turn) {
  try {
    sessionStorage.setItem(`taskchat:conversation:${turn.key}`, turn.conversation ?? "");
  } catch { /* "back" shows an empty page then */ }
}

/**
 * @param {string | null} key
 * @returns {string | null}
 */
function conversationOf(key) {
  try {
    return key && sessionStorage.getItem(`taskchat:conversation:${key}`);
  } catch {
    return null;
  }
}
