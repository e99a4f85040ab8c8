/** Light or dark: what the system says, until the reader chooses. Loaded before the first paint. */

const KEY = "correlator.theme";

export function theme() {
  return (
    document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  );
}

/** The other one, kept for the next visit where the browser allows it. */
export function toggleTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // A private window: the choice lasts as long as the page.
  }
  return next;
}

try {
  const kept = localStorage.getItem(KEY);
  if (kept === "light" || kept === "dark") {
    document.documentElement.dataset.theme = kept;
  }
} catch {
  // Storage is forbidden: the system's word holds.
}
