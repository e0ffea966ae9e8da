import { describe, expect, it } from "vitest";
import { chooseMediaType } from "./accept.ts";

describe("chooseMediaType, of json, png, jpeg and webp", () => {
  it.each([
    [undefined, "application/json"],
    ["", "application/json"],
    ["*/*", "application/json"],
    ["application/json", "application/json"],
    ["image/png", "image/png"],
    ["IMAGE/JPEG", "image/jpeg"],
    ["image/*", "image/png"],
    ["image/*, */*", "image/png"],
    ["image/png, application/json", "application/json"],
    ["application/json;q=0.5, image/webp;q=0.9", "image/webp"],
    ["image/avif, image/webp, */*;q=0.8", "image/webp"],
    ["image/png;q=0, image/*", "image/jpeg"],
    ["text/html, application/*", "application/json"],
    ["image/png;q=nonsense", "image/png"],
    ["image/avif", undefined],
    ["application/json;q=0", undefined],
  ])("reads %j as a wish for %s", (accept, chosen) => {
    const offers = ["application/json", "image/png", "image/jpeg", "image/webp"];
    expect(chooseMediaType(accept, offers)).toBe(chosen);
  });
});
