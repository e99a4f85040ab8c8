// The appliances of a fleet: addresses that name one, their health, and a list that counts and groups by them.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Fleet, healthOf } from "../../correlator/web/page/fleet.js";
import { Listing } from "../../correlator/web/page/listing.js";
import { baseOf, entityAddress, jobAddress, logAddress, listAddress, parse, placeOf } from "../../correlator/web/page/route.js";
import { job } from "./fakes.mjs";

const WHOLE = { level: "INFO", step: "", q: "" };
const NOW = Date.parse("2026-03-01T12:00:00Z");
const ALL = Object.freeze({ q: "", status: [], forecast: [], type: "", instance: [], when: "all", sort: "" });

test("an address names the appliance of a job, whatever its ID is, and one without a name stays as it was", () => {
  for (const id of ["x", "a/b c%?#/é", "i/dc1/jobs/y", "/log/7", "\ufeffbegins", "..", "."]) {
    const address = jobAddress(id, "dc-1_a");
    assert.ok(address.startsWith("#/i/dc-1_a/jobs/"));
    assert.deepEqual(parse(address), { view: "job", id, line: null, log: WHOLE, instance: "dc-1_a" });
    assert.deepEqual(parse(jobAddress(id)), { view: "job", id, line: null, log: WHOLE, instance: "" });
  }
  assert.deepEqual(parse(logAddress("x", "dc1", 7, WHOLE)), { view: "job", id: "x", line: 7, log: WHOLE, instance: "dc1" });
  assert.equal(logAddress("x", "", null, WHOLE), jobAddress("x"));
  for (const line of [null, 7]) {
    const log = { level: "WARN", step: "3001", q: "a/log?b=1 & é" };
    assert.deepEqual(parse(logAddress("x/log?y", "", line, log)), { view: "job", id: "x/log?y", line, log, instance: "" });
  }
  for (const id of ["a?b=1", "a/log", "a/log/b", "a/log/?"]) assert.equal(parse(`#/jobs/${id}`).id, id);
  assert.deepEqual(parse("#/jobs/x/log?level=BOGUS").log, WHOLE);
  assert.deepEqual(parse(entityAddress("vm/1", "dc1")), { view: "entity", name: "vm/1", instance: "dc1" });
  for (const odd of [undefined, null, "", "a b", "../..", "é", "x".repeat(65)]) {
    assert.equal(jobAddress("x", odd), "#/jobs/x");
  }
});

test("the list of appliances is part of the address of the list", () => {
  assert.deepEqual(parse("#/i/dc1/").filter.instance, ["dc1"]);
  assert.deepEqual(parse("#/?instance=dc1,dc2,a%20b").filter.instance, ["dc1", "dc2"]);
  assert.equal(listAddress({ ...ALL, instance: ["dc1", "dc2"], when: "" }), "#/?instance=dc1%2Cdc2");
  assert.equal(parse("#/?sort=-appliance").filter.sort, "-appliance");
  for (const odd of ["#/nothing/here", "#/jobs/", "#", "#/?status=bogus&q="]) assert.deepEqual(parse(odd), parse("#/"));
});

test("the page of one appliance knows itself and the others, also behind a proxy's path", () => {
  const at = (address) => placeOf(new URL(address));
  const own = at("https://h/correlator/i/dc1/");
  assert.deepEqual([own.instance, own.root.href], ["dc1", "https://h/correlator/"]);
  assert.equal(baseOf("dc1", own).href, "https://h/correlator/i/dc1/");
  assert.equal(baseOf("dc2", own).href, "https://h/correlator/i/dc2/");
  const all = at("https://h/correlator/");
  assert.deepEqual([all.instance, all.root.href], ["", "https://h/correlator/"]);
  assert.equal(baseOf("dc2", all).href, "https://h/correlator/i/dc2/");
  assert.equal(baseOf("", all).href, "https://h/correlator/");
});

test("the health of an appliance is one word, and it is well only if all is", () => {
  const well = { online: true, database: "live", lag_seconds: 0.2, last_seen: "2026-03-01T11:59:59Z" };
  const words = (change) => {
    const { word, isWell } = healthOf({ ...well, ...change }, NOW);
    return [word, isWell];
  };
  assert.deepEqual(words({}), ["live", true]);
  assert.deepEqual(words({ online: false, last_seen: "2026-03-01T11:59:18Z" }), ["silent for 42 s", false]);
  assert.deepEqual(words({ online: false, last_seen: "2026-03-01T09:55:00Z" }), ["silent for 2 h 05 min", false]);
  assert.deepEqual(words({ online: false, last_seen: null }), ["never seen", false]);
  assert.deepEqual(words({ online: null }), ["not known yet", false]);
  assert.deepEqual(words({ unwritten_seconds: 42 }), ["not written for 42 s", false]);
  assert.deepEqual(words({ unwritten_seconds: 0.4 }), ["live", true]);
  assert.deepEqual(words({ database: "down" }), ["database not read", false]);
  assert.deepEqual(words({ database: "stale" }), ["database not read in full", false]);
  assert.deepEqual(words({ error: "1 message was passed over, as unreadable" }), ["degraded", false]);
  assert.deepEqual(words({ lag_seconds: null, database: undefined }), ["live", true]);
});

test("jobs are counted, filtered and grouped by appliance, the most urgent first in each", () => {
  const of = (id, instance, status, seconds, more = {}) => [
    id,
    { ...job(id, 1), instance, status, terminal: status !== "running", started_at: new Date(NOW - seconds * 1000).toISOString(), ...more },
  ];
  const jobs = new Map([
    of("run", "b", "running", 5),
    of("failed", "b", "failed", 50, { failure: { fingerprint: "f" } }),
    of("equal", "b", "failed", 60, { failure: { fingerprint: "f" } }),
    of("other", "a", "failed", 40, { failure: { fingerprint: "f" } }),
    of("done", "a", "completed", 10),
  ]);
  const listed = (filter) => {
    const listing = new Listing();
    listing.update(jobs, null, { ...ALL, ...filter }, NOW);
    return listing;
  };
  assert.deepEqual(listed({}).shown, ["other", "failed", "run", "done"]);
  assert.deepEqual(listed({ sort: "appliance" }).shown, ["other", "done", "failed", "run"]);
  assert.deepEqual(listed({ sort: "-appliance" }).shown, ["failed", "run", "other", "done"]);
  const chosen = listed({ instance: ["a"] });
  assert.deepEqual(chosen.shown, ["other", "done"]);
  assert.deepEqual([...chosen.instances].sort(), [["a", 2], ["b", 3]]);
  assert.deepEqual(new Map(chosen.counts), new Map([["failed", 1], ["completed", 1]]));
  assert.deepEqual(listed({ q: "b" }).instances.get("b"), 3); // its name is searched too
});

test("a listing that is updated change by change counts the appliances as a new one does", () => {
  const listing = new Listing();
  const jobs = new Map([["x", { ...job("x", 1), instance: "a" }], ["y", { ...job("y", 1), instance: "b" }]]);
  const filter = { ...ALL, instance: ["b"], sort: "appliance" };
  listing.update(jobs, null, filter, NOW);
  jobs.set("x", { ...job("x", 2), instance: "b" }); // the newest job of an ID may be on another appliance
  jobs.delete("y");
  listing.update(jobs, new Set(["x", "y"]), filter, NOW);
  assert.deepEqual(listing.shown, ["x"]);
  assert.deepEqual([...listing.instances], [["b", 1]]);
});

test("the jobs of a silent appliance stand at the time it was last seen", () => {
  const fleet = new Fleet({ headers: {} }, () => {});
  fleet.instances = new Map([
    ["a", { online: false, last_seen: "2026-03-01T11:00:00Z" }],
    ["b", { online: true, last_seen: "2026-03-01T11:00:00Z" }],
    ["c", { online: false, last_seen: null }],
  ]);
  const asOf = (name) => fleet.asOf(name, NOW) - NOW;
  assert.deepEqual(["a", "b", "c", "d", undefined].map(asOf), [-3_600_000, 0, 0, 0, 0]);
});
