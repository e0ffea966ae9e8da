import { describe, expect, it } from "vitest";
import { pictureSize } from "./picture-size.ts";

/** Made with Pillow: 7 x 5 pixels of one grey. */
const FILES = {
  PNG: "iVBORw0KGgoAAAANSUhEUgAAAAcAAAAFCAAAAACs8akEAAAAFElEQVR4nGNsYGBgYGBgYGLATwMAFHAAipk5oQoAAAAASUVORK5CYII=",
  JPEG: "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////////////wAALCAAFAAcBARE=",
  "progressive JPEG":
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////////////wgALCAAFAAcBARE=",
  "lossy WebP": "UklGRiQAAABXRUJQVlA4IBgAAABQAQCdASoHAAUADMDOJaQABHQAAAAAAAA=",
  "lossless WebP": "UklGRh4AAABXRUJQVlA4TBEAAAAvBgABAAdQwAIWsP+BiOh/AAA=",
  "extended WebP":
    "UklGRkgAAABXRUJQVlA4WAoAAAAQAAAABgAABAAAQUxQSAoAAAABB1DAiAhERP8DVlA4IBgAAABQAQCdASoHAAUADMDOJaQABHQAAAAAAAA=",
};

describe("pictureSize", () => {
  it.each(Object.entries(FILES))("reads the size of a %s file from its head", (_kind, base64) => {
    expect(pictureSize(Buffer.from(base64, "base64"))).toEqual({ width: 7, height: 5 });
  });

  it("has none for what is cut short or is no picture", () => {
    for (const base64 of Object.values(FILES))
      expect(pictureSize(Buffer.from(base64, "base64").subarray(0, 20))).toBe(undefined);
    expect(pictureSize(Buffer.alloc(64))).toBe(undefined);
    expect(pictureSize(Buffer.concat([Buffer.from([0xff, 0xd8, 0xff]), Buffer.alloc(64)]))).toBe(undefined);
  });

  it("ends on a JPEG whose segments have no length", () => {
    expect(pictureSize(Buffer.concat([Buffer.from([0xff, 0xd8]), Buffer.alloc(4096, 0xff)]))).toBe(undefined);
  });
});
