import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { systemClock } from "@atelier/core";
import { type ObjectStore, openObjectStore } from "@atelier/object-store";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SmallDisk } from "../chaos/small-disk.ts";

const disk = await SmallDisk.make(4);
afterAll(() => disk.remove());
if (!disk.canBeFilled) console.log("no disk is filled: this user may mount no tmpfs");

describe.skipIf(!disk.canBeFilled)("files of objects on a disk that is full", () => {
  const full = { code: "STORAGE_UNAVAILABLE", message: /the object store at \S+ is full \(.*: ENOSPC\)/ };
  let store: ObjectStore;
  let makeRoom: () => Promise<void>;
  beforeAll(async () => {
    store = await openObjectStore(`file:${disk.folder}`, { clock: systemClock });
    await store.put("kept/1", Buffer.from("was there before"));
    makeRoom = await disk.fill();
  });

  it("take no picture and no stream, say that it is full, and leave nothing of either behind", async () => {
    await expect(store.put("new/1", Buffer.alloc(100_000))).rejects.toMatchObject(full);
    await expect(store.put("new/2", stream(100))).rejects.toMatchObject(full);
    await expect(store.put("kept/1", Buffer.alloc(100_000))).rejects.toMatchObject(full);
    await expect(store.check()).rejects.toMatchObject(full);
    expect(await readdir(join(disk.folder, ".unfinished~"))).toEqual([]);
    expect(await listed()).toEqual(["kept/1"]);
  });

  it("are read as before, and the object that was to be replaced is whole", async () => {
    expect(await text((await store.get("kept/1"))!.body)).toBe("was there before");
  });

  it("take objects again once there is room", async () => {
    await makeRoom();
    await store.check();
    await store.put("new/1", Buffer.alloc(100_000));
    expect(await listed()).toEqual(["kept/1", "new/1"]);
  });

  it("leave nothing of a stream that fills it", async () => {
    await expect(store.put("new/3", stream(1_000))).rejects.toMatchObject(full);
    expect(await readdir(join(disk.folder, ".unfinished~"))).toEqual([]);
    await store.put("new/4", Buffer.alloc(100_000));
  });

  async function listed(): Promise<string[]> {
    const keys: string[] = [];
    for await (const { key } of store.list("")) keys.push(key);
    return keys;
  }
});

/** Of so many parts of 10 kB. */
async function* stream(parts: number): AsyncIterable<Uint8Array> {
  for (let i = 0; i < parts; i++) yield Buffer.alloc(10_000);
}
