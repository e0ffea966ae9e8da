import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { SharedStore } from "./shared-store.ts";

export interface StoreUnderTest {
  readonly store: SharedStore;
  /** The same store as another gateway sees it: `store` itself where nothing is shared. */
  readonly elsewhere: SharedStore;
  /** Lets so much time go by. */
  passMs(ms: number): Promise<void>;
  stop(): Promise<void>;
}

const LONG = { ttlMs: 60_000 };

/** What every SharedStore does: each adapter's test runs it. */
export function describeSharedStore(name: string, start: () => Promise<StoreUnderTest>): void {
  describe(`${name} as a SharedStore`, () => {
    let under: StoreUnderTest;
    let keys = 0;
    const newKey = () => `key ${keys++} 钥匙`;
    beforeAll(async () => {
      under = await start();
    });
    afterAll(() => under.stop());

    it("gives back the bytes that were set, here and elsewhere, and nothing for a key without a value", async () => {
      const { store, elsewhere } = under;
      const key = newKey();
      const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
      expect(await store.get(key)).toBeUndefined();
      await store.set(key, bytes, LONG);
      expect(await elsewhere.get(key)).toEqual(Buffer.from(bytes));
      await store.set(key, "文字", LONG);
      expect(String(await elsewhere.get(key))).toBe("文字");
    });

    it("keeps an empty value apart from none", async () => {
      const key = newKey();
      await under.store.set(key, "", LONG);
      expect(await under.store.get(key)).toEqual(Buffer.alloc(0));
      expect(await under.store.setIfAbsent(key, "x", LONG)).toBe(false);
    });

    it("keeps a copy: bytes that the caller changes later stay as they were", async () => {
      const key = newKey();
      const bytes = Uint8Array.of(1, 2, 3);
      await under.store.set(key, bytes, LONG);
      bytes[0] = 9;
      expect(await under.store.get(key)).toEqual(Buffer.of(1, 2, 3));
    });

    it("takes bytes that lie inside a larger buffer as what they are", async () => {
      const key = newKey();
      await under.store.set(key, Uint8Array.of(0, 1, 2, 3).subarray(1, 3), LONG);
      expect(await under.store.get(key)).toEqual(Buffer.of(1, 2));
      expect(await under.store.deleteIf(key, Uint8Array.of(9, 1, 2, 9).subarray(1, 3))).toBe(true);
    });

    it("forgets a value when its time is over, a fraction of a millisecond rounded up", async () => {
      const [short, tiny, long] = [newKey(), newKey(), newKey()];
      await under.store.set(short, "x", { ttlMs: 50 });
      await under.store.set(tiny, "x", { ttlMs: 0.4 });
      await under.store.set(long, "x", LONG);
      await under.passMs(80);
      expect(await under.store.get(short)).toBeUndefined();
      expect(await under.store.get(tiny)).toBeUndefined();
      expect(await under.store.get(long)).toBeDefined();
      expect(await under.store.setIfAbsent(short, "y", LONG)).toBe(true);
    });

    it("lets one of many set what is absent", async () => {
      const key = newKey();
      const racers = Array.from({ length: 8 }, (_, i) => (i % 2 === 0 ? under.store : under.elsewhere));
      const won = await Promise.all(racers.map((store, i) => store.setIfAbsent(key, `racer ${i}`, LONG)));
      expect(won.filter(Boolean)).toHaveLength(1);
      expect(String(await under.store.get(key))).toBe(`racer ${won.indexOf(true)}`);
    });

    it("replaces only what is expected, and then lives as long as it is told", async () => {
      const key = newKey();
      expect(await under.store.replaceIf(key, "a", "b", LONG)).toBe(false);
      expect(await under.store.get(key)).toBeUndefined();
      await under.store.set(key, "a", { ttlMs: 50 });
      expect(await under.elsewhere.replaceIf(key, "x", "b", LONG)).toBe(false);
      expect(await under.elsewhere.replaceIf(key, "a", "b", LONG)).toBe(true);
      await under.passMs(80);
      expect(String(await under.store.get(key))).toBe("b");
    });

    it("renews a lease by replacing it with itself", async () => {
      const key = newKey();
      await under.store.setIfAbsent(key, "mine", { ttlMs: 150 });
      await under.passMs(80);
      expect(await under.store.replaceIf(key, "mine", "mine", { ttlMs: 60_000 })).toBe(true);
      await under.passMs(100);
      expect(await under.elsewhere.setIfAbsent(key, "theirs", LONG)).toBe(false);
    });

    it("replaces a value without giving it more time where that is asked for", async () => {
      const key = newKey();
      await under.store.setIfAbsent(key, "mine", { ttlMs: 150 });
      expect(await under.elsewhere.replaceIf(key, "yours", "marked", "same")).toBe(false);
      expect(await under.elsewhere.replaceIf(key, "mine", "marked", "same")).toBe(true);
      expect(String(await under.store.get(key))).toBe("marked");
      await under.passMs(200);
      expect(await under.store.get(key)).toBeUndefined();
    });

    it("deletes only what is expected, or whatever there is", async () => {
      const key = newKey();
      await under.store.set(key, "a", LONG);
      expect(await under.elsewhere.deleteIf(key, "b")).toBe(false);
      expect(await under.elsewhere.deleteIf(key, "a")).toBe(true);
      expect(await under.elsewhere.deleteIf(key, "a")).toBe(false);
      await under.store.set(key, "c", LONG);
      await under.elsewhere.delete(key);
      await under.elsewhere.delete(key);
      expect(await under.store.get(key)).toBeUndefined();
    });

    it("tells every listener of a channel what is published, until it ends its subscription", async () => {
      const { store, elsewhere } = under;
      const heard = { first: [] as string[], second: [] as string[], other: [] as string[] };
      const endFirst = store.subscribe("news", (message) => heard.first.push(message));
      const endSecond = elsewhere.subscribe("news", (message) => heard.second.push(message));
      const endOther = elsewhere.subscribe("other news", (message) => heard.other.push(message));
      await untilHeard(store, "news", [heard.first, heard.second]);

      await store.publish("news", "一");
      await store.publish("news", "two");
      await until(() => [heard.first, heard.second].every((all) => all.includes("一") && all.includes("two")));
      endFirst();
      await store.publish("news", "three");
      await until(() => heard.second.includes("three"));

      expect(heard.first.filter((message) => message !== "ping").sort()).toEqual(["two", "一"]);
      expect(heard.second.filter((message) => message !== "ping").sort()).toEqual(["three", "two", "一"]);
      expect(heard.other).toEqual([]);
      endSecond();
      endOther();
    });
  });
}

/** Publishes until everybody has heard it: a subscription takes a moment to stand. */
async function untilHeard(store: SharedStore, channel: string, heard: readonly string[][]): Promise<void> {
  await until(async () => {
    await store.publish(channel, "ping");
    await sleep(5);
    return heard.every((messages) => messages.length > 0);
  });
  await sleep(50); // the last pings
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; !(await condition()); i++) {
    if (i > 1_000) throw new Error(`not within ${i} looks: ${condition}`);
    await sleep(5);
  }
}
