/** The steps that a running job probably still has, and its end, below its steps and on their time axis. */

import { html } from "./html.js";
import { icon } from "./icons.js";
import { about, endTime, moment } from "./times.js";
import { counted, stepTitle } from "./words.js";

/**
 * The steps ahead as `[{name, share, typical, from, to}]`; times in milliseconds. Pure.
 *
 * They end where the job ends in half of all cases. Before the first one, the running step has time to end; if there is
 * too little time for all of them, they are drawn shorter. A step counts with its share of the earlier runs.
 */
export function placed(forecast, now) {
  const room = Math.max(0, (moment(forecast.ends_at.p50) ?? now) - now);
  const steps = forecast.steps_ahead.map(({ name, title, share, typical_seconds: seconds }) => ({
    name: stepTitle({ name, title }),
    share,
    typical: seconds * 1000,
  }));
  const needed = steps.reduce((sum, { share, typical }) => sum + share * typical, 0);
  const scale = needed > room ? room / needed : 1;
  let at = now + room - needed * scale;
  return steps.map((step) => {
    const from = at;
    at += step.share * step.typical * scale;
    return { ...step, from, to: from + step.typical * scale };
  });
}

/** Their rows, and that of the end. `axis`: of the steps that the job has had. */
export function Ahead({ forecast, axis, now }) {
  const between = (from, to) => ({ left: `${axis.place(from)}%`, width: `${axis.place(to) - axis.place(from)}%` });
  const ends = [forecast.ends_at.p50, forecast.ends_at.p90].map((stamp) => Math.max(now, moment(stamp) ?? now));
  const [half, most] = ends.map((at) => endTime(at, now));
  const rests = `Of ${counted(forecast.runs, "earlier run")}, half ended by ${half}, 9 of 10 by ${most}.`;
  return html`${placed(forecast, now).map(
    ({ name, share, typical, from, to }) => html`<li class="step is-ahead">
      <span class="step-name soft">${icon("ahead", "quiet")} <span>${name}</span></span>
      <span class="step-word soft" title="Share of earlier runs that had this step">${likely(share)}</span>
      <span class="lane" aria-hidden="true">
        <span class="span span-ahead" style=${{ ...between(from, to), opacity: 0.35 + 0.65 * share }}></span>
      </span>
      <span class="step-took soft">${typical < 1000 ? "under 1 s" : about(typical)}</span>
    </li>`,
  )}
  <li class="step is-ahead is-end">
    <span class="step-name soft">${icon("ahead", "quiet")} <span>Probable end</span></span>
    <span class="step-word soft" title=${rests}>${half}</span>
    <span class="lane" aria-hidden="true">
      <span class="span span-end ${ends[1] > axis.to ? "is-open" : ""}" style=${between(...ends)}></span>
    </span>
    <span class="step-took soft" title=${rests}>${half === most ? "" : `to ${most}`}</span>
  </li>`;
}

/** Never 100 %: what all earlier runs did is not certain. */
function likely(share) {
  return `${Math.min(99, Math.max(1, Math.round(100 * share)))} % likely`;
}
