/** Types of progress.js, the element `<correlator-progress>`. Not needed at run time. */

import type { SharedOptions, Update } from "./client.js";

/**
 * The progress of one job in one line: a bar, percent, status, step, when the job will probably end, and its error.
 *
 * Attributes: `job`, `server`, `token` and `label`, which the properties of these names reflect.
 * Events: `change` at each change of the job or of the connection, and `end` once for each job that has ended, also if it
 * had ended before; neither bubbles, and the `detail` of both is the update.
 * Parts for `::part()`: `line`, `track`, `bar`, `percent`, `status`, `step`, `forecast`, `notice`, `error`, `error-line`,
 * `error-details`; `bar` and `status` have a second name, `waiting`, `pending`, `running`, `late`, `overdue`, `completed`,
 * `failed` or `cancelled`.
 * Variables: `--correlator-running`, `-completed`, `-failed`, `-late`, `-cancelled`, `-track` and `-error` (colours),
 * `--correlator-width`, `-height`, `-radius` and `-gap` (lengths).
 */
export class CorrelatorProgress extends HTMLElement {
  /** Any ID of a job, also of one that does not exist yet. Without it, the element does not connect. */
  job: string | null;
  /** Base URL of the correlator. Default: the folder of progress.js. Set it in a bundle. */
  server: string | null;
  /** As `Options.token`. A function can be set as the property only. Setting it connects again after a refusal. */
  get token(): SharedOptions["token"];
  set token(token: SharedOptions["token"] | null);
  /** Name of the bar for assistive technology. Default: the name of the virtual machine, else an ID. */
  label: string | null;
  /** The last update; null before the first. */
  readonly update: Update | null;
  addEventListener<K extends keyof ProgressEvents>(
    type: K,
    listener: (this: CorrelatorProgress, event: ProgressEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject, options?: boolean | AddEventListenerOptions): void;
}

/** The events of the element, by their names. */
export interface ProgressEvents extends HTMLElementEventMap {
  change: CustomEvent<Update>;
  end: CustomEvent<Update>;
}

declare global {
  interface HTMLElementTagNameMap {
    "correlator-progress": CorrelatorProgress;
  }
}
