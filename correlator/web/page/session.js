/** The page's connection and its token, which is stored as long as the tab is open. */

import { Correlator } from "../client.js";
import { jobPath } from "../client/requests.js";
import { Clock } from "./clock.js";
import { Notices } from "./notices.js";
import { baseOf } from "./place.js";

const KEY = "correlator.token";

let made = 0;

export class Session {
  #token = kept();
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
  const token = kept();
  return new Correlator({ url: baseOf(instance), ...(token !== "" && { token: () => token }), ...options });
}

let unkept = "";

function kept() {
  try {
    return sessionStorage.getItem(KEY) ?? unkept;
  } catch {
    return unkept;
  }
}
