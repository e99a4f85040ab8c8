/**
 * The browser client of a correlator: it follows jobs over one connection and reports what changed.
 *
 * This file is the entry; progress.js has an element that shows a job, react.js has hooks, client.d.ts the types. The
 * modules in client/, from the top: `shared` the connections that the parts of a page share · `correlator` the API ·
 * `connector` connects and reconnects (`attempt`, `retry`, `page_events`) · `transports` (`websocket`, `event_stream`,
 * `polling`; `messages`) · `notifier` calls the callbacks · `replica` folds the messages of docs/protocol.md into documents
 * (`view`, `documents`) · `requests` to the REST API · `environment`.
 * `forecast` says how much time a job still needs.
 */

export { Correlator } from "./client/correlator.js";
export { merge, newest } from "./client/documents.js";
export { remaining } from "./client/forecast.js";
export { subscribe } from "./client/shared.js";
