/** Send messages, and go on with those that are on their way. One tab at a time sends a message. */

import { Problem, unreachable } from "../api.js";
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
   * @param {(turn: Turn) => void} needs.onAccepted
   * @param {(turn: Turn) => void} needs.onEnded
   */
  constructor({ api, outbox, onAccepted, onEnded }) {
    this.api = api;
    this.outbox = outbox;
    this.onAccepted = onAccepted;
    this.onEnded = onEnded;
    /** @type {Map<string, Turn>} turns of this tab's messages on their way, by key */
    this.turns = new Map();
    /** @type {Map<string, AbortController>} */
    this.controllers = new Map();
    /** @type {Map<string, number>} timers of automatic tries */
    this.timers = new Map();
    this.isLeaving = false;
    addEventListener("pagehide", () => { this.isLeaving = true; });
    addEventListener("pageshow", () => { this.isLeaving = false; });
    addEventListener("online", () => this.#tryNow());
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
   * Send the turn's request: for the first time, or again with the same key. Another tab that sends it goes first.
   * @param {Turn} turn
   */
  async resume(turn) {
    const key = /** @type {string} */ (turn.key);
    if (this.controllers.has(key)) return;
    const controller = new AbortController();
    this.controllers.set(key, controller);
    clearTimeout(this.timers.get(key));
    this.timers.delete(key);
    if (turn.state !== "running") turn.setState("sending");
    try {
      await exclusively(key, controller.signal, () => this.#run(turn, controller.signal));
    } catch (error) {
      if (!controller.signal.aborted) throw error;
    } finally {
      this.controllers.delete(key);
      turn.isLive = false;
      turn.changed();
    }
  }

  /**
   * Leave a turn. It goes on at the server.
   * @param {Turn} turn
   */
  leave(turn) {
    const key = turn.key ?? "";
    clearTimeout(this.timers.get(key));
    turn.setState("left");
    this.outbox.update(key, { left: true, failure: null });
    this.controllers.get(key)?.abort();
  }

  /**
   * Forget a message that has no answer.
   * @param {Turn} turn
   */
  discard(turn) {
    const key = turn.key ?? "";
    clearTimeout(this.timers.get(key));
    this.controllers.get(key)?.abort();
    this.turns.delete(key);
    this.outbox.remove(key);
  }

  /**
   * @param {Turn} turn
   * @param {AbortSignal} signal
   */
  async #run(turn, signal) {
    const entry = this.outbox.get(/** @type {string} */ (turn.key));
    if (!entry) return this.onEnded(turn); // another tab has brought it to its end, or discarded it
    this.outbox.update(entry.key, { left: false, failure: null });
    turn.isLive = true;
    turn.changed();
    try {
      await this.#read(turn, entry, signal);
    } catch (error) {
      if (signal.aborted || this.isLeaving) return;
      this.#fail(turn, error instanceof Problem ? error : unreachable());
    }
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
      if (event.name === "finished") return this.#finish(turn);
      if (event.name === "failed") return this.#keep(turn);
    }
    throw unreachable();
  }

  /** @param {Turn} turn */
  #accept(turn) {
    this.outbox.update(turn.key ?? "", { conversation: turn.conversation, turn: turn.id });
    turn.tries = 0;
    this.onAccepted(turn);
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
    const isLost = status === 0;
    if (isLost) turn.tries += 1;
    turn.fail(status, problem, isLost && turn.tries <= TRIES ? pause(turn.tries) : retryAfter);
    if (isLost) this.#planRetry(turn);
    else this.#keep(turn);
  }

  /**
   * Keep the error that the server gave, for a reload.
   * @param {Turn} turn
   */
  #keep(turn) {
    this.outbox.update(turn.key ?? "", { conversation: turn.conversation, turn: turn.id, failure: turn.failure });
    this.#planRetry(turn);
    this.onEnded(turn);
  }

  /** @param {Turn} turn */
  #planRetry(turn) {
    const { failure } = turn;
    if (!failure?.retryAt || !isAutomatic(failure)) return;
    this.timers.set(turn.key ?? "", setTimeout(() => this.resume(turn), failure.retryAt - Date.now()));
  }

  /** Send what waits for the connection. */
  #tryNow() {
    for (const turn of this.turns.values()) if (turn.failure?.status === 0) this.resume(turn);
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
