/** One attempt to connect: from its start until the connection has ended. */

/** @typedef {import("./environment.js").Environment["clock"]} Clock */
/** @import { Message } from "./replica.js" */
/** @import { Link } from "./transports.js" */

const WELCOME_WITHIN = 15_000; // ms
const STALE_AFTER = 25_000; // ms; the daemon sends a bookmark every 10 s
export const DEAD_AFTER = 40_000;

const Phase = Object.freeze({
  /** The token is awaited, or the daemon's welcome. */ CONNECTING: "connecting",
  WELCOMED: "welcomed",
  ENDED: "ended",
});

/**
 * What an attempt reports.
 * @typedef {object} Observer
 * @property {() => boolean} expectsMessages  false without a view: then no stream is silent
 * @property {(attempt: Attempt) => void} stale  no message arrived for STALE_AFTER ms
 * @property {(attempt: Attempt, silence: number) => void} dead  none arrived for `silence` ms
 */

export class Attempt {
  /** @type {typeof Phase[keyof typeof Phase]} */ #phase = Phase.CONNECTING;
  /** @type {Link | null} */ link = null;
  /** @type {string | undefined} */ token;
  /** @type {number | null} ms since 1970 */ welcomedAt = null;
  /** @type {Message | null} */ bye = null;
  #lastMessageAt;
  /** @type {unknown} */ #timer;
  #clock;
  #observer;

  /** @param {string} transport @param {Clock} clock @param {Observer} observer */
  constructor(transport, clock, observer) {
    this.transport = transport;
    this.#clock = clock;
    this.#observer = observer;
    this.#lastMessageAt = clock.now();
    this.#checkSilence();
  }

  get isWelcomed() {
    return this.#phase === Phase.WELCOMED;
  }

  get hasEnded() {
    return this.#phase === Phase.ENDED;
  }

  /** The link, if it accepts subscriptions: a websocket sends them all once it has received the welcome. */
  get readyLink() {
    return this.transport === "websocket" && !this.isWelcomed ? null : this.link;
  }

  received() {
    this.#lastMessageAt = this.#clock.now();
  }

  /** @returns {boolean} true for the first welcome; each event stream has one */
  welcome() {
    const isFirst = this.welcomedAt === null;
    this.welcomedAt ??= this.#clock.now();
    this.#phase = Phase.WELCOMED;
    return isFirst;
  }

  end() {
    this.#phase = Phase.ENDED;
    this.#clock.clearTimeout(this.#timer);
    this.link?.close();
  }

  #checkSilence() {
    if (!this.#observer.expectsMessages()) this.received();
    const silence = this.#clock.now() - this.#lastMessageAt;
    const [warn, most] = this.isWelcomed ? [STALE_AFTER, DEAD_AFTER] : [Infinity, WELCOME_WITHIN];
    if (silence >= most) {
      this.#observer.dead(this, silence);
      return;
    }
    if (silence > warn) this.#observer.stale(this);
    const due = (silence > warn ? most : Math.min(warn + 1, most)) - silence;
    this.#timer = this.#clock.setTimeout(() => this.#checkSilence(), due);
  }
}
