/** Preact's elements and htm's templates for all views, and what all of them draw: icons, bars, IDs that can be copied. */

/*! Includes Preact 11.2.0 (MIT) and htm 3.1.1 (Apache-2.0). */

import htm from "../vendor/htm.js";
import { Component, createRef, h, options, render } from "../vendor/preact.js";
import { named } from "./words.js";

export const html = htm.bind(h);

/** The texts with dots between them. None reorders the others, also if it is written from right to left. */
export function dotted(texts) {
  return texts.flatMap((each, place) => [...(place === 0 ? [] : [" · "]), html`<bdi>${each}</bdi>`]);
}

/** The text with each occurrence of the `wanted` texts marked, in any case. */
export function marked(whole, ...wanted) {
  const lower = whole.toLowerCase();
  const sought = wanted.filter((each) => each !== "").map((each) => each.toLowerCase());
  const parts = [];
  let from = 0;
  const next = () =>
    sought
      .map((each) => ({ at: lower.indexOf(each, from), length: each.length }))
      .filter(({ at }) => at !== -1)
      .sort((a, b) => a.at - b.at || b.length - a.length)[0];
  for (let hit = next(); hit !== undefined; hit = next()) {
    const end = hit.at + hit.length;
    parts.push(whole.slice(from, hit.at), html`<mark>${whole.slice(hit.at, end)}</mark>`);
    from = end;
  }
  return parts.length === 0 ? whole : [...parts, whole.slice(from)];
}

/** Draws what `change` changes before it returns. Otherwise that is done soon, which for a printer is too late. */
export function atOnce(change) {
  options.debounceRendering = (draw) => draw();
  try {
    change();
  } finally {
    options.debounceRendering = undefined;
  }
}

export { Component, createRef, render };

// -- Icons of 16 by 16 whose shapes differ without colour. They are decoration: there is always a word beside them.

const PATHS = new Map([
  ["check", "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm3.6 5.3-4.2 4.9a.8.8 0 0 1-1.2 0L4.3 9.1l1.2-1 1.3 1.5 3.6-4.3 1.2 1Z"],
  [
    "cross",
    "M5 1h6l4 4v6l-4 4H5l-4-4V5l4-4Zm.9 3.8L4.8 5.9 6.9 8l-2.1 2.1 1.1 1.1L8 9.1l2.1 2.1 1.1-1.1L9.1 8l2.1-2.1-1.1-1.1L8 6.9 5.9 4.8Z",
  ],
  ["play", "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6a5.4 5.4 0 1 1 0 10.8A5.4 5.4 0 0 1 8 2.6ZM6.5 5v6l4.7-3-4.7-3Z"],
  ["ring", "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6a5.4 5.4 0 1 1 0 10.8A5.4 5.4 0 0 1 8 2.6Z"],
  [
    "bar",
    "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6a5.4 5.4 0 0 1 4.2 8.8L4.6 3.8A5.4 5.4 0 0 1 8 2.6Zm-4.2 2 7.6 7.6A5.4 5.4 0 0 1 3.8 4.6Z",
  ],
  ["skip", "M2 3.5 7.5 8 2 12.5v-9Zm5.5 0L13 8l-5.5 4.5v-9ZM13 3.5h1.6v9H13v-9Z"],
  ["alert", "M8 1.2 15.3 14H.7L8 1.2ZM7.2 6v4h1.6V6H7.2Zm0 5v1.5h1.6V11H7.2Z"],
  ["pause", "M3.5 2.5h3v11h-3v-11Zm6 0h3v11h-3v-11Z"],
  ["dot", "M8 3.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9Z"],
  [
    "copy",
    "M5.5 1H13a1 1 0 0 1 1 1v8.5h-1.5v-8h-7V1ZM3 4h7a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1Zm.5 1.5v8h6v-8h-6Z",
  ],
  [
    "sun",
    "M8 4.8a3.2 3.2 0 1 1 0 6.4 3.2 3.2 0 0 1 0-6.4ZM7.3.8h1.4v2.4H7.3V.8Zm0 12h1.4v2.4H7.3v-2.4ZM.8 7.3h2.4v1.4H.8V7.3Zm12 0h2.4v1.4h-2.4V7.3ZM2.4 3.4l1-1L5.1 4l-1 1-1.7-1.6Zm8.5 8.6 1-1 1.7 1.6-1 1-1.7-1.6Zm2.7-8.6L12 5l-1-1 1.7-1.6.9 1ZM5 12l-1.6 1.6-1-1L4.1 11l.9 1Z",
  ],
  ["moon", "M6.2 1.3a6.2 6.2 0 0 0 8.5 8.3A7 7 0 1 1 6.2 1.3Z"],
  [
    "clock",
    "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6a5.4 5.4 0 1 1 0 10.8A5.4 5.4 0 0 1 8 2.6ZM7.2 4.4h1.6v3.2l2.4 1.7-.9 1.3-3.1-2.2V4.4Z",
  ],
  ["ahead", "M8 2.2 13.8 8 8 13.8 2.2 8 8 2.2Zm0 2.2L4.4 8 8 11.6 11.6 8 8 4.4Z"],
  ["back", "M9.8 2.6 4.4 8l5.4 5.4 1.2-1.2L6.8 8 11 3.8 9.8 2.6Z"],
]);

export function icon(shape, tone = "plain") {
  return html`<svg class="icon tone-${tone}" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
    <path fill-rule="evenodd" d=${PATHS.get(shape) ?? PATHS.get("ring")} />
  </svg>`;
}

/** The same icon as a data URL for the tab. Its colours are fixed and visible on light and dark tab bars. */
export function iconAddress(shape, colour) {
  const path = PATHS.get(shape) ?? PATHS.get("ring");
  const drawn = `<path fill-rule="evenodd" fill="${colour}" d="${path}"/>`;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">${drawn}</svg>`;
  return `data:image/svg+xml,${encodeURIComponent(svg)}`;
}

/** `shape`: classes of the bar that is done. It is moved rather than resized, which needs no layout. */
export function bar(percent, shape, fine) {
  const left = Math.round((percent ?? 0) / fine) * fine - 100;
  return html`<span class="bar-done ${shape}" style=${{ transform: `translateX(${left.toFixed(1)}%)` }}></span>`;
}

// -- Buttons that copy: an ID, a link.

const SHOWN = 1500;

/** An ID and its button. */
export function Id({ value }) {
  return html`<span class="id"><code>${named(value)}</code>
    <${CopyButton} value=${value} label="Copy ${named(value)}" className="quiet-button copy" /></span>`;
}

/** A button that copies `value`. Without `children` it is an icon, and `label` its name. */
export class CopyButton extends Component {
  #timer = 0;

  componentWillUnmount() {
    clearTimeout(this.#timer);
  }

  #copy = async () => {
    const { value } = this.props;
    if (await copied(typeof value === "function" ? value() : value)) {
      this.setState({ copied: true });
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.setState({ copied: false }), SHOWN);
    }
  };

  render({ label, className, children }, state) {
    const named = children === undefined ? { "aria-label": label, title: "Copy" } : { title: label };
    const content = children ?? icon("copy");
    const done = html`${icon("check", "good")}<span class="copied">Copied</span>`;
    return html`<button type="button" class=${className} ...${named} onClick=${this.#copy}>
      ${state.copied ? done : content}</button>`;
  }
}

/** Over plain http browsers have no clipboard API: use `execCommand` on a text field outside the window. */
async function copied(value) {
  try {
    await navigator.clipboard.writeText(value);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = value;
    field.className = "unseen";
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
