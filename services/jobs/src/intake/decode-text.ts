import { ServingError } from "@atelier/core";

/** So much is looked at from the first byte that is not ASCII on, to tell UTF-8 from GB 18030. */
const LOOKED_AT_BYTES = 64 * 1024;

/**
 * Bytes as text with "\n" between lines, whatever ended them. The charset is `named`, or that of a byte order mark, or
 * UTF-8 where the bytes are that, or GB 18030 (which GBK and GB 2312 are part of) where they are not.
 *
 * Two bytes of GBK can be UTF-8 by chance; 64 KiB of Chinese are not. A short sheet can name its charset.
 *
 * @throws ServingError INVALID_REQUEST of a file that is no text, and of bytes that fit no charset, naming the line.
 */
export async function* decodeText(body: AsyncIterable<Uint8Array>, named?: string): AsyncIterable<string> {
  const decoder = new SheetDecoder(named);
  const lines = new LineEnds();
  for await (const bytes of body) {
    const text = lines.unify(decoder.take(bytes));
    if (text !== "") yield text;
  }
  const last = lines.unify(decoder.end()) + lines.end();
  if (last !== "") yield last;
}

class SheetDecoder {
  readonly #named: string | undefined;
  #charset: string | undefined;
  #decoder: InstanceType<typeof TextDecoder> | undefined;
  /** Bytes that wait until it is known what they are. */
  #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #begun = false;
  #line = 1;

  constructor(named: string | undefined) {
    this.#named = named === undefined ? undefined : knownCharset(named);
  }

  take(bytes: Uint8Array): string {
    if (this.#decoder !== undefined) return this.#decode(bytes, false);
    if (this.#waitingBytes === 0 && this.#begun && isAscii(bytes)) return this.#ascii(bytes);
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    return this.#waitingBytes >= LOOKED_AT_BYTES ? this.#decide(false) : "";
  }

  end(): string {
    if (this.#decoder === undefined) return this.#decide(true);
    return this.#decode(new Uint8Array(0), true);
  }

  #decide(end: boolean): string {
    const bytes = Buffer.concat(this.#waiting);
    this.#waiting = [];
    this.#waitingBytes = 0;
    if (!this.#begun) refuseBinary(bytes, this.#named);
    const charset = this.#named ?? (this.#begun ? undefined : markedCharset(bytes));
    this.#begun = true;
    if (charset === undefined && isAscii(bytes)) return this.#ascii(bytes);
    this.#charset = charset ?? (isUtf8(bytes, end) ? "utf-8" : "gb18030");
    this.#decoder = new TextDecoder(this.#charset, { fatal: true });
    return this.#decode(bytes, end);
  }

  #ascii(bytes: Uint8Array): string {
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
    this.#line += newlines(text);
    return text;
  }

  #decode(bytes: Uint8Array, end: boolean): string {
    try {
      const text = this.#decoder!.decode(bytes, { stream: !end });
      this.#line += newlines(text);
      return text;
    } catch {
      throw this.#refusal(bytes);
    }
  }

  #refusal(bytes: Uint8Array): ServingError {
    const guessed = this.#named === undefined && this.#charset === "gb18030";
    const what = guessed ? "neither UTF-8 nor GB 18030 (GBK)" : `not ${CHARSET_TITLES[this.#charset!]}`;
    const line = this.#line + (this.#charset!.startsWith("utf-16") ? 0 : goodLines(bytes, this.#charset!));
    const message = `the sheet has bytes on line ${line} that are ${what}; save it as UTF-8, or name its charset`;
    return new ServingError("INVALID_REQUEST", message, { field: "charset" });
  }
}

const CHARSET_TITLES: Record<string, string> = {
  "utf-8": "UTF-8",
  "utf-16le": "UTF-16",
  "utf-16be": "UTF-16",
  gb18030: "GB 18030 (GBK)",
};

const CHARSETS: Record<string, string> = {
  utf8: "utf-8",
  utf16: "utf-16le",
  utf16le: "utf-16le",
  utf16be: "utf-16be",
  gb18030: "gb18030",
  gbk: "gb18030",
  gb2312: "gb18030",
  cp936: "gb18030",
  usascii: "utf-8",
  ascii: "utf-8",
};

/** @throws ServingError INVALID_REQUEST. */
export function knownCharset(name: string): string {
  const charset = CHARSETS[name.toLowerCase().replace(/[-_]/g, "")];
  if (charset !== undefined) return charset;
  const message = `charset is ${JSON.stringify(name.slice(0, 40))}; it must be utf-8, utf-16, utf-16be, gbk or gb18030`;
  throw new ServingError("INVALID_REQUEST", message, { field: "charset" });
}

function markedCharset(bytes: Uint8Array): string | undefined {
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) return "utf-8";
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return "utf-16le";
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return "utf-16be";
  return undefined;
}

const MAGIC: readonly { readonly bytes: string; readonly what: string }[] = [
  { bytes: "PK\x03\x04", what: "a workbook (.xlsx) or another ZIP file" },
  { bytes: "\xd0\xcf\x11\xe0", what: "an old workbook (.xls)" },
  { bytes: "\x1f\x8b", what: "a gzip file" },
  { bytes: "%PDF-", what: "a PDF" },
  { bytes: "\x89PNG", what: "a PNG picture" },
  { bytes: "\xff\xd8\xff", what: "a JPEG picture" },
];

/** Far enough for a header in UTF-16 without a mark to show. */
const BINARY_LOOKED_AT_BYTES = 4_096;
const CELL_NULS_MAX = 4;

function refuseBinary(bytes: Buffer, named: string | undefined): void {
  const start = bytes.toString("latin1", 0, 8);
  const known = MAGIC.find((magic) => start.startsWith(magic.bytes));
  if (known !== undefined) throw notText(known.what);
  if (named?.startsWith("utf-16") || markedCharset(bytes)?.startsWith("utf-16")) return;
  const looked = bytes.subarray(0, BINARY_LOOKED_AT_BYTES);
  const nul = looked.indexOf(0);
  if (nul === -1) return;
  const nuls = looked.filter((byte) => byte === 0).length;
  // Text of mostly Latin letters in UTF-16 has every second byte 0; one or two are a cell's.
  if (nuls > looked.length / 4) throw notText("UTF-16 without a byte order mark (then name it as charset) or no text");
  if (nuls > Math.max(CELL_NULS_MAX, looked.length / 50)) throw notText("no text");
}

function notText(what: string): ServingError {
  const message = `the sheet is ${what}; save it as CSV UTF-8 and send that`;
  return new ServingError("INVALID_REQUEST", message, { field: "sheet" });
}

function isAscii(bytes: Uint8Array): boolean {
  for (let i = 0; i < bytes.length; i++) if (bytes[i]! > 127) return false;
  return true;
}

/** Whether it is UTF-8, its last character perhaps cut off where more follows. */
function isUtf8(bytes: Uint8Array, end: boolean): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: !end });
    return true;
  } catch {
    return false;
  }
}

/** Whole lines at the start of `bytes` that decode; no other character of these charsets has the byte of a line feed. */
function goodLines(bytes: Uint8Array, charset: string): number {
  let lines = 0;
  for (let from = 0; ; ) {
    const to = bytes.indexOf(0x0a, from);
    if (to === -1) return lines;
    try {
      new TextDecoder(charset, { fatal: true }).decode(bytes.subarray(from, to));
    } catch {
      // The rest of a character that began in the bytes before is no fault.
      if (from > 0) return lines;
      const cut = [1, 2, 3].some((skipped) => decodes(bytes.subarray(skipped, to), charset));
      if (!cut) return lines;
    }
    lines++;
    from = to + 1;
  }
}

function decodes(bytes: Uint8Array, charset: string): boolean {
  try {
    new TextDecoder(charset, { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

/** Makes "\r\n" and "\r" a "\n". */
class LineEnds {
  /** The text so far ended in "\r", which may be half of a line end. */
  #carriage = false;

  unify(text: string): string {
    if (text === "") return text;
    let whole = this.#carriage ? `\r${text}` : text;
    this.#carriage = whole.endsWith("\r");
    if (this.#carriage) whole = whole.slice(0, -1);
    return whole.includes("\r") ? whole.replace(/\r\n?/g, "\n") : whole;
  }

  end(): string {
    return this.#carriage ? "\n" : "";
  }
}

function newlines(text: string): number {
  let count = 0;
  for (let at = text.indexOf("\n"); at !== -1; at = text.indexOf("\n", at + 1)) count++;
  return count;
}
