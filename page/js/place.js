/** Read and write the page's address: `#<conversation>`, or `#message-<key>` while a message has no conversation. */

const MESSAGE = "#message-";
const ID = /^[\w-]+$/;

/**
 * @param {string} hash
 * @returns {import("./chat/chat.js").Place}
 */
export function placeOf(hash) {
  const key = hash.startsWith(MESSAGE) ? hash.slice(MESSAGE.length) : null;
  const id = key === null ? hash.slice(1) : null;
  return { conversation: id && ID.test(id) ? id : null, message: key && ID.test(key) ? key : null };
}

/**
 * Write the place, and return false if the address had it already.
 * @param {import("./chat/chat.js").Place} place
 * @param {"pushState" | "replaceState"} how
 */
export function writePlace(place, how) {
  const url = new URL(location.href);
  url.hash = place.conversation ?? (place.message ? MESSAGE + place.message : "");
  const address = url.hash ? url.href : url.href.replace(/#$/, "");
  if (address === location.href) return false;
  history[how](null, "", address);
  return true;
}
