/** Read the page's settings. `make dev` and `make page` write them. */

/**
 * @typedef {object} Config
 * @property {string} title name of the product
 * @property {string} api address of the chat API without a last slash; empty when the page's own server has it
 * @property {string | null} auth address of Better Auth, or null
 * @property {boolean} development take the development token
 * @property {string | null} panel address of the domain's module, or null
 */

/**
 * Return the settings. Raises an error when config.json cannot be read.
 * @returns {Promise<Config>}
 */
export async function readConfig() {
  const response = await fetch("./config.json", { cache: "no-store" });
  if (!response.ok) throw new Error(`config.json: ${response.status}`);
  return response.json();
}

/**
 * @typedef {object} Call a tool call; without an outcome while it runs
 * @property {string} call_id
 * @property {string} tool
 * @property {Record<string, any>} arguments
 * @property {"ok" | "error"} [outcome]
 * @property {Record<string, any>} [result]
 * @property {number} [duration_ms]
 */

/**
 * @typedef {object} Domain the module that the domain's folder brings
 * @property {string} [title]
 * @property {string[]} [suggestions]
 * @property {(call: Call) => string} [describe]
 * @property {(call: Call) => boolean} [concerns]
 * @property {(root: HTMLElement, tools: object) => Promise<void>} [render]
 */

/**
 * Return the domain's module, or an empty one if there is none or it cannot be loaded: the chat does without it.
 * @param {Config} config
 * @returns {Promise<Domain>}
 */
export async function loadDomain(config) {
  if (!config.panel) return {};
  try {
    return await import(new URL(config.panel, document.baseURI).href);
  } catch (error) {
    console.warn("The panel's module cannot be loaded.", error);
    return {};
  }
}
