/** The elements inside `correlator-progress`, and how they show an appearance. */

import { STYLE } from "./style.js";

/** @import { Appearance } from "./appearance.js" */

const SHARES = 1000; // steps of the bar: one that hardly moves is not drawn again

export class Parts {
  #track = element("div", "track", { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" });
  #bar = element("div", "bar");
  #percent = element("span", "percent", { "aria-hidden": "true" });
  #status = element("span", "status", { role: "status" });
  #step = element("span", "step");
  #forecast = element("span", "forecast");
  #notice = element("span", "notice");
  #failure = element("p", "failure", {}, "error");
  #details = element("details", "failure", {}, "error");
  #summary = element("summary", "error-line");
  #rest = element("pre", "error-details");

  /** @param {ShadowRoot} root */
  constructor(root) {
    const line = element("div", "line");
    this.#track.append(this.#bar);
    line.append(this.#track, this.#percent, this.#status, this.#step, this.#forecast, this.#notice);
    this.#details.append(this.#summary, this.#rest);
    root.append(line, this.#failure, this.#details);
    adopt(root);
  }

  /** @param {Appearance} shown @param {{label: string | null, isOld: boolean}} about */
  show(shown, { label, isOld }) {
    const { kind, percent } = shown;
    const whole = percent === null ? null : Math.floor(percent);
    attribute(this.#track, "aria-label", label || shown.name || "Progress");
    attribute(this.#track, "aria-valuenow", whole === null ? null : String(whole));
    attribute(this.#track, "aria-valuetext", shown.value);
    attribute(this.#bar, "class", `bar ${kind}${isOld ? " old" : ""}`);
    attribute(this.#bar, "part", `bar ${kind}`);
    const place = `translateX(${Math.round(((percent ?? 0) * SHARES) / 100) / (SHARES / 100) - 100}%)`;
    if (this.#bar.style.transform !== place) this.#bar.style.transform = place;
    attribute(this.#status, "part", `status ${kind}`);
    text(this.#percent, whole === null ? "" : `${whole} %`);
    text(this.#status, shown.status);
    text(this.#step, shown.step);
    text(this.#forecast, shown.forecast);
    text(this.#notice, shown.notice);
    text(this.#failure, shown.details === "" ? shown.error : "");
    text(this.#summary, shown.error);
    text(this.#rest, shown.details);
    this.#details.hidden = shown.details === "";
  }
}

/** @param {string} tag @param {string} name @param {{[name: string]: string}} [attributes] @param {string} [part] */
function element(tag, name, attributes = {}, part = name) {
  const made = document.createElement(tag);
  made.className = name;
  made.setAttribute("part", part);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Changes nothing that is the same: a live region announces what is set. @param {HTMLElement} where @param {string} words */
function text(where, words) {
  if (where.textContent !== words) where.textContent = words;
  where.hidden = words === "";
}

/** @param {HTMLElement} where @param {string} name @param {string | null} value */
function attribute(where, name, value) {
  if (value === null) where.removeAttribute(name);
  else if (where.getAttribute(name) !== value) where.setAttribute(name, value);
}

/** @type {CSSStyleSheet | undefined} one for all elements; the content security policy of a page allows it */
let sheet;

/** @param {ShadowRoot} root */
function adopt(root) {
  if (sheet === undefined) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  root.adoptedStyleSheets = [sheet];
}
