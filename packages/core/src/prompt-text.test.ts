import { describe, expect, it } from "vitest";
import { checkPromptText, PROMPT_BYTES_MAX, ServingError } from "./index.ts";

describe("checkPromptText", () => {
  it.each([
    "a red mug",
    "国潮风T恤，白色背景",
    "👩🏽‍🚀 e\u0301",
    "two\nlines\r\n\tand a tab",
    "a".repeat(PROMPT_BYTES_MAX),
  ])("takes ordinary text in any script: %.20s", (text) => {
    expect(() => checkPromptText(text, { field: "prompt" })).not.toThrow();
  });

  it.each([
    ["nothing", "", "prompt is empty"],
    ["only white space", " \t\n\u3000", "prompt is empty"],
    ["100 KB", "a".repeat(100_000), "prompt has 100000 characters; at most 10000 bytes"],
    ["few characters of many bytes", "衣".repeat(3_334), "prompt has 10002 bytes in UTF-8; at most 10000"],
    ["NUL bytes", "a\0b", "prompt holds the control character U+0000 at character 1"],
    ["an escape sequence", "a\u001b[31m", "control character U+001B at character 1"],
    ["a lone high surrogate", "ab\ud83d", "lone surrogate, U+D83D) at character 2"],
    ["a lone low surrogate", "\ude00 smile", "lone surrogate, U+DE00) at character 0"],
    ["surrogates in the wrong order", "\ude00\ud83d", "lone surrogate, U+DE00) at character 0"],
  ])("refuses %s, naming the field and what is wrong", (_, text, message) => {
    const error = refusal(() => checkPromptText(text, { field: "prompt" }));
    expect(error.code).toBe("INVALID_REQUEST");
    expect(error.field).toBe("prompt");
    expect(error.message).toContain(message);
  });

  it("never repeats the text in its message", () => {
    const error = refusal(() => checkPromptText(`${"secret ".repeat(10)}\0`, { field: "prompt" }));
    expect(error.message).not.toContain("secret");
  });

  it("lets a negative prompt be empty, and nothing else of it be wrong", () => {
    const rules = { field: "negative_prompt", emptyAllowed: true };
    expect(() => checkPromptText("", rules)).not.toThrow();
    expect(refusal(() => checkPromptText("\0", rules)).field).toBe("negative_prompt");
  });
});

function refusal(run: () => void): ServingError {
  try {
    run();
  } catch (error) {
    if (error instanceof ServingError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}
