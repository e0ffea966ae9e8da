import { newApiKey, sha256 } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { redact } from "./redact.ts";

const PROMPT = 'a "red" mug\nwith {braces}';

describe("a line of the log", () => {
  it.each(["prompt", "negative_prompt", "negativePrompt", "prompts", "text"])("hides a prompt under %s", (name) => {
    const line = JSON.stringify({ request: { [name]: PROMPT }, steps: 8 });
    expect(JSON.parse(redact(line, "never"))).toEqual({ request: { [name]: "***" }, steps: 8 });
    expect(JSON.parse(redact(line, "digest"))).toEqual({
      request: { [name]: `${sha256(PROMPT)} (${PROMPT.length} characters)` },
      steps: 8,
    });
    expect(redact(line, "full")).toBe(line);
  });

  it.each([
    ["authorization", "Bearer abc.def"],
    ["x-api-key", "abc"],
    ["set-cookie", ["session=abc", "other=abc"]],
    ["ATELIER_INTERNAL_TOKEN", "abc"],
    ["s3_secret", "abc"],
    ["password", 'ab"c'],
  ])("hides what stands under %s, at any depth and under every policy", (name, value) => {
    const line = JSON.stringify({ a: { b: [{ [name]: value, c: 1 }] } });
    expect(JSON.parse(redact(line, "full"))).toEqual({ a: { b: [{ [name]: "***", c: 1 }] } });
  });

  it("hides secrets in the middle of a text, and leaves what is public of them", () => {
    const { id, text } = newApiKey();
    const webhook = `whsec_${Buffer.alloc(32, 7).toString("base64")}`;
    const line = JSON.stringify({
      msg: `${webhook} key ${text} by Bearer a.b-c== at redis://user:pa:ss@host:1/2 and https://host/x`,
    });
    const safe = JSON.parse(redact(line, "full")).msg;
    expect(safe).toBe(`whsec_*** key atk_${id}_*** by Bearer *** at redis://***@host:1/2 and https://host/x`);
  });

  it("is left as it is where it holds neither", () => {
    const line = JSON.stringify({
      token_count: 7,
      tokens: 7,
      route: "/v1/models",
      err: { stack: "at x (file:///a/b.ts:1:2)" },
    });
    expect(redact(line, "never")).toBe(line);
  });
});
