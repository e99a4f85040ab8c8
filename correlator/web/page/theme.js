/** Light or dark theme: the system's setting until the user chooses one. Loaded before the first paint. */

const KEY = "correlator.theme";

export function theme() {
  return (
    document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  );
}

/** Switches the theme and stores the choice if the browser allows it. */
export function toggleTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // A private window: the choice is lost with the page.
  }
  return next;
}

try {
  const kept = localStorage.getItem(KEY);
  if (kept === "light" || kept === "dark") {
    document.documentElement.dataset.theme = kept;
  }
} catch {
  // Storage is not allowed: the system's setting is used.
}
