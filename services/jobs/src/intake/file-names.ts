import { invariant } from "@atelier/core";
import type { ItemShape } from "../job.ts";

/** Of a name, its extension left out; file systems have 255, and what makes it unique comes on top. */
const NAME_BYTES_MAX = 180;

export const EXTENSIONS: Record<ItemShape["format"], string> = { png: "png", jpeg: "jpg", webp: "webp" };

/**
 * A text as a file's name on Linux, Windows and macOS: path separators, what Windows reserves and control characters become
 * "_", dots and spaces at its ends go, device names get a "_" in front, and it is cut between characters. Other scripts
 * are kept, in Unicode NFC. Empty where nothing is left.
 *
 * Source: Microsoft, "Naming Files, Paths, and Namespaces".
 */
export function safeName(text: string): string {
  const name = text
    .toWellFormed()
    .normalize("NFC")
    .replace(UNSAFE, "_")
    .replace(/^[\s.]+|[\s.]+$/gu, "");
  const cut = cutBytes(name, NAME_BYTES_MAX).replace(/[\s.]+$/u, "");
  return DEVICE.test(cut) ? `_${cut}` : cut;
}

/** Controls, marks that turn text around or are not seen, and what a path or Windows gives a meaning. */
const UNSAFE = /[\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}<>:"/\\|?*]/gu;
const DEVICE = /^(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:\.|$)/i;

function cutBytes(text: string, bytesMax: number): string {
  if (Buffer.byteLength(text) <= bytesMax) return text;
  let bytes = 0;
  let cut = "";
  for (const character of text) {
    bytes += Buffer.byteLength(character);
    if (bytes > bytesMax) return cut;
    cut += character;
  }
  return cut;
}

/**
 * Names that no two items of a job share, not even where case makes no difference. It remembers 8 bytes of each, so that
 * a name may be taken for a known one by a chance of about 1 in 10^10 and gets a number that it did not need.
 */
export class UniqueNames {
  readonly #taken = new NumberSet();

  /** `name` or, where that is taken, with "-2", "-3" ...; then with the item's index, which nobody else has. */
  take(name: string, index: number): string {
    if (this.#take(name)) return name;
    for (let again = 2; again <= TRIES; again++) if (this.#take(`${name}-${again}`)) return `${name}-${again}`;
    for (let mark = `${name}-i${index}`; ; mark += "_") if (this.#take(mark)) return mark;
  }

  #take(name: string): boolean {
    return this.#taken.add(digest(name.toLowerCase()));
  }
}

/** A thousand rows of one SKU are found a name without trying a thousand. */
const TRIES = 9;

/** 53 bits of a text: two FNV-1a of 32 bits with different starts, mixed. Source: Fowler, Noll, Vo. */
function digest(text: string): number {
  let low = 0x811c9dc5;
  let high = 0x9747b28c;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    low = Math.imul(low ^ code, 0x01000193);
    high = Math.imul(high ^ (code + i), 0x85ebca6b) ^ (high >>> 13);
  }
  high = Math.imul(high ^ (low >>> 15), 0xc2b2ae35);
  return ((high >>> 0) % 2 ** 21) * 2 ** 32 + (low >>> 0);
}

/** A set of whole numbers in one array: a Set of a million takes five times as much. */
class NumberSet {
  /** 0 is a free place; what is stored is one more. */
  #places = new Float64Array(1_024);
  #size = 0;

  /** False where it is there already. */
  add(value: number): boolean {
    if (this.#size * 2 >= this.#places.length) this.#grow();
    const added = this.#put(value + 1);
    if (added) this.#size++;
    return added;
  }

  #put(stored: number): boolean {
    const mask = this.#places.length - 1;
    for (let at = (stored % 0x7fffffff) & mask; ; at = (at + 1) & mask) {
      if (this.#places[at] === stored) return false;
      if (this.#places[at] !== 0) continue;
      this.#places[at] = stored;
      return true;
    }
  }

  #grow(): void {
    const before = this.#places;
    this.#places = new Float64Array(before.length * 2);
    for (const stored of before) if (stored !== 0) invariant(this.#put(stored), "a number is in the set once");
  }
}
