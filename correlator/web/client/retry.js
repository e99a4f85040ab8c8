/** When to connect again, by the close code of docs/protocol.md. No clock, no I/O. */

const BACKOFF = 500; // ms
const MAX_BACKOFF = 20_000;
const RESTART_WITHIN = [0, 5000]; // ms; used if the daemon restarts without sending its own range in a bye

/** The codes that the client treats specially: of the daemon (`CloseCode` in its frames.py), and of a browser. */
export const CloseCode = Object.freeze({
  NONE: 0,
  NO_STATUS: 1005,
  ABNORMAL: 1006,
  TOO_LARGE: 1009,
  RESTART: 1012,
  TRY_LATER: 1013,
  BAD_PROTOCOL: 4400,
  UNAUTHORISED: 4401,
  FORBIDDEN: 4403,
});

/** @type {number[]} a quick retry would fail in the same way */
const CLIENT_ERRORS = [CloseCode.TOO_LARGE, CloseCode.BAD_PROTOCOL];

/** The token or the origin is not accepted. @param {number} code */
export function isRefusal(code) {
  return code === CloseCode.UNAUTHORISED || code === CloseCode.FORBIDDEN;
}

/** No close frame was received. @param {number} code */
export function isLost(code) {
  return code === CloseCode.NONE || code === CloseCode.NO_STATUS || code === CloseCode.ABNORMAL;
}

/** The daemon sent this code, so no proxy blocks the connection. @param {number} code */
export function isFromDaemon(code) {
  return code === CloseCode.TOO_LARGE || code === CloseCode.RESTART || code === CloseCode.TRY_LATER || code >= 4000;
}

/** Exponential backoff with full jitter, so that a thousand clients do not reconnect together. */
export class Backoff {
  #failures = 0;

  #clock;

  /** @param {{random(): number}} clock */
  constructor(clock) {
    this.#clock = clock;
  }

  reset() {
    this.#failures = 0;
  }

  /**
   * Milliseconds until the next attempt.
   * @param {number} code
   * @param {unknown} within  `retry_ms` of a bye, if there was one
   */
  delay(code, within) {
    if (code === CloseCode.RESTART) {
      const isRange = Array.isArray(within) && within.length === 2 && within.every(Number.isFinite);
      const [least, most] = isRange ? within : RESTART_WITHIN;
      return least + this.#clock.random() * (most - least);
    }
    const most = CLIENT_ERRORS.includes(code) ? MAX_BACKOFF : Math.min(MAX_BACKOFF, BACKOFF * 2 ** this.#failures++);
    return this.#clock.random() * most;
  }
}
