/** Requests to the REST API, what a client uses of its environment for them, and the codes by which they are refused. */

/** @import { Job, Options, Wanted } from "../client.js" */

/** @typedef {(path: string, init?: RequestInit) => Promise<Response>} SendRequest  rejects with a `Refusal` */

/** The codes that the client treats specially: of the daemon (`CloseCode` in its messages.py), and of a browser. */
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

const ANSWER_WITHIN = 15_000; // ms

/** @type {{[status: number]: number}} the close code of a websocket for the same reason */
const CLOSE_CODES = {
  400: CloseCode.BAD_PROTOCOL,
  401: CloseCode.UNAUTHORISED,
  403: CloseCode.FORBIDDEN,
  429: CloseCode.TRY_LATER,
  503: CloseCode.TRY_LATER,
};

/** A request failed. `code` is the websocket's close code for the same reason, or 0 if there is none. */
class Refusal extends Error {
  /** @param {number} code @param {string} reason */
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

/** @param {unknown} error @returns {[number, string]} close code and reason */
export function closeReason(error) {
  const code = error instanceof Refusal ? error.code : CloseCode.NONE;
  return [code, error instanceof Error ? error.message : String(error)];
}

/**
 * Sends a request. Rejects with a `Refusal` for any status but 2xx, 304 and 404.
 * @param {Environment} environment
 * @param {string | undefined} token
 * @param {string} path
 * @param {RequestInit} [init]
 */
export async function request({ base, clock, fetch }, token, path, init = {}) {
  const headers = new Headers(init.headers);
  if (token !== undefined) headers.set("Authorization", `Bearer ${token}`);
  const timeout = new AbortController();
  const timer = clock.setTimeout(() => timeout.abort(), ANSWER_WITHIN);
  try {
    const response = await fetch(new URL(path, base).href, { ...init, headers, signal: timeout.signal });
    const { status } = response;
    if (response.ok || status === 304 || status === 404) return response;
    throw new Refusal(CLOSE_CODES[status] ?? CloseCode.NONE, `${path.split("?")[0]}: HTTP status ${status}`);
  } finally {
    clock.clearTimeout(timer);
  }
}

/**
 * The address of a job, and of what lies below it (`tail`), from the root of the API on. An ID that is a dot segment goes
 * into a parameter, since URLs lose it.
 * @param {string} id @param {string} [tail] @param {Iterable<[string, string]>} [query]
 */
export function jobPath(id, tail = "", query = []) {
  const isDots = id === "." || id === "..";
  const parameters = new URLSearchParams([...(isDots ? [["id", id]] : []), ...query]).toString();
  return `api/v1/${isDots ? "job" : `jobs/${encodeURIComponent(id)}`}${tail}${parameters && `?${parameters}`}`;
}

/**
 * Fetches a job's document by any of its IDs; null if there is none. `cache` has documents by ETag, for 304 answers.
 * @param {SendRequest} send
 * @param {string} name
 * @param {Map<string, {etag: string | null, job: Job}>} [cache]
 * @returns {Promise<Job | null>}
 */
export async function fetchJob(send, name, cache) {
  const cached = cache?.get(name);
  const headers = cached?.etag ? { "If-None-Match": cached.etag } : undefined;
  const response = await send(jobPath(name), { headers });
  if (response.status === 304 && cached !== undefined) return cached.job;
  const job = response.status === 404 ? null : await response.json();
  if (job === null) cache?.delete(name);
  else cache?.set(name, { etag: response.headers.get("ETag"), job });
  return job;
}

/** The query parameters of a filter. One empty `id` selects no job, none selects all. @param {Wanted} wanted  */
export function parameters({ jobs, ...filters }) {
  const query = new URLSearchParams();
  if (jobs?.length === 0) query.append("id", "");
  for (const [name, values] of Object.entries({ id: jobs, ...filters })) {
    for (const value of [values ?? []].flat()) query.append(name, value);
  }
  return query;
}

// -- What a client uses of its environment: the base URL, the clock and the browser's functions.

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
