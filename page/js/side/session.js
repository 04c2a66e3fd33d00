/**
 * Give the page its person: with the token of `make dev`, or signed in at Better Auth.
 *
 * Nothing of a session is kept where a script could find it: Better Auth's session is a cookie that scripts cannot
 * read, and the token of the API is in memory.
 */

import { Outbox } from "../chat/outbox.js";
import { element } from "../dom.js";
import { field, onSubmit } from "./dialogs.js";
import { onTold, tell } from "./tabs.js";

const EARLY_MS = 60_000; // renew a token so long before its end
const SHORTEST_PASSWORD = 8; // Better Auth's default

/** @typedef {import("../config.js").Config} Config */
/** @typedef {import("../api.js").Session} Session */
/** @typedef {{userId: string, token: string}} Token */
/** @typedef {ReturnType<typeof betterAuth>} BetterAuth */

/**
 * Return the session once there is one. `root` shows the sign-in form, and what keeps the page from starting.
 * @param {Config} config
 * @param {HTMLElement} root
 * @returns {Promise<Session>}
 */
export async function startSession(config, root) {
  if (config.development) return developmentSession(root);
  if (config.auth) return betterAuthSession(config, config.auth, root);
  show(root, "This page has no sign-in.", "Its config.json names no `auth`.");
  return new Promise(() => {});
}

// --- the token of `make dev` ----------------------------------------------------------------------------------

/** @param {HTMLElement} root */
async function developmentSession(root) {
  const fetchToken = async () => {
    const answer = await fetch("/dev/token", { cache: "no-store" });
    if (!answer.ok) throw new Error(`There is no token: ${answer.status}`);
    const { user_id: userId, token } = await answer.json();
    return { userId, token };
  };
  return session(await firstToken(fetchToken, root), { fetchToken, name: "Developer", signOut: null });
}

/**
 * @param {() => Promise<Token>} fetchToken
 * @param {HTMLElement} root
 */
async function firstToken(fetchToken, root) {
  for (;;) {
    try {
      return await fetchToken();
    } catch {
      await untilClicked(root, "The server does not answer.", "Is it still running?");
    }
  }
}

// --- Better Auth ----------------------------------------------------------------------------------------------

/**
 * @param {Config} config
 * @param {string} url
 * @param {HTMLElement} root
 */
async function betterAuthSession(config, url, root) {
  const auth = betterAuth(url);
  const signedIn = async () => {
    for (;;) {
      try {
        return await auth.token();
      } catch (error) {
        if (error instanceof AuthProblem && error.status === 401) await signInForm(config, auth, root);
        else await untilClicked(root, "You cannot be signed in.", sentence(error));
      }
    }
  };
  const first = await signedIn();
  const name = await auth.name().catch(() => "");
  const fetchToken = async () => {
    const next = await signedIn();
    if (next.userId !== first.userId) await leave(first.userId); // another person: nothing of the first one may stay
    return next;
  };
  onTold((change) => {
    if (change === "signed out") leave(first.userId); // this tab's own storage has the person's text, too
  });
  const signOut = async () => {
    await auth.post("sign-out", {});
    tell("signed out");
    await leave(first.userId);
  };
  return session(first, { fetchToken, name, signOut });
}

class AuthProblem extends Error {
  /**
   * @param {number} status
   * @param {{code?: string, message?: string}} body
   * @param {number | null} retryAfter
   */
  constructor(status, { code = "", message }, retryAfter) {
    super(message ?? `Status ${status}`);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/**
 * Return the few calls of Better Auth's HTTP API that a page needs. The cookie of its session goes only to it.
 * @param {string} url
 */
function betterAuth(url) {
  /**
   * @param {string} path
   * @param {RequestInit} [options]
   */
  const call = async (path, options = {}) => {
    const answer = await fetch(`${url}/${path}`, { credentials: "include", cache: "no-store", ...options });
    const body = await answer.json().catch(() => ({}));
    const wait = Number(answer.headers.get("X-Retry-After") ?? answer.headers.get("Retry-After")) || null;
    if (!answer.ok) throw new AuthProblem(answer.status, body ?? {}, wait);
    return body;
  };
  return {
    /** @returns {Promise<Token>} */
    async token() {
      const { token } = await call("token");
      return { userId: claims(token).sub, token };
    },
    /** @returns {Promise<string>} */
    async name() {
      const found = await call("get-session");
      return found?.user?.name || found?.user?.email || "";
    },
    /**
     * @param {string} path
     * @param {object} body
     */
    post(path, body) {
      return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    },
  };
}

const SENTENCES = new Map([
  ["INVALID_EMAIL_OR_PASSWORD", "The email address or the password is wrong."],
  ["INVALID_EMAIL", "This is not an email address."],
  ["USER_ALREADY_EXISTS", "This email address has an account already. Sign in."],
  ["USER_ALREADY_EXISTS_USE_ANOTHER_EMAIL", "This email address has an account already. Sign in."],
  ["PASSWORD_TOO_SHORT", `The password needs ${SHORTEST_PASSWORD} characters or more.`],
  ["PASSWORD_TOO_LONG", "The password is too long."],
  ["EMAIL_NOT_VERIFIED", "Open the link in the email that we sent to you, then sign in."],
  ["INVALID_ORIGIN", "The sign-in server does not know this page. Its operator must add the page to trustedOrigins."],
]);

/** @param {unknown} error */
function sentence(error) {
  if (error instanceof TypeError) return "The sign-in server does not answer. Check your connection, then try again.";
  if (!(error instanceof AuthProblem)) return String(error);
  if (error.status === 429) return `Too many attempts. Try again in ${error.retryAfter ?? 10} seconds.`;
  if (error.status >= 500) return "The sign-in server has a problem. Try again in a minute.";
  return SENTENCES.get(error.code) ?? error.message;
}

/**
 * Show the form until the person has signed in or up.
 * @param {Config} config
 * @param {BetterAuth} auth
 * @param {HTMLElement} root
 * @returns {Promise<void>}
 */
function signInForm({ title }, auth, root) {
  const [emailLabel, email] = field("Email address", { type: "email", autocomplete: "username", required: "" });
  const [passwordLabel, password] = field("Password", { type: "password", required: "" });
  const heading = element("h2", {});
  const problem = element("p", { class: "problem", role: "alert", hidden: "" });
  const submit = element("button", { type: "submit", class: "primary" });
  const other = element("button", { type: "button", class: "plain" });
  const parts = [emailLabel, email, passwordLabel, password, problem, submit, other];
  const form = element("form", { class: "sign-in" }, heading, ...parts);
  let signsUp = false;

  /** @param {boolean} up */
  function choose(up) {
    signsUp = up;
    heading.textContent = up ? `Sign up for ${title}` : `Sign in to ${title}`;
    submit.textContent = up ? "Sign up" : "Sign in";
    other.textContent = up ? "I have an account" : "I have no account yet";
    password.setAttribute("autocomplete", up ? "new-password" : "current-password");
    password.minLength = up ? SHORTEST_PASSWORD : 0;
    problem.hidden = true;
  }

  async function send() {
    const given = { email: email.value.trim(), password: password.value };
    if (signsUp) await auth.post("sign-up/email", { ...given, name: given.email.split("@")[0] });
    else await auth.post("sign-in/email", given);
  }

  choose(false);
  other.addEventListener("click", () => choose(!signsUp));
  root.replaceChildren(element("div", { role: "main" }, form));
  root.hidden = false;
  email.focus();
  return new Promise((resolve) => {
    onSubmit(form, { submit, problem, sentence }, async () => {
      await send();
      clear(root);
      resolve();
    });
  });
}

// --- both -----------------------------------------------------------------------------------------------------

/**
 * @param {Token} first
 * @param {{fetchToken: () => Promise<Token>, name: string, signOut: (() => Promise<void>) | null}} how
 * @returns {Session}
 */
function session(first, { fetchToken, name, signOut }) {
  let held = { ...first, until: end(first.token) };
  /** @type {Promise<void> | null} */
  let fetching = null;
  const renew = () => {
    fetching ??= fetchToken()
      .then((next) => {
        held = { ...next, until: end(next.token) };
      })
      .finally(() => {
        fetching = null;
      });
    return fetching;
  };
  const token = async () => {
    if (Date.now() >= held.until - EARLY_MS) await renew();
    return held.token;
  };
  return { userId: first.userId, name, token, renew, signOut };
}

/**
 * Return the claims of a token. They are read, not checked: the API checks them.
 * @param {string} token
 * @returns {{sub: string, iat: number, exp: number}}
 */
function claims(token) {
  const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (byte) => byte.charCodeAt(0))));
}

/**
 * Return when the token ends by this machine's clock, which may be wrong: the token is new now.
 * @param {string} token
 */
function end(token) {
  const { iat, exp } = claims(token);
  return Date.now() + (exp - iat) * 1000;
}

/**
 * Forget everything that the browser keeps of the person, and start again.
 * @param {string} userId
 */
export async function leave(userId) {
  new Outbox(userId).clear();
  try {
    sessionStorage.clear(); // it belongs to this tab
  } catch { /* a browser that keeps nothing */ }
  history.replaceState(null, "", location.pathname);
  location.reload();
  await new Promise(() => {}); // until the browser leaves
}

/**
 * @param {HTMLElement} root
 * @param {string} heading
 * @param {string} text
 * @param {...Node} more
 */
function show(root, heading, text, ...more) {
  const notice = element("div", { class: "sign-in", role: "alert" }, element("h2", {}, heading), element("p", {}, text), ...more);
  root.replaceChildren(element("div", { role: "main" }, notice));
  root.hidden = false;
}

/**
 * @param {HTMLElement} root
 * @param {string} heading
 * @param {string} text
 * @returns {Promise<void>}
 */
function untilClicked(root, heading, text) {
  const button = element("button", { type: "button", class: "primary" }, "Try again");
  show(root, heading, text, button);
  button.focus();
  return new Promise((resolve) => {
    button.addEventListener("click", () => {
      clear(root);
      resolve();
    });
  });
}

/** @param {HTMLElement} root */
function clear(root) {
  root.replaceChildren();
  root.hidden = true;
}
