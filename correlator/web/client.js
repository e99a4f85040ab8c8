/**
 * The browser client of a correlator: it follows jobs over one connection and reports what changed.
 *
 * This file is the entry, and the only one to import; client.d.ts has its types. The modules in client/, from the top:
 * `correlator` the API · `connector` connects and reconnects (`attempt`, `retry`, `page_events`) ·
 * `transports` (`websocket`, `event_stream`, `polling`; `messages`) · `notifier` calls the callbacks · `replica` folds the
 * messages of docs/protocol.md into documents (`view`, `documents`) · `requests` to the REST API · `environment`.
 * `forecast` says how much time a job still needs.
 */

export { Correlator, subscribe } from "./client/correlator.js";
export { merge, newest } from "./client/documents.js";
export { remaining } from "./client/forecast.js";
