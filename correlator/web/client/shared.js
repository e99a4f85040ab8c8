/**
 * The connections that all parts of a page share: one for each server and token.
 *
 * A connection is closed LINGER ms after its last use has ended, so that a page which replaces its elements keeps it.
 */

import { Correlator } from "./correlator.js";
import { baseUrl } from "./environment.js";
import { State } from "./notifier.js";

/** @import { More, SharedOptions, Subscription, Update, Wanted } from "../client.js" */

const LINGER = 5000; // ms

/** @typedef {{base: string, token: SharedOptions["token"], correlator: Correlator, uses: number, timer: any}} Shared */

/** @type {Shared[]} one for each server and token in use, and so a few */
const connections = [];

/**
 * The shared `Correlator` of a server, until `release()`. One that was refused is not given again.
 * @param {SharedOptions} [options]
 */
export function acquire({ url, token } = {}) {
  const base = baseUrl(url).href;
  let shared = connections.find(
    (each) => each.base === base && each.token === token && each.correlator.connection.state !== State.REFUSED,
  );
  if (shared === undefined) {
    shared = { base, token, correlator: new Correlator({ url: base, token }), uses: 0, timer: undefined };
    connections.push(shared);
  }
  const { correlator } = shared;
  clearTimeout(shared.timer);
  shared.uses += 1;
  let released = false;
  const release = () => {
    if (released) return;
    released = true;
    shared.uses -= 1;
    if (shared.uses === 0) shared.timer = setTimeout(() => close(shared), LINGER);
  };
  return { correlator, release };
}

/** @param {Shared} shared */
function close(shared) {
  connections.splice(connections.indexOf(shared), 1);
  shared.correlator.close();
}

/**
 * `Correlator.subscribe` on the shared connection of a server.
 * @param {string | string[] | Wanted} what
 * @param {(update: Update) => void} onChange
 * @param {More & SharedOptions} [more]
 * @returns {Subscription}
 */
export function subscribe(what, onChange, { url, token, ...more } = {}) {
  const { correlator, release } = acquire({ url, token });
  const subscription = correlator.subscribe(what, onChange, more);
  return {
    close() {
      subscription.close();
      release();
    },
    get update() {
      return subscription.update;
    },
  };
}
