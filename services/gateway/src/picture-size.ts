import { asBuffer } from "./as-buffer.ts";

export interface PictureSize {
  readonly width: number;
  readonly height: number;
}

/**
 * The size that a PNG, JPEG or WebP file states, in pixels, as it is stored: no EXIF is heeded. Undefined where its head
 * is cut short or of another kind.
 *
 * Source: the PNG specification, 11.2.2 (IHDR); ITU-T T.81, B.2.2 (frame header); RFC 9649, 2.5 to 2.7.
 */
export function pictureSize(file: Uint8Array): PictureSize | undefined {
  const bytes = asBuffer(file);
  if (bytes.length < 30) return undefined;
  if (bytes.readUInt32BE(0) === 0x89504e47) return { width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20) };
  if (bytes.readUInt16BE(0) === 0xffd8) return jpegSize(bytes);
  return bytes.toString("latin1", 8, 12) === "WEBP" ? webpSize(bytes) : undefined;
}

/** Segments stand one behind the other, each with its length; the frame header is one of them. */
function jpegSize(bytes: Buffer): PictureSize | undefined {
  for (let at = 2; at + 9 <= bytes.length; at += 2 + bytes.readUInt16BE(at + 2)) {
    if (bytes[at] !== 0xff) return undefined;
    const marker = bytes[at + 1]!;
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return { width: bytes.readUInt16BE(at + 7), height: bytes.readUInt16BE(at + 5) };
  }
  return undefined;
}

function webpSize(bytes: Buffer): PictureSize | undefined {
  switch (bytes.toString("latin1", 12, 16)) {
    case "VP8 ":
      return { width: bytes.readUInt16LE(26) & 0x3fff, height: bytes.readUInt16LE(28) & 0x3fff };
    case "VP8L": {
      const bits = bytes.readUInt32LE(21);
      return { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
    }
    case "VP8X":
      return { width: bytes.readUIntLE(24, 3) + 1, height: bytes.readUIntLE(27, 3) + 1 };
    default:
      return undefined;
  }
}
