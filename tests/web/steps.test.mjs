// The order of the steps of a job on the page.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inOrder } from "../../correlator/web/page/steps.js";

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
