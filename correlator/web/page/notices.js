/**
 * Notifications of the browser for the ends of jobs that the user has asked for. They come while the page is open in
 * any tab, whichever view it shows. The browser is asked for its permission only after a click.
 */

import { Component, html } from "./html.js";
import { jobAddress } from "./route.js";
import { shownStatus, subject, text } from "./words.js";

const MOST = 100;
/** Jobs that one page watches; the one that was asked for first is given up. */

/** True if the browser has notifications; over plain http only localhost has. */
export function canNotify() {
  return isSecureContext && typeof Notification === "function";
}

export class Notices {
  #client;
  #watched = new Map();

  constructor(client) {
    this.#client = client;
  }

  /** The IDs of the jobs that are watched. */
  get ids() {
    return [...this.#watched.keys()];
  }

  has(id) {
    return this.#watched.has(id);
  }

  /** Watches a job until it ends. */
  add(id) {
    this.remove(id);
    if (this.#watched.size >= MOST) {
      this.remove(this.#watched.keys().next().value);
    }
    const subscription = this.#client.subscribe(id, ({ job }) => {
      if (job?.terminal && this.has(id)) {
        this.remove(id);
        notify(job);
      }
    });
    this.#watched.set(id, subscription);
  }

  remove(id) {
    this.#watched.get(id)?.close();
    this.#watched.delete(id);
  }
}

function notify(job) {
  const { word } = shownStatus(job.status);
  const body = text(job.error).trim().split("\n")[0].slice(0, 200);
  const notice = new Notification(`${subject(job)}: ${word}`, { body, tag: job.job_id, icon: "favicon.svg" });
  notice.onclick = () => {
    window.focus();
    location.hash = jobAddress(job.job_id, job.instance);
    notice.close();
  };
}

/** A button that asks for a notification at the end of a job. */
export class NotifyButton extends Component {
  #click = async () => {
    const { id, notices } = this.props;
    if (notices.has(id)) {
      notices.remove(id);
    } else if ((await Notification.requestPermission()) === "granted") {
      notices.add(id);
    }
    this.setState({});
  };

  render({ id, notices }) {
    const isDenied = Notification.permission === "denied";
    const why = isDenied ? "The browser's settings forbid notifications of this page" : "Notify me when this job ends";
    return html`<button type="button" class="tool" aria-pressed=${String(notices.has(id))} disabled=${isDenied}
      title=${why} onClick=${this.#click}>Notify me</button>`;
  }
}
