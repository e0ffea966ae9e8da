import sharp from "sharp";

/** Interleaved 8-bit RGB, [height, width, 3]. */
export interface RgbImage {
  readonly data: Uint8Array<ArrayBuffer>;
  readonly width: number;
  readonly height: number;
}

/** "raw" is the pixels themselves, for callers that compare or go on processing. */
export const IMAGE_FORMATS = ["png", "jpeg", "webp", "raw"] as const;
export type ImageFormat = (typeof IMAGE_FORMATS)[number];

export interface ImageEncoding {
  readonly format: ImageFormat;
  /** 1..100 for JPEG and WebP; the others have none. */
  readonly quality: number;
}

export interface EncodedImage {
  readonly data: Uint8Array<ArrayBuffer>;
  readonly mediaType: string;
  readonly width: number;
  readonly height: number;
}

export const QUALITY_DEFAULT = 90;

// One thread each: the device's sessions have the cores. PNG level 1 takes a third of the default level's time for files 10 % larger.
sharp.concurrency(1);
sharp.cache(false);

/** The file of a picture, its bytes in a buffer that can be transferred to another thread. */
export async function encodeImage(image: RgbImage, { format, quality }: ImageEncoding): Promise<EncodedImage> {
  const { data, width, height } = image;
  if (format === "raw") return { data, mediaType: "image/x-rgb", width, height };
  const picture = sharp(data, { raw: { width, height, channels: 3 } });
  const encoded = {
    png: () => picture.png({ compressionLevel: 1 }),
    jpeg: () => picture.jpeg({ quality }),
    webp: () => picture.webp({ quality, effort: 0 }),
  }[format]();
  // Not toUint8Array: sharp 0.35 never frees what that gives (some 18 KB for each PNG of 256x256); Buffers are freed.
  const file = new Uint8Array(await encoded.toBuffer());
  return { data: file, mediaType: `image/${format}`, width, height };
}
