import type { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { strictValidator } from "./validation.ts";

const schema = z.strictObject({
  prompt: z.string(),
  steps: z.int().min(1).max(150).default(25),
  width: z.int().default(512),
  strength: z.number().gt(0).max(1).optional(),
  scale: z.number().min(0).max(50).optional(),
  format: z.enum(["png", "jpeg"]).optional(),
  loras: z
    .array(z.strictObject({ name: z.string().min(1).max(9), weight: z.number().min(-2).max(2).default(1) }))
    .max(1)
    .default([])
    .describe("a list of at most 1 adapter"),
});

describe("strictValidator", () => {
  it("returns the value with its defaults", () => {
    expect(validate({ prompt: "x" })).toEqual({ value: { prompt: "x", steps: 25, width: 512, loras: [] } });
  });

  it.each([
    [
      { prompt: "x", stepz: 1 },
      "stepz",
      'unknown field "stepz"; the fields are prompt, steps, width, strength, scale, format, loras',
    ],
    [{}, "prompt", "prompt is missing; it must be a text"],
    [{ prompt: 7 }, "prompt", "prompt is 7; it must be a text"],
    [{ prompt: "x", steps: "25" }, "steps", 'steps is "25"; it must be a whole number from 1 to 150'],
    [{ prompt: "x", steps: 0 }, "steps", "steps is 0; it must be a whole number from 1 to 150"],
    [{ prompt: "x", steps: 2.5 }, "steps", "steps is 2.5; it must be a whole number from 1 to 150"],
    [{ prompt: "x", steps: null }, "steps", "steps is null; it must be a whole number from 1 to 150"],
    [{ prompt: "x", steps: [1] }, "steps", "steps is a list; it must be a whole number from 1 to 150"],
    [{ prompt: "x", width: 1e300 }, "width", "width is 1e+300; it must be a whole number"],
    [{ prompt: "x", strength: 0 }, "strength", "strength is 0; it must be a number above 0 to 1"],
    [{ prompt: "x", scale: 51 }, "scale", "scale is 51; it must be a number from 0 to 50"],
    [{ prompt: "x", format: "gif" }, "format", 'format is "gif"; it must be one of png, jpeg'],
    [{ prompt: "x", loras: 7 }, "loras", "loras is 7; it must be a list of at most 1 adapter"],
    [
      { prompt: "x", loras: [{ name: "a" }, { name: "b" }] },
      "loras",
      "loras is a list; it must be a list of at most 1 adapter",
    ],
    [{ prompt: "x", loras: ["a"] }, "loras[0]", 'loras[0] is "a"; it must be an object'],
    [
      { prompt: "x", loras: [{ name: "a", weight: 3 }] },
      "loras[0].weight",
      "loras[0].weight is 3; it must be a number from -2 to 2",
    ],
    [
      { prompt: "x", loras: [{ weight: 1 }] },
      "loras[0].name",
      "loras[0].name is missing; it must be a text of 1 to 9 characters",
    ],
    [
      { prompt: "x", loras: [{ name: "a", scale: 1 }] },
      "loras[0]",
      'unknown field "scale" in loras[0]; the fields are name, weight',
    ],
    [[1], undefined, "the body is a list; it must be a JSON object"],
    [null, undefined, "the body is null; it must be a JSON object"],
    [undefined, undefined, "the body is missing; it must be a JSON object"],
  ])("refuses %j", (data, field, detail) => {
    expect(validate(data)).toMatchObject({ error: { code: "INVALID_REQUEST", field, detail } });
  });

  it("cuts a long value short, never through a character", () => {
    const { error } = validate({ prompt: "x", format: `${"a".repeat(59)}😀${"b".repeat(10_000)}` }) as {
      error: ServingError;
    };
    expect(error.detail.length).toBeLessThan(200);
    expect(error.detail.isWellFormed()).toBe(true);
    expect(error.detail).toContain("10061 characters");
  });
});

function validate(data: unknown): unknown {
  return strictValidator({ schema, method: "POST", url: "/", httpPart: "body" })(data);
}
