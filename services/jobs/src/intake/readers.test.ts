import { describe, expect, it } from "vitest";
import { csvRows } from "./csv-rows.ts";
import { decodeText } from "./decode-text.ts";
import { jsonlRows } from "./json-rows.ts";
import { type RowBlock, RowProblem } from "./sheet.ts";

describe("Text of a sheet", () => {
  const TEXT = "sku,颜色\nA,红色\nB,蓝色\n";
  const GBK = Buffer.from([
    ...Buffer.from("sku,"),
    ...[0xd1, 0xd5, 0xc9, 0xab, 0x0a],
    ...[0x41, 0x2c, 0xba, 0xec, 0xc9, 0xab, 0x0a],
    ...[0x42, 0x2c, 0xc0, 0xb6, 0xc9, 0xab, 0x0a],
  ]);
  const utf16le = Buffer.from(`\ufeff${TEXT}`, "utf16le");

  it.each([
    ["UTF-8", Buffer.from(TEXT)],
    ["UTF-8 with a byte order mark", Buffer.from(`\ufeff${TEXT}`)],
    ["UTF-16", utf16le],
    ["UTF-16, the other way round", Buffer.from(utf16le).swap16()],
    ["GBK", GBK],
  ])("is found out to be %s, however it is cut", async (_charset, bytes) => {
    for (const size of [1, 2, 3, 7, bytes.length]) expect(await decoded(bytes, { size })).toBe(TEXT);
  });

  it("is found out to be GBK where the first Chinese come after megabytes of ASCII", async () => {
    const ascii = "plain,text\n".repeat(100_000);
    const text = await decoded(Buffer.concat([Buffer.from(ascii), GBK]), { size: 64 * 1024 });
    expect(text).toBe(ascii + TEXT);
  });

  it("holds characters that only GB 18030 has", async () => {
    // U+20087 as the standard codes it, in four bytes.
    expect(await decoded(Buffer.from([0xb0, 0xa1, 0x95, 0x32, 0x90, 0x31]))).toBe("啊\u{20087}");
  });

  it("is read as the charset that was named", async () => {
    // Two characters of GBK that happen to be UTF-8 as well.
    expect(await decoded(Buffer.from([0xc1, 0xaa, 0xcd, 0xa8]), { charset: "GBK" })).toBe("联通");
    expect(await decoded(Buffer.from("a,b", "utf16le"), { charset: "utf-16le" })).toBe("a,b");
  });

  it("has one line end, whatever the file had", async () => {
    for (const size of [1, 2, 100]) expect(await decoded(Buffer.from("a\r\nb\rc\nd\r"), { size })).toBe("a\nb\nc\nd\n");
  });

  it("names the line of bytes that are no text", async () => {
    const good = Buffer.from("sku,颜色\n".repeat(30_000));
    const bad = Buffer.concat([good, Buffer.from("A,x\nB,"), Buffer.from([0xff, 0xff]), Buffer.from("\nC,y\n")]);
    await expect(decoded(bad)).rejects.toThrow(/bytes on line 30002 that are not UTF-8/);
    await expect(decoded(Buffer.from([0x61, 0x0a, 0xff, 0xff]))).rejects.toThrow(
      /on line 2 that are neither UTF-8 nor GB 18030/,
    );
    await expect(decoded(Buffer.from("红\n色"), { charset: "gbk" })).rejects.toThrow(
      /on line \d that are not GB 18030/,
    );
  });

  it.each([
    ["PK\u0003\u0004", /a workbook \(.xlsx\)/],
    ["\u00d0\u00cf\u0011\u00e0\u00a1", /an old workbook/],
    ["\u001f\u008b\u0008", /a gzip file/],
    ["\u0089PNG\r\n", /a PNG picture/],
    ["\u0000\u0001\u0000\u0000\u0000\u0000\u0000\u0000", /no text/],
    ["a\u0000,\u0000b\u0000", /UTF-16 without a byte order mark/],
  ])("is none that begins with %j", async (start, message) => {
    await expect(decoded(Buffer.from(start, "latin1"))).rejects.toThrow(message);
  });
});

describe("Rows of CSV", () => {
  it("have cells in quotes with delimiters, line ends and quotes in them, and the line that they begin on", async () => {
    const text = 'a,b,c\n1,"x, ""y""\nz",2\n\n,,\n"3" ,4 , "5"\n6,7"8,9';
    for (const size of [1, 2, 5, 100]) {
      expect(await csv(text, size)).toEqual([
        'line 2: a=1 b=x, "y"\nz c=2',
        'line 6: a=3 b=4 c="5"',
        'line 7: a=6 b=7"8 c=9',
      ]);
    }
  });

  it.each([
    ["semicolons", "a;b,c;d\n1;2;3\n", ["line 2: a=1 b,c=2 d=3"]],
    ["tabs", "a\tb\n1\t2\n", ["line 2: a=1 b=2"]],
    ["commas although a name has semicolons", '"a;b;c",d\n1,2\n', ["line 2: a;b;c=1 d=2"]],
    ["what sep= says", "sep=;\na,b;c\n1;2\n", ["line 3: a,b=1 c=2"]],
    ["nothing, in one column", "prompt\na b\n", ["line 2: prompt=a b"]],
  ])("are separated by %s", async (_what, text, rows) => {
    expect(await csv(text)).toEqual(rows);
  });

  it("lose one row to a quote that is never closed, and none after it", async () => {
    const lines = Array.from({ length: 40_000 }, (_, i) => (i === 9_000 ? '"broken,1' : `row ${i},1`));
    const rows = await csv(`a,b\n${lines.join("\n")}\n`, 64 * 1024);
    expect(rows).toHaveLength(40_000);
    expect(rows.filter((row) => row.includes("!"))).toEqual([
      "line 9002! cell 1 begins with a quote that is not closed within 262144 characters",
    ]);
    expect(rows.at(-1)).toBe("line 40001: a=row 39999 b=1");
  });

  it("lose one row to a line that is too long", async () => {
    const rows = await csv(`a,b\n1,2\n${"x".repeat(2_000_000)}\n3,4\n`, 64 * 1024);
    expect(rows).toEqual(["line 2: a=1 b=2", "line 3! the row has more than 262144 characters", "line 4: a=3 b=4"]);
  });

  it("may have columns without a name that are empty", async () => {
    expect(await csv("a,,b,\n1,,2,\n3,4,5,\n")).toEqual([
      "line 2: a=1 b=2",
      'line 3! cell 2 is "4", and its column has no name',
    ]);
  });
});

describe("Rows of JSONL", () => {
  it("are objects, a line each, of texts, numbers, truths and nothing", async () => {
    const text = '{"a":" x ","b":1.5}\n\n{"a":true,"b":null}\n[1]\n{"a":{}}\n{"a"\n{"A":1}';
    for (const size of [1, 3, 100]) {
      expect(await jsonl(text, size)).toEqual([
        "line 1: a=x b=1.5",
        "line 3: a=true b=",
        "line 4! the row is [1]; it must be an object",
        "line 5! a is {}; it must be a text, a number or true or false",
        expect.stringMatching(/^line 6! the line is no JSON: /),
        "line 7: A=1",
      ]);
    }
  });

  it("lose one row to a line that is too long", async () => {
    const rows = await jsonl(`{"a":1}\n{"a":"${"x".repeat(1_000_000)}"}\n{"a":2}\n`, 64 * 1024);
    expect(rows).toEqual(["line 1: a=1", "line 2! the line has more than 262144 characters", "line 3: a=2"]);
  });

  it("have at most 200 fields among them", async () => {
    const text = Array.from({ length: 201 }, (_, i) => JSON.stringify({ [`f${i}`]: 1 })).join("\n");
    await expect(jsonl(text)).rejects.toThrow(/more than 200 different fields/);
  });
});

async function decoded(bytes: Uint8Array, { size = 64 * 1024, charset }: { size?: number; charset?: string } = {}) {
  let text = "";
  for await (const part of decodeText(cut(bytes, size), charset)) text += part;
  return text;
}

async function* cut(bytes: Uint8Array, size: number): AsyncIterable<Uint8Array> {
  for (let from = 0; from < bytes.length; from += size) yield bytes.subarray(from, from + size);
}

async function* cutText(text: string, size: number): AsyncIterable<string> {
  for (let from = 0; from < text.length; from += size) yield text.slice(from, from + size);
}

const csv = (text: string, size = 100) => told(csvRows(cutText(text, size)));
const jsonl = (text: string, size = 100) => told(jsonlRows(cutText(text, size)));

async function told(blocks: AsyncIterable<RowBlock>): Promise<string[]> {
  const rows: string[] = [];
  for await (const block of blocks) {
    for (const row of block) {
      if ("problem" in row) {
        expect(row.problem).toBeInstanceOf(RowProblem);
        rows.push(`line ${row.line}! ${row.problem.message}`);
      } else rows.push(`line ${row.line}: ${[...row.cells].map(([column, cell]) => `${column}=${cell}`).join(" ")}`);
    }
  }
  return rows;
}
