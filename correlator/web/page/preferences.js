/**
 * What the user has chosen, stored if the browser allows it: the theme, the failures that are seen, and by `keep` and
 * `kept` any other. Loaded before the first paint, so that the page appears in its theme.
 */

const PREFIX = "correlator.";

/** The stored value; null if there is none. */
export function kept(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** A private window may not allow it, and the storage may be full: then the choice is lost with the page. */
export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, value);
  } catch {
    // As if it had not been made.
  }
}

/** "light" or "dark": the system's setting until the user chooses one. */
export function theme() {
  return (
    document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  );
}

/** Switches the theme and stores the choice. */
export function toggleTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  keep("theme", next);
  return next;
}

const chosen = kept("theme");
if (chosen === "light" || chosen === "dark") {
  document.documentElement.dataset.theme = chosen;
}

const SEEN = "seen";
const MOST_SEEN = 20_000;
/** IDs that are stored: the ones marked last. They are as many as the daemon has jobs, and 800 kB. */

/** The failed jobs that the user has marked as seen. They no longer come first in the list. */
export class Seen {
  /** A new set after each change. */
  ids = new Set(storedSeen());
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
    this.#set([...this.ids, ...ids].slice(-MOST_SEEN));
  }

  remove(ids) {
    const gone = new Set(ids);
    this.#set([...this.ids].filter((id) => !gone.has(id)));
  }

  #set(ids) {
    this.ids = new Set(ids);
    keep(SEEN, JSON.stringify(ids));
    this.#onChange();
  }

  #stored = (event) => {
    if (event.key === PREFIX + SEEN || event.key === null) {
      this.ids = new Set(storedSeen());
      this.#onChange();
    }
  };
}

function storedSeen() {
  try {
    const ids = JSON.parse(kept(SEEN) ?? "[]");
    return Array.isArray(ids) ? ids.filter((id) => typeof id === "string").slice(-MOST_SEEN) : [];
  } catch {
    return [];
  }
}
