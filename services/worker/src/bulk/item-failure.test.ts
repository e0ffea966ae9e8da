import { ERROR_CODES, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { judge } from "./item-failure.ts";

describe("an item that was not made", () => {
  it.each([
    ["INVALID_REQUEST", "fail"], // it would be refused everywhere
    ["NUMERIC_FAILURE", "fail"], // the same input gives it again
    ["STORAGE_UNAVAILABLE", "hand-back"],
    ["DRAINING", "hand-back"],
    ["OVERLOADED", "hand-back"],
    ["OUT_OF_MEMORY", "retry"],
    ["INVALID_BUNDLE", "retry"], // another worker's folder may be whole
    ["DEADLINE_EXCEEDED", "retry"],
    ["INTERNAL", "retry"],
  ] as const)("for %s: %s", (code, verdict) => {
    expect(judge(new ServingError(code, "x"), { attempt: 4, attemptsMax: 5 })).toBe(verdict);
  });

  it("lies among the dead letters where another try could mend it and it has had them all", () => {
    for (const code of ERROR_CODES) {
      const before = judge(new ServingError(code, "x"), { attempt: 4, attemptsMax: 5 });
      const last = judge(new ServingError(code, "x"), { attempt: 5, attemptsMax: 5 });
      expect(last).toBe(before === "retry" ? "bury" : before);
    }
  });
});
