/** Why a job failed: one sentence, and below it the whole error, which is folded if it says more than the sentence. */

import { Component, html, icon } from "./html.js";
import { saysAll, sentence } from "./sentence.js";
import { cutNote, text } from "./words.js";

/** `known`: what is drawn below the sentence of a job that has failed. */
export function JobFailure({ job, known }) {
  const said = sentence(job);
  const error = text(job.error);
  if (said === null) {
    return error === "" ? null : html`<div class="failure"><h2>${icon("cross", "bad")} ${job.status === "failed" ? "Why it failed" : "Error"}</h2>
      <${LongText} of=${error} note=${cutNote(job.error_cut)} /></div>`;
  }
  const [where, what] = said;
  return html`<div class="failure"><h2>${icon("cross", "bad")} Why it failed</h2>
    <p class="failure-sentence">${where !== "" && html`<b>${where}</b>${" "}`}${what}</p>
    ${known}
    ${error !== "" && !saysAll(job) && html`<details class="failure-error"><summary>The whole error</summary><pre>${error}</pre></details>`}
    ${job.error_cut && html`<p class="soft">${cutNote(job.error_cut)}</p>`}</div>`;
}

const LINES = 6;

/** A text of several lines, of which the first are shown; the others unfold. `note`: stands behind it. */
export class LongText extends Component {
  render({ of: whole, note = "", className = "" }, { isOpen = false }) {
    const lines = whole.trimEnd().split("\n");
    const more = lines.length - LINES;
    const isFolded = more > 1 && !isOpen;
    return html`<pre class=${className}>${isFolded ? lines.slice(0, LINES).join("\n") : whole}${note !== "" && ` (${note})`}</pre>
      ${more > 1 && html`<button type="button" class="quiet-button unfold" aria-expanded=${String(isOpen)}
        onClick=${() => this.setState({ isOpen: !isOpen })}>${isOpen ? "Fewer lines" : `${more} more lines`}</button>`}`;
  }
}
