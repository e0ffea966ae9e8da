import { text } from "node:stream/consumers";
import { ServingError } from "@atelier/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ObjectStore } from "./object-store.ts";

/** What every store holds. `open` gives one that is empty. */
export function objectStoreContract(
  name: string,
  open: () => Promise<{ readonly store: ObjectStore; close(): Promise<void> }>,
): void {
  describe(`${name} as an object store`, () => {
    let store: ObjectStore;
    let close: () => Promise<void>;
    beforeAll(async () => {
      ({ store, close } = await open());
    });
    afterAll(() => close());

    it("gives back what was put, and its size", async () => {
      expect(await store.put("a/first.bin", Buffer.from("one"))).toEqual({ key: "a/first.bin", bytes: 3 });
      expect(await read(store, "a/first.bin")).toBe("one");
      expect(await store.head("a/first.bin")).toEqual({ key: "a/first.bin", bytes: 3 });
    });

    it("replaces, and keeps nothing of what was there", async () => {
      await store.put("b/again", Buffer.from("longer than the second"));
      await store.put("b/again", Buffer.from("second"));
      expect(await read(store, "b/again")).toBe("second");
    });

    it("keeps an object of no bytes", async () => {
      await store.put("c/empty", new Uint8Array(0));
      expect(await store.head("c/empty")).toEqual({ key: "c/empty", bytes: 0 });
      expect(await read(store, "c/empty")).toBe("");
    });

    it("has nothing under a key that was never put or was removed, and removing it again is no error", async () => {
      expect(await store.get("d/never")).toBeUndefined();
      expect(await store.head("d/never")).toBeUndefined();
      await store.put("d/once", Buffer.from("1"));
      await store.remove("d/once");
      await store.remove("d/once");
      expect(await store.get("d/once")).toBeUndefined();
    });

    it("takes a stream of 20 MiB whose length nobody said", async () => {
      const part = Buffer.alloc(1024 * 1024, 7);
      const stored = await store.put("e/large", parts(part, 20));
      expect(stored.bytes).toBe(20 * part.length);
      let bytes = 0;
      for await (const read of (await store.get("e/large"))!.body) {
        expect(read.every((byte: number) => byte === 7)).toBe(true);
        bytes += read.length;
      }
      expect(bytes).toBe(20 * part.length);
    }, 30_000);

    it("has nothing of a stream that broke off, nor of one that was taken back", async () => {
      await expect(store.put("f/broken", breaking())).rejects.toThrow("the sheet broke off");
      const controller = new AbortController();
      const taken = store.put(
        "f/taken",
        endless(() => controller.abort(new Error("taken back"))),
        {
          signal: controller.signal,
        },
      );
      await expect(taken).rejects.toThrow("taken back");
      expect(await keys(store, "f/")).toEqual([]);
    }, 30_000);

    it("has one whole object after many wrote it at once", async () => {
      const bodies = Array.from({ length: 12 }, (_, i) => String(i).repeat(50_000 + i));
      await Promise.all(bodies.map((body) => store.put("g/contested", Buffer.from(body))));
      expect(bodies).toContain(await read(store, "g/contested"));
    });

    it("lists what begins with a prefix, in order of key, and nothing beside it", async () => {
      for (const key of ["h/b/2", "h/a", "h/b/1", "h-other/x", "h/b.txt"]) await store.put(key, Buffer.from(key));
      expect(await keys(store, "h/")).toEqual(["h/a", "h/b.txt", "h/b/1", "h/b/2"]);
      expect(await keys(store, "nothing/")).toEqual([]);
    });

    it("lists and removes thousands", async () => {
      const names = Array.from({ length: 2_500 }, (_, i) => `i/${String(i).padStart(5, "0")}`);
      for (let from = 0; from < names.length; from += 100) {
        await Promise.all(names.slice(from, from + 100).map((key) => store.put(key, Buffer.from(key))));
      }
      expect(await keys(store, "i/")).toEqual(names);
      expect(await store.removeAll("i/")).toBe(2_500);
      expect(await keys(store, "i/")).toEqual([]);
      expect(await store.removeAll("i/")).toBe(0);
    }, 60_000);

    it.each(["", "/a", "a//b", "../a", "a/../b", "a/./b", "a\\b", "a\u0000b", "a b", "ü", "x".repeat(513), "a/"])(
      "refuses %j as a key",
      async (key) => {
        const error = await Promise.resolve()
          .then(() => store.put(key, Buffer.from("x")))
          .catch((thrown: unknown) => thrown);
        expect(error).toBeInstanceOf(ServingError);
        expect(error).toMatchObject({ code: "INVALID_REQUEST" });
      },
    );

    it("says that it can be written", async () => {
      await expect(store.check()).resolves.toBeUndefined();
    });
  });
}

async function read(store: ObjectStore, key: string): Promise<string> {
  return text((await store.get(key))!.body);
}

async function keys(store: ObjectStore, prefix: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of store.list(prefix)) found.push(key);
  return found;
}

async function* parts(part: Uint8Array, count: number): AsyncIterable<Uint8Array> {
  for (let i = 0; i < count; i++) yield part;
}

async function* breaking(): AsyncIterable<Uint8Array> {
  yield Buffer.alloc(100_000);
  throw new Error("the sheet broke off");
}

async function* endless(afterSome: () => void): AsyncIterable<Uint8Array> {
  for (let i = 0; i < 1_000; i++) {
    if (i === 8) afterSome();
    yield Buffer.alloc(1024 * 1024);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
