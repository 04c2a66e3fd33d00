/** Sign in. A first version: only the development token. */

/**
 * @param {import("../config.js").Config} _config
 * @param {HTMLElement} _root
 * @returns {Promise<import("../api.js").Session>}
 */
export async function startSession(_config, _root) {
  let identity = await fetchIdentity();
  return {
    userId: identity.user_id,
    name: "Developer",
    token: async () => identity.token,
    renew: async () => { identity = await fetchIdentity(); },
    signOut: null,
  };
}

/** @returns {Promise<{user_id: string, token: string}>} */
async function fetchIdentity() {
  const response = await fetch("./dev/token", { cache: "no-store" });
  if (!response.ok) throw new TypeError("no token");
  return response.json();
}
