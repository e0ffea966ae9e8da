import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { MemoryStore } from "../shared/memory-store.ts";
import type { SharedStore } from "../shared/shared-store.ts";
import { BreakableStore } from "../testing/breakable-store.ts";
import type { Subject } from "./kept-result.ts";
import { matches, PurgeLog } from "./purge-log.ts";

const subject: Subject = { keeper: "t", model: "m", adapters: ["a", "b"], prompt: "a red mug" };

describe("a purge rule", () => {
  it.each([
    ["nothing narrows it", {}, true],
    ["the tenant is its own", { keeper: "t" }, true],
    ["the tenant is another", { keeper: "u" }, false],
    ["the model is its own", { model: "m" }, true],
    ["the model is another", { model: "m2" }, false],
    ["it has the adapter", { adapter: "b" }, true],
    ["it lacks the adapter", { adapter: "c" }, false],
    ["the prompt begins so", { promptPrefix: "a red" }, true],
    ["the prompt holds it elsewhere", { promptPrefix: "red" }, false],
    ["one part fits and another does not", { model: "m", promptPrefix: "a blue" }, false],
  ])("where %s: %o -> %s", (_what, rule, expected) => {
    expect(matches(rule, subject)).toBe(expected);
  });
});

describe("PurgeLog", () => {
  it("covers what was begun before a rule, and nothing that was begun after it", async () => {
    const { log } = gateways(1)[0]!;
    const before = log.newest;
    await log.purge({ model: "m" });
    expect(log.covers(subject, before)).toBe(true);
    expect(log.covers({ ...subject, model: "other" }, before)).toBe(false);
    expect(log.covers(subject, log.newest)).toBe(false);
    await log.purge({ model: "m" });
    expect(log.covers(subject, before)).toBe(true);
  });

  it("reaches the other gateways by a message, and those that missed it within two seconds", async () => {
    const clock = new ManualClock(1_000_000);
    const store = new MemoryStore(clock);
    const deaf = new BreakableStore(store);
    deaf.subscribe = () => () => {};
    const [one, two] = gateways(2, { clock, store });
    const three = gateways(1, { clock, store: deaf })[0]!;
    await settle();
    await one!.log.purge({ model: "m" });
    await settle();
    expect([two!.told.length, three.told.length]).toEqual([1, 0]);
    clock.advance(2_000);
    await settle();
    expect(three.log.covers(subject, 0)).toBe(true);
  });

  it("numbers rules upwards, of one gateway or several, within one millisecond or with clocks set back", async () => {
    const clock = new ManualClock(1_000_000);
    const [one, two] = gateways(2, { clock });
    await Promise.all([one!.log.purge({ model: "a" }), two!.log.purge({ model: "b" }), one!.log.purge({ model: "c" })]);
    await settle();
    expect(one!.log.newest).toBe(1_000_002);
    expect(two!.log.newest).toBe(1_000_002);
    for (const model of ["a", "b", "c"]) expect(two!.log.covers({ ...subject, model }, 0)).toBe(true);
  });

  it("holds here what could not be told to the others, and says so", async () => {
    const store = new BreakableStore(new MemoryStore(new ManualClock()));
    const { log } = gateways(1, { store })[0]!;
    store.away = true;
    await expect(log.purge({ model: "m" })).rejects.toMatchObject({ code: "OVERLOADED" });
    expect(log.covers(subject, 0)).toBe(true);
    await log.reread();
    expect(log.covers(subject, 0)).toBe(true);
  });

  it("knows what it knew when the store lost it all, or holds something else", async () => {
    const store = new MemoryStore(new ManualClock());
    const { log } = gateways(1, { store })[0]!;
    await log.purge({ model: "m" });
    for (const damage of ["", "[1]", '{"floor":0,"rules":[{"number":"x"}]}']) {
      await store.set("cache:purges", damage, { ttlMs: 1_000_000 });
      await log.reread();
      expect(log.covers(subject, 0)).toBe(true);
    }
    await log.purge({ model: "n" });
    expect(log.count).toBe(2);
  });

  it("keeps so many rules and no more: what is as old as those that are left out is purged altogether", async () => {
    const { log } = gateways(1)[0]!;
    for (let i = 0; i < 501; i++) await log.purge({ model: `m${i}` });
    expect(log.count).toBe(500);
    expect(log.covers({ ...subject, model: "never named" }, 0)).toBe(true);
    expect(log.covers({ ...subject, model: "never named" }, log.newest - 1)).toBe(false);
  });
});

function gateways(
  count: number,
  { clock = new ManualClock(1_000_000), store = new MemoryStore(clock) as SharedStore } = {},
) {
  return Array.from({ length: count }, () => {
    const told: unknown[] = [];
    const log = new PurgeLog({ store, clock, ttlMs: 60_000, onRules: (rules) => told.push(rules) });
    return { log, told };
  });
}

const settle = () => new Promise((resolve) => setTimeout(resolve, 10));
