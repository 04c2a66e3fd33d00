/**
 * Keep each message on its way in the browser's storage, from before it is sent until its answer is there.
 *
 * Each message has an item of its own, so that tabs never overwrite each other's. The key is the request's
 * Idempotency-Key: the same body with the same key happens once, however often and from whichever tab it is sent.
 */

/**
 * @typedef {object} Entry
 * @property {string} key
 * @property {string} body the request's body, to be sent again as it is
 * @property {number} sentAt time in ms at which the person sent it
 * @property {string | null} conversation null until the server has made one
 * @property {string | null} turn null until the server has accepted the message
 * @property {string | null} after the last turn that was known before this message
 * @property {boolean} left the person pressed Stop
 * @property {import("./turn.js").Failure | null} failure the answer that the server gave, if it was an error
 */

const PREFIX = "taskchat:message:";

export class Outbox {
  /** @param {string} userId */
  constructor(userId) {
    this.prefix = `${PREFIX}${userId}:`;
    /** @type {Map<string, Entry>} where the browser allows no storage, or has no room */
    this.memory = new Map();
  }

  /** @param {Entry} entry */
  put(entry) {
    try {
      localStorage.setItem(this.prefix + entry.key, JSON.stringify(entry));
      this.memory.delete(entry.key);
    } catch {
      this.memory.set(entry.key, entry);
    }
  }

  /**
   * Change the fields of an entry. An entry that another tab has removed stays removed.
   * @param {string} key
   * @param {Partial<Entry>} fields
   */
  update(key, fields) {
    const entry = this.get(key);
    if (entry) this.put({ ...entry, ...fields });
  }

  /**
   * @param {string} key
   * @returns {Entry | null}
   */
  get(key) {
    return this.memory.get(key) ?? this.#read(this.prefix + key);
  }

  /** @param {string} key */
  remove(key) {
    this.memory.delete(key);
    try {
      localStorage.removeItem(this.prefix + key);
    } catch { /* nothing is stored then */ }
  }

  /**
   * Return all entries of the person, the oldest first.
   * @returns {Entry[]}
   */
  all() {
    const stored = this.#names().map((name) => this.#read(name));
    const found = [...stored, ...this.memory.values()].filter((entry) => entry !== null);
    return found.sort((one, other) => one.sentAt - other.sentAt);
  }

  /** Remove all that is kept of the person, and nothing of another person who uses this browser. */
  clear() {
    this.memory.clear();
    for (const name of this.#names()) localStorage.removeItem(name);
  }

  /**
   * Call `listener` when another tab adds, changes or removes an entry: with the entry as it is, or null, and as it was.
   * @param {(now: Entry | null, before: Entry | null) => void} listener
   */
  onChange(listener) {
    addEventListener("storage", ({ key, newValue, oldValue }) => {
      if (key?.startsWith(this.prefix)) listener(parse(newValue), parse(oldValue));
    });
  }

  #names() {
    try {
      return Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
    } catch {
      return [];
    }
  }

  /**
   * @param {string} name
   * @returns {Entry | null}
   */
  #read(name) {
    try {
      return parse(localStorage.getItem(name));
    } catch {
      return null;
    }
  }
}

/**
 * Return the entry of an item, or null if the item is none: another program of the page's origin may have changed it.
 * @param {string | null} text
 * @returns {Entry | null}
 */
function parse(text) {
  try {
    const entry = JSON.parse(text ?? "null");
    const isEntry = typeof entry.key === "string" && typeof JSON.parse(entry.body).message === "string";
    return isEntry && Number.isFinite(entry.sentAt) ? entry : null;
  } catch {
    return null;
  }
}
