// What the page says of a forecast and of the trend of an operation, and where it draws the steps ahead.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { trends } from "../../correlator/web/page/entity.js";
import { inOrder } from "../../correlator/web/page/step_order.js";
import { axisOf, placed, ticksOf } from "../../correlator/web/page/steps.js";
import { Progress, comparison, outlook } from "../../correlator/web/page/outlook.js";
import { parse, listAddress } from "../../correlator/web/page/route.js";
import { about, dayOf, endTime, moment, shortTime } from "../../correlator/web/page/times.js";

const NOW = new Date(2026, 2, 1, 14, 28, 30).getTime(); // in the time zone of the page
const after = (seconds) => new Date(NOW + seconds * 1000).toISOString();

function job({ state = "on_track", runs = 37, p50 = 180, p90 = 420, percent = 40, ...more } = {}) {
  const ends = { p50: after(p50), p90: after(p90) };
  return {
    job_id: "x",
    status: "running",
    terminal: false,
    started_at: after(-60),
    progress: { percent, basis: "history" },
    forecast: { ends_at: ends, as_of: after(0), runs, state, typical_seconds: 200, failure_rate: 0, steps_ahead: [] },
    ...more,
  };
}

const said = (document, now = NOW) => outlook(document, now, new Progress().at(document, now).left);

test("an estimate is rounded as far as it is uncertain", () => {
  const expected = {
    0: "a few seconds",
    9.9: "a few seconds",
    12: "about 10 s",
    57.4: "about 55 s",
    57.5: "about 1 min",
    100: "about 2 min",
    1169: "about 19 min",
    1170: "about 20 min",
    3449: "about 55 min",
    3450: "about 1 h",
    4800: "about 1 h 20 min",
    86_249: "about 23 h 55 min",
    86_250: "about 1 d",
    187_000: "about 2 d 4 h",
  };
  const rounded = Object.keys(expected).map((seconds) => [seconds, about(Number(seconds) * 1000)]);
  assert.deepEqual(Object.fromEntries(rounded), expected);
});

test("a time has its date on another day, and the year of another year", () => {
  const [newYear, here] = [new Date(2027, 0, 1, 0, 10).getTime(), new Date(2026, 11, 31, 23, 50).getTime()];
  assert.match(endTime(newYear, here), /2027, 00:10$/);
  for (const now of [newYear, dayOf(newYear)]) {
    assert.match(shortTime(here, now), /2026, 23:50:00$/);
  }
  assert.doesNotMatch(shortTime(NOW, here), /2026/);
  assert.equal(endTime(NOW, NOW), "14:29");
  assert.match(endTime(NOW + 86_400_000, NOW), /\b2\b.*, 14:29$/);
  assert.match(endTime(NOW + 700 * 86_400_000, NOW), /2028$/);
});

test("a job says how much time is left, by when, and how many runs that rests on", () => {
  const { words, source, lateness, why } = said(job());
  assert.equal(words, "about 3 min left (by 14:32)");
  assert.equal(source, "From 37 earlier runs; 9 of 10 ended by 14:36.");
  assert.deepEqual([lateness, why], [null, ""]);
});

test("an estimate from few runs is called rough and does not speak of 9 in 10", () => {
  const { words, brief, source } = said(job({ state: "rough", runs: 4 }));
  assert.equal(words, "rough estimate: 3 min left (by 14:32)");
  assert.equal(brief, "perhaps 3 min left (by 14:32)");
  assert.equal(source, "From only 4 earlier runs; probably by 14:36.");
});

test("a late job and an overdue one say why they are", () => {
  const late = said(job({ state: "late" }));
  assert.deepEqual([late.lateness.word, late.why], ["Late", "longer at this point than 9 of 10 earlier runs"]);
  assert.equal(late.brief, "about 3 min left (by 14:32)");
  const overdue = said(job({ state: "overdue" }));
  assert.deepEqual([overdue.lateness.word, overdue.brief], ["Overdue", "longer than 37 earlier runs"]);
  assert.equal(overdue.words, overdue.brief); // no time: none of the earlier runs says one
});

test("a state that a later version adds is shown as a usual forecast", () => {
  assert.deepEqual(said(job({ state: "early" })), said(job()));
});

test("without a forecast nothing is said", () => {
  assert.equal(said(job({ forecast: null })), null);
});

test("an end that has passed is expected any moment, not in the past", () => {
  assert.equal(said(job({ p50: -300 })).words, "a few seconds left (by 14:29)");
});

test("an ended job says how long it took beside earlier runs, a failed one without a rank", () => {
  const compared_with = { typical_seconds: 80, runs: 37, percentile: 88 };
  const ended = (more) => job({ status: "completed", terminal: true, forecast: null, ended_at: after(36), ...more });
  const text = "Took 1 min 36 s, typical 1 min 20 s; slower than";
  assert.equal(comparison(ended({ compared_with })), `${text} 88 % of 37 earlier runs.`);
  for (const [percentile, share] of [[0, "none of"], [0.2, "1 % of"], [99.8, "99 % of"], [100, "all"]]) {
    const compared = { ...compared_with, percentile };
    assert.equal(comparison(ended({ compared_with: compared })), `${text} ${share} 37 earlier runs.`);
  }
  const failed = comparison(ended({ status: "failed", compared_with }));
  assert.equal(failed, "Ended after 1 min 36 s; runs that complete typically take 1 min 20 s.");
  assert.equal(comparison(ended({ compared_with: null })), "");
  assert.equal(comparison(job({ compared_with })), "");
});

test("a bar that moved on stays when the next document comes, or says that the job failed", () => {
  const progress = new Progress();
  const seen = [
    [job({ percent: 40 }), 0],
    [job({ percent: 40 }), 150],
    [job({ percent: 41 }), 1],
    [job({ percent: 41, status: "failed", terminal: true, forecast: null }), 152],
    [job({ percent: 41, status: "failed", terminal: true, forecast: null }), 500],
  ].map(([document, second]) => progress.at(document, NOW + second * 1000).percent);
  assert.deepEqual(seen, [40, 87.5, 87.5, 87.5, 87.5]);
  assert.equal(progress.at({ ...job({ percent: 5 }), job_id: "another" }, NOW).percent, 5);
  const ended = job({ percent: 100, status: "completed", terminal: true, forecast: null });
  assert.equal(progress.at(ended, NOW).percent, 100);
});

test("a bar goes back only where a document has less than the one before", () => {
  const progress = new Progress();
  const seen = [25, 25, 10, 10.5].map((percent, second) => progress.at(job({ percent }), NOW + second * 15_000).percent);
  assert.ok(seen[0] < seen[1], "it moved on by the clock");
  assert.ok(seen[1] > seen[2], "the document went back");
  assert.ok(seen[3] >= seen[2]);
});

const AHEAD = [
  { name: "copy", share: 1, typical_seconds: 60 },
  { name: "check", share: 0.5, typical_seconds: 40 },
  { name: "boot", share: 1, typical_seconds: 20 },
];

const places = (p50, now = NOW) => {
  const forecast = { ...job({ p50, p90: p50 * 2 }).forecast, steps_ahead: AHEAD };
  return placed(forecast, now).map(({ from, to }) => [from, to].map((time) => Math.round((time - NOW) / 100) / 10));
};

test("the steps ahead end where the job probably ends, and a step counts with its share", () => {
  assert.deepEqual(places(180), [[80, 140], [140, 180], [160, 180]]);
});

test("steps for which too little time is left are drawn shorter, and never before now", () => {
  assert.deepEqual(places(50), [[0, 30], [30, 50], [40, 50]]);
  assert.deepEqual(places(-20), [[0, 0], [0, 0], [0, 0]]);
});

test("the axis of a running job goes on to its p90, unless that is far away", () => {
  const span = (document) => {
    const { from, reached, to } = axisOf(document, [], NOW, moment);
    return [reached - from, to - from].map((ms) => ms / 1000);
  };
  assert.deepEqual(span(job()), [60, 480]);
  assert.deepEqual(span(job({ p50: 180, p90: 90_000 })), [60, 480]);
  assert.deepEqual(span(job({ p50: 180, p90: 200 })), [60, 260]);
  assert.deepEqual(span(job({ forecast: null })), [60, 60]);
  assert.deepEqual(span(job({ forecast: null, terminal: true, ended_at: after(-20) })), [40, 40]);
});

test("the axis of a job that is silent for longer than it was active breaks, and its steps keep their width", () => {
  const stalled = job({ started_at: after(-4000), p50: 5000, p90: 9000 });
  const steps = [{ started_at: after(-3960), ended_at: after(-3930) }];
  const silentSince = Date.parse(after(-3900));
  const axis = axisOf(stalled, steps, NOW, moment, silentSince);
  assert.deepEqual([axis.breaksAt, axis.to, axis.reached], [silentSince, NOW, NOW]);
  assert.deepEqual([-4000, -3960, -3930, -3900, -1950, 0].map((at) => axis.place(Date.parse(after(at)))), [0, 30, 52.5, 75, 87.5, 100]);
  assert.ok(ticksOf(axis).every(({ at }) => at <= silentSince));
  for (const [since, more] of [[after(-1000)], [null], [after(-3900), { terminal: true, ended_at: after(0) }], [after(-4000)]]) {
    assert.equal(axisOf({ ...stalled, ...more }, steps, NOW, moment, since && Date.parse(since)).breaksAt, null);
  }
});

test("the filter by forecast is kept in the address, and unknown values are ignored", () => {
  const { filter } = parse("#/?forecast=overdue,bogus,late&status=running");
  assert.deepEqual(filter.forecast, ["overdue", "late"]);
  assert.equal(listAddress(filter), "#/?status=running&forecast=overdue%2Clate");
  assert.deepEqual(parse("#/").filter.forecast, []);
});

test("steps are sorted by seq, and steps without a seq come last", () => {
  const steps = [
    { id: "9", seq: 0 },
    { id: "4", seq: 2 },
    { id: "12", seq: 1 },
    { id: "7" },
    { id: "10", seq: 2 },
  ];
  assert.deepEqual(
    steps.sort(inOrder).map((step) => step.id),
    ["12", "4", "10", "7", "9"],
  );
});

for (const { name, jobs, trends: expected } of JSON.parse(readFileSync(new URL("../data/trends.json", import.meta.url), "utf8"))) {
  test(name, () => assert.deepEqual(trends(jobs), expected));
}

test("runs of long ago no longer count", () => {
  const run = (seconds) => ({ operation: "backup", status: "completed", duration_seconds: seconds });
  const [trend] = trends([...Array(21).fill(run(10)), ...Array(500).fill(run(1000))]);
  assert.deepEqual([trend.typical_seconds, trend.runs], [10, 521]);
});
