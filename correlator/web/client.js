/**
 * The browser client of a correlator: it follows jobs over one connection and reports what changed.
 *
 * progress.js has an element that shows a job, react.js has hooks, client.d.ts the types. This file is served with all that
 * it imports. The modules in client/, from the top: `correlator` the API · `connector` connects and reconnects · `transports`: websocket,
 * event stream, polling · `notifier` calls the callbacks · `replica` folds the messages of docs/protocol.md into documents ·
 * `documents` what is computed of one · `requests` to the REST API. `job_log` is the log of a job for react.js.
 */

export { Correlator, acquire, subscribe } from "./client/correlator.js";
export { merge, newest, remaining } from "./client/documents.js";
