import { randomBytes } from "node:crypto";
import { asBuffer } from "../as-buffer.ts";
import type { GeneratedPicture, Generation } from "../image-request.ts";

/** Once for each picture, for as long as that is there: one of the cache is asked for over and over. */
const texts = new WeakMap<Uint8Array, string>();

export function base64Of(data: Uint8Array): string {
  const known = texts.get(data);
  if (known !== undefined) return known;
  const text = asBuffer(data).toString("base64");
  texts.set(data, text);
  return text;
}

const hits = new WeakMap<Generation, Buffer>();

/** What `write` gives, once for as long as the result is kept: to put together a quarter of a megabyte takes its time. */
export function jsonOfHits(generation: Generation, write: () => Buffer): Buffer {
  const known = hits.get(generation);
  if (known !== undefined) return known;
  const json = write();
  hits.set(generation, json);
  for (const { data } of generation.pictures) texts.delete(data); // it lies in there
  return json;
}

/** Stands for a picture's text where the rest is written; nobody can guess it and put it into a prompt. */
const MARK = `picture ${randomBytes(16).toString("hex")} `;
const MARKS = new RegExp(`${MARK}(\\d+)`);

/**
 * `answer` as JSON, in which some values are base64Of `pictures`. Those hold nothing that JSON would escape, so they are
 * copied into their places: to look at each of their characters takes longer than all the rest of an answer.
 */
export function picturesJson(answer: object, pictures: readonly GeneratedPicture[]): Buffer {
  const encoded = pictures.map(({ data }) => base64Of(data));
  const numbers = new Map(encoded.map((text, i) => [text, i]));
  const text = JSON.stringify(answer, (_name, value: unknown) => {
    const number = typeof value === "string" ? numbers.get(value) : undefined;
    return number === undefined ? value : `${MARK}${number}`;
  });
  // Every second one is a picture's number.
  const parts = text.split(MARKS).map((part, i) => (i % 2 === 0 ? part : encoded[Number(part)]!));
  const bytes = parts.reduce((sum, part, i) => sum + (i % 2 === 0 ? Buffer.byteLength(part) : part.length), 0);
  const json = Buffer.allocUnsafe(bytes);
  let at = 0;
  parts.forEach((part, i) => {
    at += json.write(part, at, i % 2 === 0 ? "utf8" : "latin1");
  });
  return json;
}
