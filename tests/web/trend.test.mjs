// The trend of an operation, as the daemon computes it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { trends } from "../../correlator/web/page/entity.js";

for (const { name, jobs, trends: expected } of JSON.parse(readFileSync(new URL("../data/trends.json", import.meta.url), "utf8"))) {
  test(name, () => assert.deepEqual(trends(jobs), expected));
}

test("runs of long ago no longer count", () => {
  const run = (seconds) => ({ operation: "backup", status: "completed", duration_seconds: seconds });
  const [trend] = trends([...Array(21).fill(run(10)), ...Array(500).fill(run(1000))]);
  assert.deepEqual([trend.typical_seconds, trend.runs], [10, 521]);
});
