/** The page's connection and its token, which is stored as long as the tab is open; its requests and notifications. */

import { Correlator } from "../client.js";
import { jobPath } from "../client/requests.js";
import { Component, html } from "./html.js";
import { baseOf, jobAddress } from "./route.js";
import { errorLine } from "./sentence.js";
import { Clock } from "./times.js";
import { isolated, shownStatus, subject } from "./words.js";

const KEY = "correlator.token";

let made = 0;

export class Session {
  #token = storedToken();
  #list = null;

  /** Differs from that of every other session: a view is made anew for another session, as all it has is of the first. */
  number = ++made;
  clock = new Clock();

  /**
   * `instance`: the appliance whose API it uses, at a gateway; "" is what this page is served from. `notices`: those of
   * the page; no session ends them. `left`: the state of the list when it was left: its address, its scroll position, and
   * the selected job.
   */
  constructor(
    instance = "",
    notices = new Notices((of) => connected(of, { pauseWhenHidden: false })),
    left = { address: "#/", scrolled: 0, cursor: null },
  ) {
    this.instance = instance;
    this.notices = notices;
    this.left = left;
    this.base = baseOf(instance);
    this.client = connected(instance);
  }

  /** The URL of a path of the REST API, as "jobs". */
  api(path) {
    return new URL(`api/v1/${path}`, this.base);
  }

  /** The URL of a job, or of what lies below it, as "/events". */
  job(id, tail = "") {
    return new URL(jobPath(id, tail), this.base);
  }

  /** The request headers for the REST API. */
  get headers() {
    return this.#token === "" ? {} : { Authorization: `Bearer ${this.#token}` };
  }

  /** Subscribes to all jobs on the first call and keeps the subscription, so that the list appears at once later. */
  list(onUpdate) {
    if (this.#list === null) {
      const list = { onUpdate: null, subscription: null };
      list.subscription = this.client.subscribe({}, (update) => list.onUpdate?.(update));
      this.#list = list;
    }
    this.#list.onUpdate = onUpdate;
    return this.#list.subscription.update;
  }

  /** Detaches a callback, unless another view has replaced it meanwhile; the subscription stays. */
  unlist(onUpdate) {
    if (this.#list?.onUpdate === onUpdate) {
      this.#list.onUpdate = null;
    }
  }

  close() {
    this.client.close();
  }

  /** A session with this token, for what this one was for. This one is closed. */
  with(token) {
    try {
      sessionStorage.setItem(KEY, token);
    } catch {
      // Storage is not allowed: the page asks for the token again after a reload.
      unkept = token;
    }
    this.close();
    return new Session(this.instance, this.notices, this.left);
  }
}

/** A client of an appliance with the token of this tab. */
function connected(instance, options = {}) {
  const token = storedToken();
  return new Correlator({ url: baseOf(instance), ...(token !== "" && { token: () => token }), ...options });
}

let unkept = "";

function storedToken() {
  try {
    return sessionStorage.getItem(KEY) ?? unkept;
  } catch {
    return unkept;
  }
}

// -- Requests of the page to the REST API: JSON with the token, and links that need one.

/**
 * GET a JSON body.
 *
 * @throws Error with a text for the user, if the daemon answers with another status.
 */
export async function fetchJson(session, address, signal) {
  const response = await fetch(address, { headers: session.headers, signal });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail ?? `the daemon answered with HTTP status ${response.status}`);
  }
  return response.json();
}

/** The attributes of a link to the REST API. A link sends no token: if one is needed, a ticket is fetched for a click. */
export function withTicket(session, address) {
  if (Object.keys(session.headers).length === 0) {
    return { href: address.href };
  }
  return {
    href: address.href,
    onClick: async (event) => {
      event.preventDefault();
      const response = await fetch(session.api("ticket"), { method: "POST", headers: session.headers });
      if (response.ok) {
        address.searchParams.set("ticket", (await response.json()).ticket);
        location.assign(address);
      }
    },
  };
}

// -- Notifications of the browser for the ends of jobs that the user has asked for. They come while the page is open in
// any tab, whichever view it shows, also while that is hidden. The browser is asked for its permission only after a click.

const MOST_WATCHED = 100;
/** Jobs that one page watches; the one that was asked for first is given up. */

const MOST_SHOWN = 200;
/** Characters of a name or an error in a notification. */

/** True if the browser has notifications; over plain http only localhost has. */
export function canNotify() {
  return isSecureContext && typeof Notification === "function";
}

class Notices {
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
    if (this.#watched.size >= MOST_WATCHED) {
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
  const body = errorLine(job).slice(0, MOST_SHOWN);
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
