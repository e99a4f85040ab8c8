/** The keys of the page, in a dialog that `?` opens. */

import { Component, createRef, html } from "./html.js";

const KEYS = [
  ["Everywhere", [
    ["?", "these keys"],
    ["/", "search the jobs"],
    ["Esc", "leave a field; from a job to the list"],
    ["u", "times in UTC, or in your time zone"],
  ]],
  ["The list", [["j k", "mark the next or the previous job; Enter opens it"]]],
  ["A job", [["l", "go to its log"]]],
  ["In its log", [
    ["j k", "mark the next or the previous line; the address is its link"],
    ["Home End", "begin and end of the whole log"],
  ]],
]; // prettier-ignore

export class Help extends Component {
  #dialog = createRef();

  componentDidMount() {
    this.#dialog.current.showModal();
  }

  render({ onClose }) {
    return html`<dialog class="help" ref=${this.#dialog} aria-labelledby="help-title" onClose=${onClose}>
      <h2 id="help-title">Keys</h2>
      ${KEYS.map(
        ([where, keys]) => html`<h3>${where}</h3>
        <dl class="facts">${keys.map(
          ([key, what]) => html`<div key=${key}>
            <dt>${key.split(" ").map((one) => html`<kbd>${one}</kbd> `)}</dt><dd>${what}</dd></div>`,
        )}</dl>`,
      )}
      <form method="dialog"><button class="tool">Close</button></form>
    </dialog>`;
  }
}
