import { createHash } from "node:crypto";
import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { OwnAskCounts } from "./ask-counts.ts";

const digestOf = (text: string) => createHash("sha256").update(text).digest("hex");

describe("OwnAskCounts", () => {
  it("counts each thing by itself", async () => {
    const counts = new OwnAskCounts(new ManualClock(), { windowMs: 1_000 });
    expect(await counts.add(digestOf("a"))).toBe(1);
    expect(await counts.add(digestOf("a"))).toBe(2);
    expect(await counts.add(digestOf("b"))).toBe(1);
  });

  it("remembers for half a window at least, and forgets after a whole one", async () => {
    const clock = new ManualClock(400);
    const counts = new OwnAskCounts(clock, { windowMs: 1_000 });
    await counts.add(digestOf("a"));
    clock.advance(500);
    expect(await counts.add(digestOf("a"))).toBe(2);
    clock.advance(500); // the first is forgotten, the second is not
    expect(await counts.add(digestOf("a"))).toBe(2);
    clock.advance(10_000);
    expect(await counts.add(digestOf("a"))).toBe(1);
  });

  it("never counts too little, and seldom too much, with a hundred thousand others in the same window", async () => {
    const counts = new OwnAskCounts(new ManualClock(), { windowMs: 1_000 });
    let tooMuch = 0;
    for (let i = 0; i < 100_000; i++) if ((await counts.add(digestOf(`rare ${i}`))) > 1) tooMuch += 1;
    expect(tooMuch / 100_000).toBeLessThan(0.02);
    for (let i = 0; i < 300; i++) await counts.add(digestOf("often"));
    expect(await counts.add(digestOf("often"))).toBeGreaterThanOrEqual(255); // and stays there
  });
});
