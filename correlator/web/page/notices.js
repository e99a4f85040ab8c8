/**
 * Notifications of the browser for the ends of jobs that the user has asked for. They come while the page is open in
 * any tab, whichever view it shows, also while that is hidden. The browser is asked for its permission only after a click.
 */

import { Component, html } from "./html.js";
import { jobAddress } from "./route.js";
import { isolated, shownStatus, subject, text } from "./words.js";

const MOST = 100;
/** Jobs that one page watches; the one that was asked for first is given up. */

const MOST_SHOWN = 200;
/** Characters of a name or an error in a notification. */

/** True if the browser has notifications; over plain http only localhost has. */
export function canNotify() {
  return isSecureContext && typeof Notification === "function";
}

export class Notices {
  #connect;
  /** Appliance → its client, while a job of it is watched. */
  #clients = new Map();
  /** Appliance and ID → `{id, instance, subscription}`. */
  #watched = new Map();

  /** `connect(instance)` makes a client that goes on while the page is hidden: that is when a notification is of use. */
  constructor(connect) {
    this.#connect = connect;
  }

  has(id, instance) {
    return this.#watched.has(keyOf(id, instance));
  }

  /** Watches a job until it ends. `instance`: the appliance that its page names, or "". */
  add(id, instance) {
    this.remove(id, instance);
    if (this.#watched.size >= MOST) {
      const [oldest] = this.#watched.values();
      this.remove(oldest.id, oldest.instance);
    }
    const client = this.#clients.get(instance) ?? this.#connect(instance);
    this.#clients.set(instance, client);
    const subscription = client.subscribe(id, ({ job }) => {
      if (job?.terminal && this.has(id, instance)) {
        this.remove(id, instance);
        notify(job);
      }
    });
    this.#watched.set(keyOf(id, instance), { id, instance, subscription });
  }

  remove(id, instance) {
    const key = keyOf(id, instance);
    this.#watched.get(key)?.subscription.close();
    this.#watched.delete(key);
    if ([...this.#watched.values()].every((watched) => watched.instance !== instance)) {
      this.#clients.get(instance)?.close();
      this.#clients.delete(instance);
    }
  }

  /** Connects again, with another token. */
  reconnect() {
    const watched = [...this.#watched.values()];
    for (const { id, instance } of watched) {
      this.remove(id, instance);
    }
    for (const { id, instance } of watched) {
      this.add(id, instance);
    }
  }
}

function keyOf(id, instance) {
  return `${instance}\n${id}`;
}

function notify(job) {
  const { word } = shownStatus(job.status);
  const body = text(job.error).trim().split("\n")[0].slice(0, MOST_SHOWN);
  const notice = new Notification(`${isolated(subject(job).slice(0, MOST_SHOWN))}: ${word}`, { body, tag: job.job_id, icon: "favicon.svg" });
  notice.onclick = () => {
    window.focus();
    location.hash = jobAddress(job.job_id, job.instance);
    notice.close();
  };
}

/** A button that asks for a notification at the end of a job. */
export class NotifyButton extends Component {
  #click = async () => {
    const { id, session } = this.props;
    const { notices, instance } = session;
    if (notices.has(id, instance)) {
      notices.remove(id, instance);
    } else if ((await Notification.requestPermission()) === "granted") {
      notices.add(id, instance);
    }
    this.setState({});
  };

  render({ id, session: { notices, instance } }) {
    const isDenied = Notification.permission === "denied";
    const why = isDenied ? "The browser's settings forbid notifications of this page" : "Notify me when this job ends";
    return html`<button type="button" class="tool" aria-pressed=${String(notices.has(id, instance))} disabled=${isDenied}
      title=${why} onClick=${this.#click}>Notify me</button>`;
  }
}
