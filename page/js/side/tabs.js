/** Tell the other tabs of this browser that something has changed on the server. No message holds a person's text. */

const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("taskchat") : null;

/** @param {string} change */
export function tell(change) {
  channel?.postMessage(change);
}

/** @param {(change: string) => void} listener */
export function onTold(listener) {
  channel?.addEventListener("message", ({ data }) => listener(data));
}

/**
 * Call `listener` when the person comes back to the page.
 * @param {() => void} listener
 */
export function onReturn(listener) {
  addEventListener("focus", listener);
  addEventListener("online", listener);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) listener();
  });
}

/**
 * Return a function that runs `work`, one run at a time. A call during a run has one more run follow.
 * @param {() => Promise<void>} work
 */
export function oneAtATime(work) {
  /** @type {Promise<void> | null} */
  let running = null;
  let again = false;
  const run = async () => {
    do {
      again = false;
      await work();
    } while (again);
  };
  return () => {
    again = running !== null;
    running ??= run().finally(() => {
      running = null;
    });
    return running;
  };
}
