import { describe, expect, it } from "vitest";
import { requestIdOf } from "./request-id.ts";

describe("a request's id", () => {
  it("is the caller's where that is plain", () => {
    expect(requestIdOf({ "x-request-id": "shop-7.a:b_c" })).toBe("shop-7.a:b_c");
  });

  it.each([undefined, "", "two words", "a".repeat(129), "a\r\nset-cookie: b", "名字"])("is ours for %j", (given) => {
    const id = requestIdOf(given === undefined ? {} : { "x-request-id": given });
    expect(id).toMatch(/^req_[\w-]{16}$/);
  });
});
