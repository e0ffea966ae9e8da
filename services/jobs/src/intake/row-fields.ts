import type { ShapeDraft } from "../ports.ts";
import { RowProblem, type SheetRow, shown } from "./sheet.ts";

/** What a row itself says of its pictures; an empty cell says nothing. */
export interface RowFields {
  readonly draft: ShapeDraft;
  readonly prompt: string | undefined;
  readonly negativePrompt: string | undefined;
  readonly seed: number | undefined;
  readonly sku: string | undefined;
}

const NONE: ShapeDraft = {};

/** Limits are the model's, and the gateway checks them; what is no number at all is found here. @throws RowProblem. */
export function readRowFields({ cells }: SheetRow): RowFields {
  let draft: Record<string, string | number | boolean> | undefined;
  for (const [field, read] of SHAPE_FIELDS) {
    const cell = cells.get(field);
    if (cell === undefined || cell === "") continue;
    draft ??= {};
    draft[field] = read(cell, field);
  }
  const seed = cells.get("seed");
  return {
    draft: (draft as ShapeDraft | undefined) ?? NONE,
    prompt: cells.get("prompt") || undefined,
    negativePrompt: cells.get("negative_prompt") || undefined,
    seed: seed === undefined || seed === "" ? undefined : wholeNumber(seed, "seed"),
    sku: cells.get("sku") || undefined,
  };
}

type Read = (cell: string, field: string) => string | number | boolean;

const SHAPE_FIELDS: readonly (readonly [keyof ShapeDraft, Read])[] = [
  ["model", shortText],
  ["width", wholeNumber],
  ["height", wholeNumber],
  ["steps", wholeNumber],
  ["guidance_scale", number],
  ["sampler", shortText],
  ["karras_sigmas", truth],
  ["format", shortText],
  ["quality", wholeNumber],
];

const SHORT_CHARS_MAX = 200;

function shortText(cell: string, field: string): string {
  if (cell.length <= SHORT_CHARS_MAX) return cell;
  throw new RowProblem(`${field} is ${shown(cell)}; it has at most ${SHORT_CHARS_MAX} characters`, field);
}

function wholeNumber(cell: string, field: string): number {
  const value = /^\d{1,16}(?:\.0+)?$/.test(cell) ? Number(cell) : Number.NaN;
  if (Number.isSafeInteger(value)) return value;
  throw new RowProblem(
    `${field} is ${shown(cell)}; it must be a whole number from 0 to ${Number.MAX_SAFE_INTEGER}`,
    field,
  );
}

function number(cell: string, field: string): number {
  if (/^\d{1,6}(?:\.\d{1,12})?$/.test(cell)) return Number(cell);
  throw new RowProblem(`${field} is ${shown(cell)}; it must be a number such as 7.5`, field);
}

function truth(cell: string, field: string): boolean {
  const value = { true: true, false: false }[cell.toLowerCase()];
  if (value !== undefined) return value;
  throw new RowProblem(`${field} is ${shown(cell)}; it must be true or false`, field);
}
