/** What every view is written with: Preact's elements, through htm's templates. The one place that knows vendor/. */

import htm from "../vendor/htm.js";
import { Component, createRef, h, render } from "../vendor/preact.js";

export const html = htm.bind(h);
export { Component, createRef, render };
