import { readFileSync } from "node:fs";
import { endianness } from "node:os";
import { invariant } from "@atelier/core";

/** Where an array lies in the .f32 file, counted in float32 values. */
export interface Span {
  readonly offset: number;
  readonly length: number;
}

export interface GoldenFile<Case> {
  readonly cases: readonly Case[];
  readonly versions: Readonly<Record<string, string>>;
  array(span: Span): Float32Array;
}

/** Reads what golden_file.py wrote: NAME.json says what the cases are, NAME.f32 holds their numbers. */
export function readGolden<Case, Head = unknown>(name: string): GoldenFile<Case> & Head {
  invariant(endianness() === "LE", "golden arrays are little-endian, and so is this machine");
  const head = JSON.parse(readFileSync(new URL(`data/${name}.json`, import.meta.url), "utf8"));
  const bytes = readFileSync(new URL(`data/${name}.f32`, import.meta.url));
  const values = new Float32Array(new Uint8Array(bytes).buffer); // copied: a Buffer may start anywhere
  return {
    ...head,
    array({ offset, length }: Span): Float32Array {
      invariant(offset + length <= values.length, `${name}.f32 holds ${offset + length} values`);
      return values.subarray(offset, offset + length);
    },
  };
}

/** The largest difference between two arrays, in units of the largest value expected (at least 1). NaN is Infinity. */
export function largestError(actual: Float32Array, expected: Float32Array): number {
  invariant(actual.length === expected.length, `${actual.length} values where ${expected.length} are expected`);
  let error = 0;
  let scale = 1;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!);
    error = Number.isNaN(difference) ? Infinity : Math.max(error, difference);
    scale = Math.max(scale, Math.abs(expected[i]!));
  }
  return error / scale;
}
