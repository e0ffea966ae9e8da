import { createHash } from "node:crypto";
import { asBuffer } from "../as-buffer.ts";
import type { Generation, GenerationReceipt } from "../image-request.ts";

/** A generation as the cache keeps it. */
export interface KeptResult {
  readonly generation: Generation;
  readonly subject: Subject;
  /** The newest purge that was known when its making began. */
  readonly bornAt: number;
  /** Milliseconds since the Unix epoch; then it is made anew. */
  readonly untilMs: number;
}

/** What a purge can name of a result. */
export interface Subject {
  /** Whom it is kept for: a tenant, or everybody. */
  readonly keeper: string;
  readonly model: string;
  readonly adapters: readonly string[];
  /** In Unicode NFC. */
  readonly prompt: string;
}

const MAGIC = Buffer.from("ATC1");
const DIGEST_BYTES = 32;
const HEADER_AT = MAGIC.length + DIGEST_BYTES + 4;

/** Of what a result takes in memory beside its pictures. */
const OVERHEAD_BYTES = 2_048;
/** Bytes, and their base64 where anybody asked for JSON. */
const BYTES_PER_BYTE = 1 + 4 / 3;

export function sizeOf({ generation }: Pick<KeptResult, "generation">): number {
  const { prompt, negativePrompt } = generation.receipt;
  const texts = 2 * (prompt.length + negativePrompt.length);
  const bytes = generation.pictures.reduce((sum, { data }) => sum + data.length, 0);
  return Math.ceil(BYTES_PER_BYTE * bytes) + texts + OVERHEAD_BYTES;
}

/**
 * The result as bytes: "ATC1", SHA-256 of the key and all that follows, the header's length (uint32, little-endian),
 * the header in JSON, and the encoded pictures one after another, as they are.
 */
export function writeKept(key: string, { generation, ...about }: KeptResult): Buffer {
  const pictures = generation.pictures.map(({ data, ...rest }) => ({ ...rest, bytes: data.length }));
  const header = Buffer.from(JSON.stringify({ receipt: generation.receipt, pictures, about } satisfies Header));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(header.length);
  const parts = [length, header, ...generation.pictures.map(({ data }) => asBuffer(data))];
  return Buffer.concat([MAGIC, digestOf(key, parts), ...parts]);
}

/** Undefined where it is not whole, or another key's. Its pictures lie in `bytes`, not copied. */
export function readKept(key: string, bytes: Buffer): KeptResult | undefined {
  if (bytes.length < HEADER_AT || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const digest = bytes.subarray(MAGIC.length, MAGIC.length + DIGEST_BYTES);
  if (!digestOf(key, [bytes.subarray(MAGIC.length + DIGEST_BYTES)]).equals(digest)) return undefined;

  // From here on it is what writeKept wrote.
  const picturesAt = HEADER_AT + bytes.readUInt32LE(HEADER_AT - 4);
  const header = JSON.parse(bytes.toString("utf8", HEADER_AT, picturesAt)) as Header;
  let at = picturesAt;
  const pictures = header.pictures.map(({ bytes: length, ...rest }) => {
    const data = bytes.subarray(at, at + length);
    at += length;
    return { ...rest, data };
  });
  return { generation: { pictures, receipt: header.receipt }, ...header.about };
}

interface Header {
  /** JSON leaves out what is undefined, which reads the same. */
  readonly receipt: GenerationReceipt;
  readonly pictures: readonly {
    readonly mediaType: string;
    readonly width: number;
    readonly height: number;
    readonly seed: number;
    readonly bytes: number;
  }[];
  readonly about: Omit<KeptResult, "generation">;
}

function digestOf(key: string, parts: readonly Buffer[]): Buffer {
  const hash = createHash("sha256").update(key).update("\n");
  for (const part of parts) hash.update(part);
  return hash.digest();
}
