/** Hold the state of one turn: a message, the tool calls and texts of its answer, and its end. */

/**
 * @typedef {object} Failure the last error of a turn
 * @property {number} status
 * @property {Record<string, any>} problem
 * @property {number | null} retryAt time in ms from which it helps to try again, or null
 */

/**
 * @typedef {"sending" | "running" | "left" | "failed" | "interrupted" | "done"} State
 * `sending` until the server has accepted the message; `left` after Stop; `interrupted` is a turn without a reply that
 * nobody waits for.
 */

/** @typedef {{call: import("../config.js").Call} | {message: number | string, text: string}} Part */

export class Turn {
  /** @param {Partial<Turn>} fields */
  constructor(fields) {
    /** @type {string | null} the Idempotency-Key, if this browser has it */
    this.key = null;
    /** @type {string | null} */
    this.id = null;
    /** @type {string | null} */
    this.conversation = null;
    /** @type {string | null} id of the turn before this one, as far as the browser knew when it sent the message */
    this.after = null;
    this.message = "";
    /** @type {State} */
    this.state = "sending";
    /** @type {Part[]} the tool calls and texts, in their order */
    this.parts = [];
    /** @type {string | null} */
    this.response = null;
    /** @type {Failure | null} */
    this.failure = null;
    this.startedAt = Date.now();
    /** Tries since the connection was lost. */
    this.tries = 0;
    /** This tab sends the message and reads the turn's events. */
    this.isLive = false;
    /** @type {Set<() => void>} */
    this.listeners = new Set();
    Object.assign(this, fields);
  }

  /**
   * Return the turn of a message on its way.
   * @param {import("./outbox.js").Entry} entry
   */
  static ofEntry(entry) {
    const { message } = JSON.parse(entry.body);
    const turn = new Turn({ key: entry.key, message, after: entry.after, startedAt: entry.sentAt });
    turn.readEntry(entry);
    return turn;
  }

  /**
   * Return a turn of the history.
   * @param {string} conversation
   * @param {Record<string, any>} stored
   */
  static ofHistory(conversation, stored) {
    const turn = new Turn({ id: stored.turn_id, conversation, message: stored.message });
    turn.readHistory(stored);
    return turn;
  }

  get isRunning() {
    return this.state === "sending" || this.state === "running";
  }

  /** @returns {import("../config.js").Call[]} */
  get calls() {
    return this.parts.flatMap((part) => "call" in part ? [part.call] : []);
  }

  /** @param {import("./outbox.js").Entry} entry */
  readEntry({ conversation, turn, left, failure }) {
    this.conversation = conversation ?? this.conversation;
    this.id = turn ?? this.id;
    this.failure = failure;
    this.state = failure ? "failed" : left ? "left" : turn ? "running" : "sending";
    this.#putCalls(failure?.problem.tool_calls ?? []);
    this.changed();
  }

  /** @param {Record<string, any>} stored */
  readHistory(stored) {
    this.state = stored.status;
    this.response = stored.response;
    this.startedAt = Date.parse(stored.created_at);
    if (stored.status === "done") this.failure = null;
    this.parts = stored.tool_calls.map((/** @type {import("../config.js").Call} */ call) => ({ call }));
    this.changed();
  }

  /**
   * Take in an event of the stream. The list of events begins anew with each `accepted`.
   * @param {import("./stream.js").Event} event
   */
  apply({ name, data, retry }) {
    if (name === "accepted") this.#accept(data);
    else if (name === "tool_started" || name === "tool_finished") this.#putCall(data);
    else if (name === "text") this.#putText(data);
    else if (name === "finished") this.#finish(data);
    else if (name === "failed") this.fail(data.status, data, retry);
    this.changed();
  }

  /**
   * End with an error. The text that has come stays on the screen; a call without an outcome is not recorded.
   * @param {number} status
   * @param {Record<string, any>} problem
   * @param {number | null} seconds
   */
  fail(status, problem, seconds) {
    this.state = "failed";
    this.failure = { status, problem, retryAt: seconds === null ? null : Date.now() + seconds * 1000 };
    if (problem.tool_calls) {
      this.parts = this.parts.filter((part) => "text" in part || part.call.outcome);
      this.#putCalls(problem.tool_calls);
    }
    this.conversation = problem.conversation_id ?? this.conversation;
    this.id = problem.turn_id ?? this.id;
    this.changed();
  }

  /** @param {State} state */
  setState(state) {
    this.state = state;
    if (state !== "failed") this.failure = null;
    this.changed();
  }

  /** Tell all that follow the turn that something is new. */
  changed() {
    for (const listener of this.listeners) listener();
  }

  /** @param {{conversation_id: string, turn_id: string}} data */
  #accept(data) {
    this.state = "running";
    this.conversation = data.conversation_id;
    this.id = data.turn_id;
    this.parts = [];
  }

  /** @param {import("../config.js").Call[]} calls */
  #putCalls(calls) {
    for (const call of calls) this.#putCall(call);
  }

  /** @param {import("../config.js").Call} call */
  #putCall(call) {
    const place = this.parts.findIndex((part) => "call" in part && part.call.call_id === call.call_id);
    if (place < 0) this.parts.push({ call });
    else this.parts[place] = { call };
  }

  /** @param {{message: number | string, text: string}} data */
  #putText({ message, text }) {
    const known = this.parts.find((part) => "message" in part && part.message === message);
    if (known && "text" in known) known.text += text;
    else this.parts.push({ message, text });
  }

  /** @param {Record<string, any>} answer */
  #finish(answer) {
    this.state = "done";
    this.response = answer.response;
    this.conversation = answer.conversation_id;
    this.id = answer.turn_id;
    this.failure = null;
    this.parts = answer.tool_calls.map((/** @type {import("../config.js").Call} */ call) => ({ call }));
  }
}
