import { ServingError } from "@atelier/core";
import { REFUSED_FIELDS } from "./options.ts";
import { COLUMN_NAME_CHARS_MAX, COLUMNS_MAX, shown } from "./sheet.ts";

/** Columns that mean something by their name. */
export const FIELD_COLUMNS = new Set([
  "prompt",
  "negative_prompt",
  "width",
  "height",
  "steps",
  "seed",
  "guidance_scale",
  "sampler",
  "karras_sigmas",
  "model",
  "format",
  "quality",
  "sku",
]);

/** A column's name as placeholders find it: "SKU " is sku; names that mean nothing to us keep their case. */
export function columnName(text: string): string {
  const name = text.trim().normalize("NFC");
  const lower = name.toLowerCase();
  return FIELD_COLUMNS.has(lower) || Object.hasOwn(REFUSED_FIELDS, lower) ? lower : name;
}

/** @throws ServingError INVALID_REQUEST naming a column that cannot be one. */
export function checkColumns(names: readonly string[]): void {
  const named = names.filter((name) => name !== "");
  if (named.length === 0) throw refused("the sheet's header names no column");
  if (names.length > COLUMNS_MAX) throw refused(`the sheet has ${names.length} columns and may have ${COLUMNS_MAX}`);
  const seen = new Set<string>();
  for (const name of named) {
    checkColumn(name);
    if (seen.has(name)) throw refused(`the sheet has two columns ${shown(name)}`, name);
    seen.add(name);
  }
}

/** @throws ServingError INVALID_REQUEST. */
export function checkColumn(name: string): void {
  if (name.length > COLUMN_NAME_CHARS_MAX) {
    throw refused(`column ${shown(name)} has a name of more than ${COLUMN_NAME_CHARS_MAX} characters`);
  }
  if (CONTROL.test(name)) throw refused(`column ${shown(name)} has a control character in its name`);
  if (Object.hasOwn(REFUSED_FIELDS, name)) throw refused(`column ${shown(name)}: ${REFUSED_FIELDS[name]}`, name);
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it looks for.
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f]/;

function refused(message: string, field?: string): ServingError {
  return new ServingError("INVALID_REQUEST", message, { field: field?.slice(0, COLUMN_NAME_CHARS_MAX) });
}
