import { mkdtemp, readdir, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@atelier/core";
import { afterEach, describe, expect, it } from "vitest";
import { objectStoreContract } from "./object-store.contract.ts";
import { openObjectStore, parseObjectsAddress } from "./open-object-store.ts";

const folders: string[] = [];
afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true, force: true });
});

objectStoreContract("A folder", async () => {
  const folder = await mkdtemp(join(tmpdir(), "atelier-objects-"));
  const store = await openObjectStore(`file:${folder}`, { clock: systemClock });
  return { store, close: () => rm(folder, { recursive: true, force: true }) };
});

describe("FilesStore", () => {
  it("leaves no folder behind that became empty", async () => {
    const { store, folder } = await opened();
    await store.put("jobs/one/pictures/1.png", Buffer.from("x"));
    await store.put("jobs/two/pictures/1.png", Buffer.from("x"));
    await store.removeAll("jobs/one/");
    expect(await readdir(join(folder, "jobs"))).toEqual(["two"]);
    await store.remove("jobs/two/pictures/1.png");
    expect(await readdir(folder)).toEqual([".unfinished~"]);
  });

  it("writes into a folder that was removed since it last did", async () => {
    const { store, folder } = await opened();
    await store.put("jobs/1", Buffer.from("x"));
    await rm(join(folder, "jobs"), { recursive: true });
    await store.put("jobs/2", Buffer.from("y"));
    expect(await store.head("jobs/2")).toBeDefined();
  });

  it("follows no link", async () => {
    const { store, folder } = await opened();
    await writeFile(join(folder, "outside"), "secret");
    await symlink(join(folder, "outside"), join(folder, "link"));
    expect(await store.get("link")).toBeUndefined();
    expect(await store.head("link")).toBeUndefined();
    const keys: string[] = [];
    for await (const { key } of store.list("")) keys.push(key);
    expect(keys).toEqual(["outside"]);
  });

  it("removes what a killed writer left a day ago, and nothing that somebody may still write", async () => {
    const { folder } = await opened();
    const old = join(folder, ".unfinished~", "old");
    await writeFile(old, "half");
    await utimes(old, 1, 1);
    await writeFile(join(folder, ".unfinished~", "new"), "half");
    await openObjectStore(`file:${folder}`, { clock: systemClock });
    expect(await readdir(join(folder, ".unfinished~"))).toEqual(["new"]);
  });

  it("says that its folder cannot be had where a file is on its path", async () => {
    const { folder } = await opened();
    await writeFile(join(folder, "file"), "");
    const opening = openObjectStore(`file:${join(folder, "file", "objects")}`, { clock: systemClock });
    await expect(opening).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE", message: /is a file/ });
  });
});

describe("an address of objects", () => {
  it("is a folder or a bucket", () => {
    expect(parseObjectsAddress("file:/var/objects")).toEqual({ kind: "files", folder: "/var/objects" });
    expect(parseObjectsAddress("file:///var/objects")).toEqual({ kind: "files", folder: "/var/objects" });
    expect(parseObjectsAddress("s3://pictures/prod/eu/")).toEqual({
      kind: "s3",
      bucket: "pictures",
      prefix: "prod/eu",
    });
  });

  it.each([
    "",
    "objects",
    "file:objects",
    "s3://",
    "s3://UPPER",
    "s3://pictures//a",
    "s3://pictures/a/../b",
    "http://host/bucket",
  ])("is not %j", (text) => {
    expect(() => parseObjectsAddress(text)).toThrow(RangeError);
  });
});

async function opened() {
  const folder = await mkdtemp(join(tmpdir(), "atelier-objects-"));
  folders.push(folder);
  return { folder, store: await openObjectStore(`file:${folder}`, { clock: systemClock }) };
}
