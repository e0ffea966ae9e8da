import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { MemoryStore } from "../shared/memory-store.ts";
import { GenerationStore, LISTED_MAX } from "./generation-store.ts";

describe("GenerationStore", () => {
  it("lists the newest of what several gateways add at once, each once, and no more than it may", async () => {
    const store = new GenerationStore(new MemoryStore(new ManualClock(1)), new ManualClock(1));
    const gateways = Array.from({ length: 8 }, (_, gateway) => [`gen_${gateway}_1`, `gen_${gateway}_2`]);
    await Promise.all(gateways.map((ids) => store.addToList("shop", ids, 1_000)));
    await store.addToList("shop", ["gen_0_1"], 1_000);
    const listed = await store.list("shop");
    expect(listed[0]).toBe("gen_0_1");
    expect([...listed].sort()).toEqual(gateways.flat().sort());

    const many = Array.from({ length: LISTED_MAX }, (_, i) => `gen_${i}`);
    await store.addToList("shop", many, 1_000);
    expect(await store.list("shop")).toEqual([...many].reverse());
    expect(await store.list("another")).toEqual([]);
  });
});
