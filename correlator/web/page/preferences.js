/** What the user has chosen, stored if the browser allows it. */

const PREFIX = "correlator.";

/** The stored value; null if there is none. */
export function kept(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, value);
  } catch {
    // A private window: the choice is lost with the page.
  }
}
