import { expect, it } from "vitest";
import { prefersAsync } from "./prefer.ts";

it.each([
  [undefined, false],
  ["", false],
  ["return=minimal", false],
  ["respond-async", true],
  ["Respond-Async", true],
  ["return=minimal, respond-async; foo=1, wait=10", true],
  ["respond-asynchronously", false],
  [["wait=10", "respond-async"], true],
])("reads Prefer: %j as respond-async %s", (header, expected) => {
  expect(prefersAsync(header)).toBe(expected);
});
