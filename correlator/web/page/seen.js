/** The failed jobs that the user has marked as seen, in this browser. They no longer come first in the list. */

const KEY = "correlator.seen";
const MOST = 20_000;
/** IDs that are stored: the ones marked last. They are as many as the daemon has jobs, and 800 kB. */

export class Seen {
  /** A new set after each change. */
  ids = new Set(kept());
  #onChange = () => {};

  /** Calls `onChange` after a change, also one in another tab. */
  watch(onChange) {
    this.#onChange = onChange;
    addEventListener("storage", this.#stored);
  }

  unwatch() {
    removeEventListener("storage", this.#stored);
  }

  add(ids) {
    this.#set([...this.ids, ...ids].slice(-MOST));
  }

  remove(ids) {
    const gone = new Set(ids);
    this.#set([...this.ids].filter((id) => !gone.has(id)));
  }

  #set(ids) {
    this.ids = new Set(ids);
    try {
      localStorage.setItem(KEY, JSON.stringify(ids));
    } catch {
      // Storage is not allowed or full: the marks are lost with the page.
    }
    this.#onChange();
  }

  #stored = (event) => {
    if (event.key === KEY || event.key === null) {
      this.ids = new Set(kept());
      this.#onChange();
    }
  };
}

function kept() {
  try {
    const ids = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(ids) ? ids.filter((id) => typeof id === "string").slice(-MOST) : [];
  } catch {
    return [];
  }
}
