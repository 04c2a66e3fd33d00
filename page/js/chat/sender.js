/** Send messages, and go on with those that are on their way. One tab at a time sends a message. */

import { Problem, UNREACHABLE, unreachable } from "../api.js";
import { isAutomatic } from "./problems.js";
import { readEvents } from "./stream.js";
import { Turn } from "./turn.js";

const TRIES = 6; // after a lost connection, until the person is asked
const LONGEST_PAUSE = 15; // seconds

export class Sender {
  /**
   * @param {object} needs
   * @param {import("../api.js").Api} needs.api
   * @param {import("./outbox.js").Outbox} needs.outbox
   * @param {(turn: Turn, event: import("./stream.js").Event) => void} needs.onEvent
   * @param {(turn: Turn) => void} needs.onEnded
   * @param {() => void} needs.onChange this tab begins or ends to read a turn
   */
  constructor({ api, outbox, onEvent, onEnded, onChange }) {
    this.api = api;
    this.outbox = outbox;
    this.onEvent = onEvent;
    this.onEnded = onEnded;
    this.onChange = onChange;
    /** @type {Map<string, Turn>} this tab's turns of the messages on their way, by key */
    this.turns = new Map();
    /** @type {Map<string, AbortController>} of the requests that are sent, or wait for another tab's */
    this.controllers = new Map();
    /** @type {Map<string, number>} of automatic tries */
    this.timers = new Map();
    this.isLeaving = false;
    addEventListener("pagehide", () => { this.isLeaving = true; });
    addEventListener("pageshow", () => { this.isLeaving = false; });
    addEventListener("online", () => this.retryLost());
  }

  /**
   * Store a new message, then send it. Returns its turn at once.
   * @param {string} message
   * @param {string | null} conversation
   * @param {string | null} after
   */
  send(message, conversation, after) {
    const body = JSON.stringify({ message, conversation_id: conversation, timezone: timezone() });
    const key = newKey();
    const entry = { key, body, sentAt: Date.now(), conversation, turn: null, after, left: false, failure: null };
    this.outbox.put(entry);
    const turn = this.turnOf(entry);
    this.resume(turn);
    return turn;
  }

  /**
   * Return this tab's turn of the entry.
   * @param {import("./outbox.js").Entry} entry
   */
  turnOf(entry) {
    const turn = this.turns.get(entry.key) ?? Turn.ofEntry(entry);
    this.turns.set(entry.key, turn);
    return turn;
  }

  /**
   * The turn's request is sent, or will be without the person.
   * @param {Turn} turn
   */
  isBusy({ key }) {
    return key !== null && (this.controllers.has(key) || this.timers.has(key));
  }

  /**
   * Go on with a message on its way: now, or when its waiting time is over.
   * @param {Turn} turn
   */
  resume(turn) {
    if (this.isBusy(turn)) return;
    if (turn.failure) this.#planRetry(turn);
    else this.#send(turn);
  }

  /**
   * Send the request again, because the person wants it.
   * @param {Turn} turn
   */
  retry(turn) {
    turn.tries = 0;
    this.#again(turn);
  }

  /**
   * Leave a turn. It goes on at the server.
   * @param {Turn} turn
   */
  leave(turn) {
    this.outbox.update(turn.key ?? "", { left: true, failure: null });
    turn.setState("left");
    this.#drop(turn);
  }

  /**
   * Forget the key of a message that has its answer, or whose answer the person does not want.
   * @param {Turn} turn
   */
  forget(turn) {
    const { key } = turn;
    if (key === null) return;
    this.#drop(turn);
    this.turns.delete(key);
    this.outbox.remove(key);
    turn.key = null;
    turn.changed();
  }

  /** @param {Turn} turn */
  #drop({ key }) {
    clearTimeout(this.timers.get(key ?? ""));
    this.timers.delete(key ?? "");
    this.controllers.get(key ?? "")?.abort();
  }

  /** @param {Turn} turn */
  #again(turn) {
    this.#drop(turn);
    this.outbox.update(turn.key ?? "", { left: false, failure: null });
    turn.setState("sending");
    this.#send(turn);
  }

  /**
   * Send the request as soon as no other tab does, for the first time or again.
   * @param {Turn} turn
   */
  async #send(turn) {
    const key = /** @type {string} */ (turn.key);
    const controller = new AbortController();
    this.controllers.set(key, controller);
    try {
      await exclusively(key, controller.signal, () => this.#run(turn, controller.signal));
    } catch (error) {
      if (!controller.signal.aborted) throw error;
    } finally {
      if (this.controllers.get(key) === controller) this.controllers.delete(key);
    }
  }

  /**
   * @param {Turn} turn
   * @param {AbortSignal} signal
   */
  async #run(turn, signal) {
    const entry = this.outbox.get(/** @type {string} */ (turn.key));
    if (!entry) return this.forget(turn); // another tab has brought the turn to its end
    if (entry.left || entry.failure) return turn.readEntry(entry); // another tab waits for the person
    this.#setLive(turn, true);
    try {
      await this.#read(turn, entry, signal);
    } catch (error) {
      if (!signal.aborted && !this.isLeaving) this.#fail(turn, error instanceof Problem ? error : unreachable());
    } finally {
      this.#setLive(turn, false);
    }
  }

  /**
   * @param {Turn} turn
   * @param {boolean} isLive
   */
  #setLive(turn, isLive) {
    turn.isLive = isLive;
    turn.changed();
    this.onChange();
  }

  /**
   * Read the turn's events to the last one. Raises Problem.
   * @param {Turn} turn
   * @param {import("./outbox.js").Entry} entry
   * @param {AbortSignal} signal
   */
  async #read(turn, { key, body }, signal) {
    const headers = { Accept: "text/event-stream", "Idempotency-Key": key };
    const response = await this.api.open("POST", `${this.api.person}/chat`, { body, headers, signal });
    for await (const event of readEvents(response)) {
      if (signal.aborted) return;
      turn.apply(event);
      if (event.name === "accepted") this.#accept(turn);
      this.onEvent(turn, event);
      if (event.name === "finished") return this.#finish(turn);
      if (event.name === "failed") return this.#keepFailure(turn);
    }
    throw unreachable();
  }

  /** @param {Turn} turn */
  #accept(turn) {
    turn.tries = 0;
    this.outbox.update(turn.key ?? "", { conversation: turn.conversation, turn: turn.id });
  }

  /** @param {Turn} turn */
  #finish(turn) {
    this.outbox.remove(turn.key ?? "");
    this.turns.delete(turn.key ?? "");
    turn.key = null;
    this.onEnded(turn);
  }

  /**
   * @param {Turn} turn
   * @param {Problem} error
   */
  #fail(turn, { status, problem, retryAfter }) {
    if (status !== UNREACHABLE) {
      turn.fail(status, problem, retryAfter);
      return this.#keepFailure(turn);
    }
    turn.tries += 1;
    turn.fail(status, problem, turn.tries <= TRIES ? pause(turn.tries) : null);
    this.onEvent(turn, { name: "lost", data: problem, retry: null });
    this.#planRetry(turn);
  }

  /**
   * Keep the error that the server gave, for a reload. A lost connection is none: a reload goes on by itself.
   * @param {Turn} turn
   */
  #keepFailure(turn) {
    this.outbox.update(turn.key ?? "", { conversation: turn.conversation, turn: turn.id, failure: turn.failure });
    this.#planRetry(turn);
    this.onEnded(turn);
  }

  /** @param {Turn} turn */
  #planRetry(turn) {
    const { failure, key } = turn;
    if (!key || !failure || failure.retryAt === null || !isAutomatic(failure)) return;
    this.timers.set(key, setTimeout(() => this.#again(turn), failure.retryAt - Date.now()));
  }

  /** Send what waits for the connection. */
  retryLost() {
    for (const turn of this.turns.values()) if (turn.failure?.status === UNREACHABLE) this.retry(turn);
  }
}

/**
 * Do the work while no other tab does work for the same key. Raises AbortError while it waits.
 * @param {string} key
 * @param {AbortSignal} signal
 * @param {() => Promise<void>} work
 */
async function exclusively(key, signal, work) {
  if (!navigator.locks) return work(); // a page over plain HTTP; the server does a message once all the same
  return navigator.locks.request(`taskchat:message:${key}`, { signal }, work);
}

/**
 * Return a random UUID, also where the page comes over plain HTTP.
 * @returns {string}
 */
function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0")).join("");
}

/**
 * Return the seconds before the next try after a lost connection.
 * @param {number} tries
 */
function pause(tries) {
  return Math.min(2 ** (tries - 1), LONGEST_PAUSE);
}

/** Return the browser's time zone, or null if it has none. */
function timezone() {
  const { timeZone } = Intl.DateTimeFormat().resolvedOptions();
  return !timeZone || timeZone === "Etc/Unknown" ? null : timeZone;
}
