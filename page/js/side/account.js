/** Let the person export and erase their data and sign out. A first version: empty. */

/**
 * @param {HTMLElement} _root
 * @param {{api: import("../api.js").Api, session: import("../api.js").Session, announce: (text: string) => void, onErased: () => void}} _needs
 */
export function mountAccount(_root, _needs) {}
