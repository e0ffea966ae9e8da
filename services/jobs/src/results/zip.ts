import { Readable } from "node:stream";
import { crc32, createDeflateRaw } from "node:zlib";

/** A file in an archive: with its bytes, which are stored as they are, or as a stream of any length, which is deflated. */
export type ZipEntry = { readonly name: string; readonly modified: Date } & (
  | { readonly content: Buffer }
  | { readonly stream: AsyncIterable<Buffer> }
);

const UINT16_MAX = 0xffff;
const UINT32_MAX = 0xffffffff;
const STORED = 0;
const DEFLATED = 8;
/** Names are UTF-8; and sizes follow the data. */
const UTF8_FLAG = 1 << 11;
const SIZES_FOLLOW_FLAG = 1 << 3;
const VERSION_ZIP64 = 45;
/** "Made by" Unix, so that permissions are read from the upper half of the attributes: a file that its owner may write. */
const MADE_BY_UNIX = (3 << 8) | VERSION_ZIP64;
const ATTRIBUTES = (0o100644 << 16) >>> 0;

interface Written {
  readonly name: Buffer;
  readonly modified: Date;
  readonly method: number;
  readonly flags: number;
  readonly offset: number;
  readonly crc: number;
  readonly compressedBytes: number;
  readonly bytes: number;
}

/**
 * A ZIP archive, as long as it may be (ZIP64), made as it is read. An entry leaves nothing behind but its line of the table
 * at the end: some hundred bytes. Libraries were tried first: yazl 3.3 keeps each entry's source and walks all entries for
 * each one, and client-zip 2.5 counts no more than 65,535 of them unless the archive is over 4 GiB.
 *
 * Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
 */
export async function* zipOf(entries: AsyncIterable<ZipEntry>): AsyncGenerator<Buffer> {
  const table: Buffer[] = [];
  let offset = 0;
  for await (const entry of entries) {
    const begun = offset;
    for await (const part of "content" in entry ? stored(entry, begun, table) : deflated(entry, begun, table)) {
      offset += part.length;
      yield part;
    }
  }
  const tableBytes = table.reduce((sum, record) => sum + record.length, 0);
  for (let i = 0; i < table.length; i += RECORDS_TOGETHER) yield Buffer.concat(table.slice(i, i + RECORDS_TOGETHER));
  yield endOfArchive({ entries: table.length, tableBytes, tableOffset: offset });
}

const RECORDS_TOGETHER = 500;

function* stored(
  { name, modified, content }: Extract<ZipEntry, { content: Buffer }>,
  offset: number,
  table: Buffer[],
): Generator<Buffer> {
  const bytes = content.length; // a Buffer is below 4 GiB here: one picture
  const written: Written = {
    name: Buffer.from(name),
    modified,
    method: STORED,
    flags: UTF8_FLAG,
    offset,
    crc: crc32(content),
    compressedBytes: bytes,
    bytes,
  };
  yield localHeader(written);
  yield content;
  table.push(tableRecord(written));
}

async function* deflated(
  { name, modified, stream }: Extract<ZipEntry, { stream: AsyncIterable<Buffer> }>,
  offset: number,
  table: Buffer[],
): AsyncGenerator<Buffer> {
  const about = {
    name: Buffer.from(name),
    modified,
    method: DEFLATED,
    flags: UTF8_FLAG | SIZES_FOLLOW_FLAG,
    offset,
  };
  yield localHeader({ ...about, crc: 0, compressedBytes: 0, bytes: 0 });
  let crc = 0;
  let bytes = 0;
  let compressedBytes = 0;
  const counted = Readable.from(
    (async function* () {
      for await (const part of stream) {
        crc = crc32(part, crc);
        bytes += part.length;
        yield part;
      }
    })(),
  );
  const deflate = createDeflateRaw();
  counted.on("error", (error) => deflate.destroy(error));
  try {
    for await (const part of counted.pipe(deflate)) {
      compressedBytes += (part as Buffer).length;
      yield part as Buffer;
    }
  } finally {
    counted.destroy();
  }
  const written: Written = { ...about, crc, compressedBytes, bytes };
  yield sizesAfter(written);
  table.push(tableRecord(written));
}

/** Of a stream, sizes are 0 and follow its data, in the long form: the extra field says so. */
function localHeader({ name, modified, method, flags, crc, compressedBytes, bytes }: Written): Buffer {
  const follow = (flags & SIZES_FOLLOW_FLAG) !== 0;
  const extra = follow ? zip64Field([0, 0]) : Buffer.alloc(0);
  const header = Buffer.alloc(30);
  header.writeUInt32LE(0x04034b50, 0);
  header.writeUInt16LE(follow ? VERSION_ZIP64 : 20, 4);
  header.writeUInt16LE(flags, 6);
  header.writeUInt16LE(method, 8);
  header.writeUInt32LE(dosTime(modified), 10);
  header.writeUInt32LE(crc, 14);
  header.writeUInt32LE(follow ? UINT32_MAX : compressedBytes, 18);
  header.writeUInt32LE(follow ? UINT32_MAX : bytes, 22);
  header.writeUInt16LE(name.length, 26);
  header.writeUInt16LE(extra.length, 28);
  return Buffer.concat([header, name, extra]);
}

function sizesAfter({ crc, compressedBytes, bytes }: Written): Buffer {
  const descriptor = Buffer.alloc(24);
  descriptor.writeUInt32LE(0x08074b50, 0);
  descriptor.writeUInt32LE(crc, 4);
  descriptor.writeBigUInt64LE(BigInt(compressedBytes), 8);
  descriptor.writeBigUInt64LE(BigInt(bytes), 16);
  return descriptor;
}

function tableRecord({ name, modified, method, flags, offset, crc, compressedBytes, bytes }: Written): Buffer {
  const large = [bytes, compressedBytes, offset].filter((value) => value >= UINT32_MAX);
  const extra = large.length === 0 ? Buffer.alloc(0) : zip64Field(large);
  const record = Buffer.alloc(46);
  record.writeUInt32LE(0x02014b50, 0);
  record.writeUInt16LE(MADE_BY_UNIX, 4);
  record.writeUInt16LE(large.length === 0 && method === STORED ? 20 : VERSION_ZIP64, 6);
  record.writeUInt16LE(flags, 8);
  record.writeUInt16LE(method, 10);
  record.writeUInt32LE(dosTime(modified), 12);
  record.writeUInt32LE(crc, 16);
  record.writeUInt32LE(Math.min(compressedBytes, UINT32_MAX), 20);
  record.writeUInt32LE(Math.min(bytes, UINT32_MAX), 24);
  record.writeUInt16LE(name.length, 28);
  record.writeUInt16LE(extra.length, 30);
  record.writeUInt32LE(ATTRIBUTES, 38);
  record.writeUInt32LE(Math.min(offset, UINT32_MAX), 42);
  return Buffer.concat([record, name, extra]);
}

function zip64Field(values: readonly number[]): Buffer {
  const field = Buffer.alloc(4 + 8 * values.length);
  field.writeUInt16LE(0x0001, 0);
  field.writeUInt16LE(8 * values.length, 2);
  for (const [i, value] of values.entries()) field.writeBigUInt64LE(BigInt(value), 4 + 8 * i);
  return field;
}

interface Table {
  readonly entries: number;
  readonly tableBytes: number;
  readonly tableOffset: number;
}

function endOfArchive({ entries, tableBytes, tableOffset }: Table): Buffer {
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(Math.min(entries, UINT16_MAX), 8);
  end.writeUInt16LE(Math.min(entries, UINT16_MAX), 10);
  end.writeUInt32LE(Math.min(tableBytes, UINT32_MAX), 12);
  end.writeUInt32LE(Math.min(tableOffset, UINT32_MAX), 16);
  if (entries < UINT16_MAX && tableBytes < UINT32_MAX && tableOffset < UINT32_MAX) return end;

  const large = Buffer.alloc(56 + 20);
  large.writeUInt32LE(0x06064b50, 0);
  large.writeBigUInt64LE(44n, 4); // of this record, but for its first 12 bytes
  large.writeUInt16LE(MADE_BY_UNIX, 12);
  large.writeUInt16LE(VERSION_ZIP64, 14);
  large.writeBigUInt64LE(BigInt(entries), 24);
  large.writeBigUInt64LE(BigInt(entries), 32);
  large.writeBigUInt64LE(BigInt(tableBytes), 40);
  large.writeBigUInt64LE(BigInt(tableOffset), 48);
  large.writeUInt32LE(0x07064b50, 56); // where that record is
  large.writeBigUInt64LE(BigInt(tableOffset + tableBytes), 64);
  large.writeUInt32LE(1, 72);
  return Buffer.concat([large, end]);
}

/** Two seconds are its finest; UTC, since an archive does not say whose time it is. */
function dosTime(at: Date): number {
  const time = (at.getUTCHours() << 11) | (at.getUTCMinutes() << 5) | (at.getUTCSeconds() >> 1);
  const date = (Math.max(0, at.getUTCFullYear() - 1980) << 9) | ((at.getUTCMonth() + 1) << 5) | at.getUTCDate();
  return ((date << 16) | time) >>> 0;
}
