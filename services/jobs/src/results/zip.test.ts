import { createRequire } from "node:module";
import { Readable } from "node:stream";
import { describe, expect, it } from "vitest";
import { type ZipEntry, zipOf } from "./zip.ts";

const modified = new Date("2026-11-23T10:20:30Z");

describe("an archive", () => {
  it("is read by others: bytes as they are, streams, names in any script, nothing at all", async () => {
    const picture = Buffer.from(Array.from({ length: 10_000 }, (_, i) => (i * 7919) % 256));
    const text = "one line of many\n".repeat(20_000);
    const archive = await written([
      { name: "杯子 red.png", modified, content: picture },
      { name: "empty.png", modified, content: Buffer.alloc(0) },
      { name: "manifest.jsonl", modified, stream: Readable.from([Buffer.from(text)]) },
      { name: "last.png", modified, content: picture },
    ]);
    expect(archive.length).toBeLessThan(2 * picture.length + text.length / 10); // the stream is deflated
    const files = unzipped(archive);
    expect(files.map(({ entryName }) => entryName)).toEqual([
      "杯子 red.png",
      "empty.png",
      "manifest.jsonl",
      "last.png",
    ]);
    expect(files.map((file) => file.getData().length)).toEqual([10_000, 0, text.length, 10_000]);
    expect(files[0]!.getData()).toEqual(picture); // the reader checks the CRC
    expect(files[2]!.getData().toString()).toBe(text);
    expect(unzipped(await written([]))).toEqual([]);
  });

  it("has more entries than the old form can count", async () => {
    const entries = async function* (): AsyncGenerator<ZipEntry> {
      for (let i = 0; i < 70_000; i++) yield { name: `item-${i}.png`, modified, content: Buffer.from(String(i)) };
    };
    const archive = Buffer.concat(await Readable.from(zipOf(entries())).toArray());
    expect(archive.readUInt16LE(archive.length - 22 + 10)).toBe(0xffff); // see the 64-bit record
    const record = archive.lastIndexOf(Buffer.from([0x50, 0x4b, 6, 6]));
    expect(archive.readBigUInt64LE(record + 32)).toBe(70_000n);
    const table = Number(archive.readBigUInt64LE(record + 48));
    expect(archive.readUInt32LE(table)).toBe(0x02014b50);
    expect(table + Number(archive.readBigUInt64LE(record + 40))).toBe(record);
  });

  it("asks for no entry before what came before it was taken, and lets go of them when it is left", async () => {
    let asked = 0;
    let left = false;
    const entries = async function* (): AsyncGenerator<ZipEntry> {
      try {
        for (; asked < 1_000; asked++) yield { name: `${asked}.png`, modified, content: Buffer.alloc(1_000) };
      } finally {
        left = true;
      }
    };
    const archive = zipOf(entries());
    for (let parts = 0; parts < 20; parts++) await archive.next();
    expect(asked).toBeLessThan(12);
    await archive.return(undefined);
    expect(left).toBe(true);
  });

  it("fails where an entry's stream does", async () => {
    const broken = async function* () {
      yield Buffer.from("half");
      throw new Error("the store is away");
    };
    await expect(written([{ name: "manifest.jsonl", modified, stream: broken() }])).rejects.toThrow(
      "the store is away",
    );
  });
});

async function written(entries: readonly ZipEntry[]): Promise<Buffer> {
  return Buffer.concat(await Readable.from(zipOf(Readable.from(entries))).toArray());
}

/** By another's reader of archives. */
function unzipped(archive: Buffer): { entryName: string; getData(): Buffer }[] {
  const AdmZip = createRequire(import.meta.url)("adm-zip") as new (
    file: Buffer,
  ) => { getEntries(): ReturnType<typeof unzipped> };
  return new AdmZip(archive).getEntries();
}
