import { describe, expect, it } from "vitest";
import { imageRequest } from "../testing/views.ts";
import { AfterSteps } from "./after-steps.ts";

describe("AfterSteps", () => {
  it("is nothing before anything is known of the model, and then in proportion to the pixels", () => {
    const after = new AfterSteps();
    expect(after.predictMs(imageRequest())).toBe(0);
    after.observe(imageRequest({ width: 256, height: 256 }), 50);
    expect(after.predictMs(imageRequest({ width: 256, height: 256 }))).toBeCloseTo(50);
    expect(after.predictMs(imageRequest({ width: 512, height: 512, numImages: 2 }))).toBeCloseTo(400);
    expect(after.predictMs(imageRequest({ model: "other" }))).toBe(0);
  });

  it("follows what it meets, one hiccup a little", () => {
    const after = new AfterSteps();
    after.observe(imageRequest(), 50);
    after.observe(imageRequest(), 1050);
    expect(after.predictMs(imageRequest())).toBeCloseTo(150);
    for (let i = 0; i < 100; i++) after.observe(imageRequest(), 80);
    expect(after.predictMs(imageRequest())).toBeCloseTo(80, 0);
  });

  it("is never less than nothing, however early a request came back", () => {
    const after = new AfterSteps();
    after.observe(imageRequest(), -500);
    expect(after.predictMs(imageRequest())).toBe(0);
  });
});
