/** What a client uses of its environment: the base URL, the clock and the browser's functions. */

/** @import { Options } from "../client.js" */

/**
 * @typedef {object} Environment
 * @property {URL} base  ends with a slash
 * @property {NonNullable<Options["clock"]>} clock
 * @property {any} WebSocket
 * @property {any} EventSource
 * @property {typeof fetch} fetch
 */

const HERE = import.meta.url;

/** @param {Options} options @returns {Environment} */
export function environmentOf(options) {
  return {
    base: baseUrl(options.url),
    clock: options.clock ?? {
      now: () => Date.now(),
      setTimeout: (callback, ms) => setTimeout(callback, ms),
      clearTimeout: (timer) => clearTimeout(/** @type {any} */ (timer)),
      random: () => Math.random(),
    },
    WebSocket: options.WebSocket ?? globalThis.WebSocket,
    EventSource: options.EventSource ?? globalThis.EventSource,
    fetch: options.fetch ?? globalThis.fetch?.bind(globalThis),
  };
}

/** The base URL of a server; ends with a slash. @param {string | URL} [given] @returns {URL} */
export function baseUrl(given) {
  const page = globalThis.location?.href;
  // By default the folder of client.js, which is one above. In a bundle import.meta.url may be no http address; then
  // the page's origin is used.
  const [path, from] = given !== undefined ? [given, page] : HERE.startsWith("http") ? ["..", HERE] : ["/", page];
  const base = new URL(path, from);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  base.search = base.hash = "";
  return base;
}
