import { ServingError } from "@atelier/core";
import sharp from "sharp";
import type { RgbImage } from "./image-file.ts";

/** A 12-megapixel PNG of a photograph has about 25 MB. */
export const INIT_IMAGE_BYTES_MAX = 32 * 2 ** 20;
/** The largest telephone cameras have 50 million. What cannot be read as a stream (progressive JPEG) is held whole: 150 MB. */
export const INIT_IMAGE_PIXELS_MAX = 50_000_000;

/**
 * The pixels of a PNG, JPEG or WebP file, brought to `size`: turned as its EXIF orientation says, transparent parts on
 * white, in sRGB, scaled by Lanczos' filter until it covers the size, and cut at both ends of the longer side.
 *
 * diffusers scales with the same filter and distorts the picture where aspects differ; a picture of the size asked for
 * is taken as it is by both.
 *
 * @throws ServingError INVALID_REQUEST naming init_image and what is wrong with it.
 */
export async function readInitImage(
  bytes: Uint8Array,
  { width, height }: { readonly width: number; readonly height: number },
): Promise<RgbImage> {
  if (bytes.length > INIT_IMAGE_BYTES_MAX) {
    throw refused(`has ${bytes.length} bytes; at most ${INIT_IMAGE_BYTES_MAX} are read`);
  }
  // Judged by its first bytes: libvips reads many formats, and each is a parser that a stranger's file could break.
  if (formatOf(bytes) === undefined) throw refused(`(${bytes.length} bytes) is no PNG, JPEG or WebP file`);
  try {
    const picture = sharp(bytes, { limitInputPixels: false, failOn: "warning" });
    const { width: ownWidth, height: ownHeight } = await picture.metadata();
    if (ownWidth * ownHeight > INIT_IMAGE_PIXELS_MAX) {
      const own = `${ownWidth}x${ownHeight}, ${ownWidth * ownHeight} pixels`;
      throw refused(`is ${own}; at most ${INIT_IMAGE_PIXELS_MAX} are read`);
    }
    const pixels = await picture
      .autoOrient()
      .flatten({ background: "white" })
      .resize(width, height, { fit: "cover", kernel: "lanczos3" })
      .toColourspace("srgb")
      .raw({ depth: "uchar" })
      .toBuffer(); // toUint8Array is never freed; see image-file.ts
    return { data: new Uint8Array(pixels), width, height };
  } catch (error) {
    if (error instanceof ServingError) throw error;
    throw refused(`cannot be read: ${firstLine((error as Error).message)}`, error);
  }
}

const MAGIC = {
  png: { 0: [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a] },
  jpeg: { 0: [0xff, 0xd8, 0xff] },
  webp: { 0: [0x52, 0x49, 0x46, 0x46], 8: [0x57, 0x45, 0x42, 0x50] },
};

function formatOf(bytes: Uint8Array): string | undefined {
  return Object.entries(MAGIC).find(([, marks]) =>
    Object.entries(marks).every(([at, mark]) => mark.every((byte, i) => bytes[Number(at) + i] === byte)),
  )?.[0];
}

function refused(complaint: string, cause?: unknown): ServingError {
  return new ServingError("INVALID_REQUEST", `init_image ${complaint}`, { field: "init_image", cause });
}

function firstLine(message: string): string {
  return (message.split("\n")[0] ?? message).slice(0, 200);
}
