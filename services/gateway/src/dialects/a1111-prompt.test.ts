import { describe, expect, it } from "vitest";
import { adaptersInPrompt, refuseUnservedSyntax } from "./a1111-prompt.ts";

describe("adapters named in a prompt", () => {
  it.each([
    ["a red mug", "a red mug", []],
    ["a mug <lora:brand:0.8>", "a mug ", [{ name: "brand", weight: 0.8 }]],
    ["<lora:国潮>杯子", "杯子", [{ name: "国潮", weight: 1 }]],
    [
      "a<lora:one:-1> b<lora:two v1.5:2>",
      "a b",
      [
        { name: "one", weight: -1 },
        { name: "two v1.5", weight: 2 },
      ],
    ],
    ["1 < 2, a > b, <3", "1 < 2, a > b, <3", []],
  ])("of %j leave %j", (prompt, rest, adapters) => {
    expect(adaptersInPrompt(prompt)).toEqual({ prompt: rest, adapters });
  });

  it.each([
    ["<lora:brand:strong>", /a number from -2 to 2/],
    ["<lora:brand:>", /a number from -2 to 2/],
    ["<lora:brand:2.1>", /a number from -2 to 2/],
    ["<lora:brand:1:0.5>", /one weight/],
    [`<lora:${"x".repeat(129)}:1>`, /1 to 128 characters/],
    ["<lyco:brand:1>", /only <lora:name:weight>/],
    ["<lora:a:1>".repeat(9), /names 9 adapters; at most 8/],
  ])("are refused in %j", (prompt, message) => {
    expect(() => adaptersInPrompt(prompt)).toThrow(message);
  });
});

describe("what the web UI reads in prompts and is not served", () => {
  it.each(["a cat BREAK a dog", "a cat AND a dog", "a [cat:dog:0.5]", "a [cat:10]", "a [cat|dog]"])(
    "refuses %j",
    (text) => {
      expect(() => refuseUnservedSyntax("prompt", text)).toThrow(/which is not served here/);
    },
  );

  it.each(["a (cat:1.3) and a [dog]", "a \\[cat:0.5\\]", "BREAKFAST, SAND", "时间 [12:30 下午]"])(
    "lets %j be",
    (text) => {
      expect(() => refuseUnservedSyntax("prompt", text)).not.toThrow();
    },
  );

  it("has no AND between negative prompts, as there", () => {
    expect(() => refuseUnservedSyntax("negative_prompt", "BLACK AND WHITE")).not.toThrow();
    expect(() => refuseUnservedSyntax("negative_prompt", "a [cat|dog]")).toThrow(/negative_prompt has \[one\|other\]/);
  });
});
