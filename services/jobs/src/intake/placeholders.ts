import { ServingError } from "@atelier/core";
import { columnName } from "./columns.ts";
import { shown } from "./sheet.ts";

/** A text with columns in it: `"{product}, {colour}"`. Braces that are text are doubled. */
export interface Placeholders {
  readonly columns: readonly string[];
  /** `cell` gives a column's text. */
  fill(cell: (column: string) => string): string;
}

/** @throws ServingError INVALID_REQUEST naming `field` and the place. */
export function parsePlaceholders(text: string, field: string): Placeholders {
  const literals: string[] = [""];
  const columns: string[] = [];
  const say = (literal: string) => {
    literals[literals.length - 1] += literal;
  };
  for (let at = 0; at < text.length; ) {
    const brace = text.slice(at).search(/[{}]/);
    if (brace === -1) {
      say(text.slice(at));
      break;
    }
    say(text.slice(at, at + brace));
    at += brace;
    const character = text[at]!;
    if (text[at + 1] === character) {
      say(character);
      at += 2;
      continue;
    }
    const close = text.indexOf("}", at);
    const name = columnName(text.slice(at + 1, close));
    if (character === "}" || close === -1 || name === "" || name.includes("{")) {
      throw badBrace(text, at, field);
    }
    columns.push(name);
    literals.push("");
    at = close + 1;
  }
  return {
    columns,
    fill: (cell) => {
      let filled = literals[0]!;
      for (let i = 0; i < columns.length; i++) filled += cell(columns[i]!) + literals[i + 1]!;
      return filled;
    },
  };
}

function badBrace(text: string, at: number, field: string): ServingError {
  const where = `${field} has ${shown(text.slice(at, at + 20))} at character ${at + 1}`;
  const message = `${where}; a placeholder is {column}, and a brace that is text is doubled`;
  return new ServingError("INVALID_REQUEST", message, { field });
}

/** @throws ServingError INVALID_REQUEST naming a placeholder that is no column, and the columns. */
export function checkPlaceholders(
  { columns }: Placeholders,
  { field, known }: { readonly field: string; readonly known: Iterable<string> },
): void {
  const names = [...known];
  const unknown = columns.find((column) => !names.includes(column));
  if (unknown === undefined) return;
  const listed =
    names.length === 0 ? "there are no columns" : `the columns are ${names.map((name) => shown(name)).join(", ")}`;
  throw new ServingError("INVALID_REQUEST", `${field} has the placeholder {${unknown}}, and ${listed}`, { field });
}
