import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { MemoryStore } from "./memory-store.ts";
import { describeSharedStore } from "./shared-store.contract.ts";

describeSharedStore("MemoryStore", async () => {
  const clock = new ManualClock();
  const store = new MemoryStore(clock);
  return {
    store,
    elsewhere: store,
    passMs: async (ms) => clock.advance(ms),
    stop: async () => {},
  };
});

describe("MemoryStore", () => {
  const LIFE = { ttlMs: 1_000 };

  it("forgets what was written longest ago when it holds too many entries", async () => {
    const store = new MemoryStore(new ManualClock(), { entriesMax: 2 });
    await store.set("a", "1", LIFE);
    await store.set("b", "1", LIFE);
    await store.set("a", "2", LIFE);
    await store.set("c", "1", LIFE);
    expect(await store.get("b")).toBeUndefined();
    expect(String(await store.get("a"))).toBe("2");
    expect(String(await store.get("c"))).toBe("1");
  });

  it("forgets what was written longest ago when keys and values take too many bytes", async () => {
    const store = new MemoryStore(new ManualClock(), { bytesMax: 100 });
    await store.set("a", Buffer.alloc(49), LIFE);
    await store.set("b", Buffer.alloc(49), LIFE);
    expect(await store.get("a")).toBeDefined();
    await store.set("b", Buffer.alloc(50), LIFE);
    expect(await store.get("a")).toBeUndefined();
    expect(await store.get("b")).toHaveLength(50);
  });

  it("does not keep a value larger than all of it", async () => {
    const store = new MemoryStore(new ManualClock(), { bytesMax: 100 });
    await store.set("a", Buffer.alloc(101), LIFE);
    expect(await store.get("a")).toBeUndefined();
  });
});
