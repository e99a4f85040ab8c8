/** Preact's elements and htm's templates for all views. Only this file imports from vendor/. */

import htm from "../vendor/htm.js";
import { Component, createRef, h, render } from "../vendor/preact.js";

export const html = htm.bind(h);
export { Component, createRef, render };
