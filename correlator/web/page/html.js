/** Preact's elements and htm's templates for all views. Only this file imports from vendor/. */

import htm from "../vendor/htm.js";
import { Component, createRef, h, options, render } from "../vendor/preact.js";

export const html = htm.bind(h);
/** The texts with dots between them. None reorders the others, also if it is written from right to left. */
export function dotted(texts) {
  return texts.flatMap((each, place) => [...(place === 0 ? [] : [" · "]), html`<bdi>${each}</bdi>`]);
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
