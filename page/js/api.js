/** Call the chat API as the person who is signed in. */

/**
 * @typedef {object} Session
 * @property {string} userId
 * @property {string} name
 * @property {() => Promise<string>} token
 * @property {() => Promise<void>} renew
 * @property {(() => Promise<void>) | null} signOut
 */

/** @typedef {{method?: string, body?: string | object, headers?: Record<string, string>, signal?: AbortSignal}} Options */

/** The status of a problem that the browser found: no server answered. */
export const UNREACHABLE = 0;

/** An answer that is an error. `problem` is the RFC 9457 object, and `retryAfter` is in seconds, or null. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {Record<string, any>} problem
   * @param {number | null} retryAfter
   */
  constructor(status, problem, retryAfter = null) {
    super(`${status} ${problem.title ?? ""}`);
    this.status = status;
    this.problem = problem;
    this.retryAfter = retryAfter;
  }
}

export class Api {
  /**
   * @param {import("./config.js").Config} config
   * @param {Session} session
   */
  constructor(config, session) {
    this.base = config.api;
    this.session = session;
  }

  /** The path of everything that belongs to the person. */
  get person() {
    return `/api/${encodeURIComponent(this.session.userId)}`;
  }

  /**
   * Return the JSON of an answer, or null if it has none. Raises Problem.
   * @param {string} method
   * @param {string} path
   * @param {Options} [options]
   * @returns {Promise<any>}
   */
  async json(method, path, options = {}) {
    const response = await this.open(method, path, options);
    if (response.status === 204) return null;
    return read(() => response.json());
  }

  /**
   * Return the answer of a status below 400. Raises Problem. A refused token is renewed once.
   * @param {string} method
   * @param {string} path
   * @param {Options} [options]
   * @returns {Promise<Response>}
   */
  async open(method, path, options = {}) {
    let response = await this.#send(method, path, options);
    if (response.status === 401) {
      await read(() => this.session.renew());
      response = await this.#send(method, path, options);
    }
    if (!response.ok) throw await problemOf(response);
    return response;
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {Options} options
   */
  async #send(method, path, { body, headers = {}, signal }) {
    const token = await read(() => this.session.token());
    /** @type {Record<string, string>} */
    const sent = { Authorization: `Bearer ${token}`, ...headers };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
    /** @type {RequestInit} */
    const request = { method, headers: sent, body: text, signal, cache: "no-store", credentials: "omit" };
    return read(() => fetch(this.base + path, request));
  }
}

/**
 * Do what needs the network. Raises Problem with the status UNREACHABLE where the browser raises an error of its own.
 * @template T
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function read(work) {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Problem || (error instanceof DOMException && error.name === "AbortError")) throw error;
    throw unreachable();
  }
}

/** Return the problem of a connection that failed or broke off. */
export function unreachable() {
  return new Problem(UNREACHABLE, { type: "urn:taskchat:problem:unreachable", title: "The server does not answer." });
}

/**
 * Return the problem of an answer. A proxy's answer may be no problem+json.
 * @param {Response} response
 */
async function problemOf(response) {
  const text = await response.text().catch(() => "");
  let problem = {};
  try {
    problem = JSON.parse(text);
  } catch { /* a page of a proxy */ }
  const known = typeof problem === "object" && problem !== null ? problem : {};
  return new Problem(response.status, { title: "The request failed.", ...known }, seconds(response));
}

/**
 * @param {Response} response
 * @returns {number | null}
 */
function seconds(response) {
  const value = response.headers.get("Retry-After");
  return value && /^\d+$/.test(value) ? Number(value) : null;
}
