/** An ID with a button that copies it. */

import { Component, createRef, html } from "./html.js";
import { icon } from "./icons.js";

const SHOWN = 1500;

export class Id extends Component {
  #code = createRef();
  #timer = 0;

  componentWillUnmount() {
    clearTimeout(this.#timer);
  }

  #copy = async () => {
    if (await copied(this.props.value, this.#code.current)) {
      this.setState({ copied: true });
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.setState({ copied: false }), SHOWN);
    }
  };

  render({ value }, state) {
    return html`<span class="id"><code ref=${this.#code}>${value}</code>
      <button type="button" class="quiet-button copy" aria-label="Copy ${value}" title="Copy" onClick=${this.#copy}>
        ${state.copied ? html`${icon("check", "good")}<span class="copied">Copied</span>` : icon("copy")}
      </button></span>`;
  }
}

/** Over plain http browsers have no clipboard API: use `execCommand`; if that fails too, the text is selected. */
async function copied(value, element) {
  try {
    await navigator.clipboard.writeText(value);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}
