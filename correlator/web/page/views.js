/** The views that few people open. The page loads them as a script of their own when one is wanted. */

export { EntityPage } from "./entity.js";
export { FailuresPage } from "./failures.js";
export { Help } from "./help.js";
export { Known } from "./known.js";
