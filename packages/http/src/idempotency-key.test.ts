import { describe, expect, it } from "vitest";
import { readIdempotencyKey } from "./idempotency-key.ts";

describe("an idempotency key", () => {
  it("comes bare, or in the quotes of a structured text", () => {
    expect(readIdempotencyKey("8e03978e-40d5-43dd-bc93-6894a57f9324")).toBe("8e03978e-40d5-43dd-bc93-6894a57f9324");
    expect(readIdempotencyKey('"8e03978e-40d5"')).toBe("8e03978e-40d5");
  });

  it.each(["", "two words", 'half"quoted', "名字", "k".repeat(256)])("is refused as %j", (header) => {
    expect(() => readIdempotencyKey(header)).toThrow(/idempotency-key has \d+ characters/);
  });
});
