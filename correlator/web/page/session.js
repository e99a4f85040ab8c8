/** The one connection of the page, and who it says it is: where a token is asked for, it lives as long as the tab. */

import { Correlator } from "../client.js";
import { Clock } from "./clock.js";

const KEY = "correlator.token";

export class Session {
  #token = kept();
  #list = null;

  clock = new Clock();
  /** Where the list was when it was left: its address, its place, and the job that was opened. */
  left = { address: "#/", scrolled: 0, cursor: null };

  constructor() {
    this.client = new Correlator(this.#token === "" ? {} : { token: () => this.#token });
  }

  /** The request headers that REST wants. */
  get headers() {
    return this.#token === "" ? {} : { Authorization: `Bearer ${this.#token}` };
  }

  /** Every job, from the first time on that somebody wants it: so the list is there at once when returned to. */
  list(onUpdate) {
    if (this.#list === null) {
      const list = { reader: null, subscription: null };
      list.subscription = this.client.subscribe({}, (update) => list.reader?.(update));
      this.#list = list;
    }
    this.#list.reader = onUpdate;
    return this.#list.subscription.update;
  }

  /** Nobody looks at the list for now. */
  unlist() {
    if (this.#list !== null) {
      this.#list.reader = null;
    }
  }

  close() {
    this.client.close();
  }

  /** A session that says this token. */
  static with(token) {
    try {
      sessionStorage.setItem(KEY, token);
    } catch {
      // Storage is forbidden: it is asked for again after a reload.
      unkept = token;
    }
    return new Session();
  }
}

let unkept = "";

function kept() {
  try {
    return sessionStorage.getItem(KEY) ?? unkept;
  } catch {
    return unkept;
  }
}
