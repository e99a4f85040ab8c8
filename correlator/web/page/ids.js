/** Buttons that copy: an ID, a link. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { named } from "./words.js";

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
