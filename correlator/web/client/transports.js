/** The transports, and the choice between them. */

import { eventStream } from "./event_stream.js";
import { polling } from "./polling.js";
import { websocket } from "./websocket.js";

/** @import { Environment } from "./environment.js" */
/** @import { Message } from "./replica.js" */
/** @import { View } from "./view.js" */

/**
 * `Link`: an open connection of one transport. `TransportContext`: what a transport needs to open one.
 * @typedef {object} Link
 * @property {(view: View, resume: boolean) => void} subscribe
 * @property {(view: View) => void} unsubscribe
 * @property {(jobId: string, subs: number[]) => void} get  requests the whole document, which arrives as a `put`
 * @property {() => boolean} [isReconnecting]  a stream was lost, and no message has arrived on it since then
 * @property {() => void} close
 *
 * @typedef {object} TransportContext
 * @property {Environment} environment
 * @property {string | undefined} token
 * @property {() => import("./replica.js").Position | null} position
 * @property {import("./requests.js").SendRequest} request
 * @property {(message: Message, view?: View) => void} receive  with the view whose stream the message arrived on
 * @property {() => unknown} streamLost  an event stream was lost, and the browser reconnects it
 * @property {(code: number, reason: string) => void} end
 */

const MAX_BLOCKED_ATTEMPTS = 2;
const MAX_STREAMS = 4; // a browser opens six HTTP/1.1 connections to a host, and requests need some of them

/** In the order of preference. @type {{[transport: string]: (context: TransportContext) => Link}} */
export const TRANSPORTS = { websocket, sse: eventStream, poll: polling };

/**
 * The transport to use. If REST requests succeed while a transport gets no welcome, a proxy may block it: after two
 * such attempts the next transport is used. If they fail too, the daemon is away, and the preferred one is tried again.
 */
export class TransportChoice {
  #blocked = 0; // attempts in a row that were not welcomed, although REST requests succeed

  /** @param {string[]} wanted @param {Environment} environment */
  constructor(wanted, { WebSocket, EventSource, fetch }) {
    /** @type {{[transport: string]: unknown}} */
    const needs = { websocket: WebSocket, sse: EventSource && fetch, poll: fetch };
    this.available = wanted.filter((transport) => needs[transport] !== undefined);
    if (this.available.length === 0) {
      throw new TypeError("no transport: pass options.WebSocket, EventSource or fetch");
    }
    this.current = this.preferred;
  }

  get preferred() {
    return this.available[0];
  }

  /**
   * `transport`, or polling instead of more event streams than a browser opens.
   * @param {string} transport
   * @param {number} views
   */
  fitting(transport, views) {
    return transport === "sse" && views > MAX_STREAMS && this.available.includes("poll") ? "poll" : transport;
  }

  /** @param {string} transport */
  use(transport) {
    this.current = transport;
  }

  welcomed() {
    this.#blocked = 0;
  }

  /** An attempt was not welcomed. @param {boolean} isReachable  whether a REST request succeeded at the same moment */
  failed(isReachable) {
    this.#blocked = isReachable ? this.#blocked + 1 : 0;
    if (!isReachable) this.current = this.preferred;
    if (this.#blocked < MAX_BLOCKED_ATTEMPTS) return;
    this.#blocked = 0;
    this.current = this.available[(this.available.indexOf(this.current) + 1) % this.available.length];
  }
}
