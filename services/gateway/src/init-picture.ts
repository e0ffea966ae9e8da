import { ServingError } from "@atelier/core";

/** A picture that images start from. */
export interface InitPicture {
  /** The file, as it came. */
  readonly bytes: Uint8Array;
  /** How much of the schedule is run, over 0 and up to 1. */
  readonly strength: number;
}

/** Enough to follow a new prompt, little enough to keep the picture's layout. */
export const STRENGTH_DEFAULT = 0.6;

/**
 * The picture of a request, from base64; undefined where there is none. Only its first bytes are looked at: the worker
 * decodes it, before it accepts anything.
 *
 * @throws ServingError INVALID_REQUEST naming init_image or strength.
 */
export function readInitPicture({
  initImage,
  strength,
}: {
  readonly initImage?: string | undefined;
  readonly strength?: number | undefined;
}): InitPicture | undefined {
  if (initImage === undefined) {
    if (strength === undefined) return undefined;
    const message = `strength is ${strength}, but there is no init_image that it could apply to`;
    throw new ServingError("INVALID_REQUEST", message, { field: "strength" });
  }
  const bytes = bytesOf(initImage);
  if (!isPicture(bytes)) throw refused(`(${bytes.length} bytes) is no PNG, JPEG or WebP file`);
  return { bytes, strength: strength ?? STRENGTH_DEFAULT };
}

/** Node's decoder skips what is not base64, and would make some bytes of anything. */
function bytesOf(text: string): Uint8Array {
  if (text.startsWith("data:")) throw refused("is a data: URL; send the base64 behind its comma");
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) throw refused("is not base64");
  return Buffer.from(text, "base64");
}

function isPicture(bytes: Uint8Array): boolean {
  const start = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 12)).toString("latin1");
  return start.startsWith("\x89PNG\r\n\x1a\n") || start.startsWith("\xff\xd8\xff") || /^RIFF.{4}WEBP/s.test(start);
}

function refused(complaint: string): ServingError {
  return new ServingError("INVALID_REQUEST", `init_image ${complaint}`, { field: "init_image" });
}
