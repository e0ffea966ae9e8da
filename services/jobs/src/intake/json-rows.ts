import { ServingError } from "@atelier/core";
import { checkColumn, columnName } from "./columns.ts";
import {
  type BadRow,
  BLOCK_ROWS,
  COLUMNS_MAX,
  ROW_CHARS_MAX,
  type RowBlock,
  RowProblem,
  type SheetRow,
  shown,
  shownJson,
} from "./sheet.ts";

/** A body of JSON is held whole; longer sheets are sent line by line. */
const JSON_BYTES_MAX = 32 * 1024 * 1024;

/**
 * One JSON object to a line. Empty lines are left out.
 *
 * @throws ServingError INVALID_REQUEST of a column that cannot be one, or of too many.
 */
export async function* jsonlRows(text: AsyncIterable<string>): AsyncIterable<RowBlock> {
  const columns = new KnownColumns();
  let rest = "";
  let line = 1;
  /** The rest of an over-long line is passed over. */
  let passing = false;
  let block: (SheetRow | BadRow)[] = [];
  const take = (text: string, at: number): void => {
    if (text.trim() === "") return;
    block.push(text.length > ROW_CHARS_MAX ? { line: at, problem: tooLong() } : jsonlRow(text, at, columns));
  };
  for await (const part of text) {
    rest += part;
    let from = 0;
    for (let to = rest.indexOf("\n"); to !== -1; to = rest.indexOf("\n", from)) {
      if (!passing) take(rest.slice(from, to), line);
      passing = false;
      from = to + 1;
      line++;
      if (block.length < BLOCK_ROWS) continue;
      yield block;
      block = [];
    }
    rest = rest.slice(from);
    if (rest.length > ROW_CHARS_MAX) {
      if (!passing) block.push({ line, problem: tooLong() });
      passing = true;
      rest = "";
    }
  }
  if (!passing) take(rest, line);
  if (block.length > 0) yield block;
}

/** Rows that a JSON body holds under `items` or `rows`, or is. */
export function* jsonRows(values: readonly unknown[]): Iterable<RowBlock> {
  const columns = new KnownColumns();
  for (let from = 0; from < values.length; from += BLOCK_ROWS) {
    yield values.slice(from, from + BLOCK_ROWS).map((value, i) => rowOfValue(value, from + i + 1, columns));
  }
}

/**
 * A whole JSON document.
 *
 * @throws ServingError PAYLOAD_TOO_LARGE, INVALID_REQUEST.
 */
export async function readJson(text: AsyncIterable<string>): Promise<unknown> {
  const parts: string[] = [];
  let bytes = 0;
  for await (const part of text) {
    parts.push(part);
    bytes += Buffer.byteLength(part);
    if (bytes <= JSON_BYTES_MAX) continue;
    const message = `a job in JSON may have ${JSON_BYTES_MAX} bytes; send a longer one as JSONL (application/x-ndjson) or CSV`;
    throw new ServingError("PAYLOAD_TOO_LARGE", message, { field: "sheet" });
  }
  if (parts.join("").trim() === "") throw refused("the body is empty");
  try {
    return JSON.parse(parts.join("")) as unknown;
  } catch (error) {
    throw refused(`the body is no JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function jsonlRow(text: string, line: number, columns: KnownColumns): SheetRow | BadRow {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { line, problem: new RowProblem(`the line is no JSON: ${why.slice(0, 200)}`) };
  }
  return rowOfValue(value, line, columns);
}

function rowOfValue(value: unknown, line: number, columns: KnownColumns): SheetRow | BadRow {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    return { line, problem: new RowProblem(`the row is ${shownJson(value)}; it must be an object`) };
  }
  const cells = new Map<string, string>();
  for (const [key, cell] of Object.entries(value)) {
    const column = columns.named(key);
    if (cells.has(column)) return { line, problem: new RowProblem(`the row has ${shown(column)} twice`, column) };
    if (typeof cell === "string") cells.set(column, cell.trim());
    else if (cell === null) cells.set(column, "");
    else if (typeof cell === "object") {
      const message = `${column} is ${shownJson(cell)}; it must be a text, a number or true or false`;
      return { line, problem: new RowProblem(message, column) };
    } else cells.set(column, String(cell));
  }
  return { line, cells };
}

/** Columns that were met, so that each name is checked once. */
class KnownColumns {
  readonly #names = new Map<string, string>();

  named(key: string): string {
    const known = this.#names.get(key);
    if (known !== undefined) return known;
    const name = columnName(key);
    if (name === "") throw refused("a row has a field without a name");
    checkColumn(name);
    if (this.#names.size === COLUMNS_MAX) throw refused(`the rows have more than ${COLUMNS_MAX} different fields`);
    this.#names.set(key, name);
    return name;
  }
}

function tooLong(): RowProblem {
  return new RowProblem(`the line has more than ${ROW_CHARS_MAX} characters`);
}

function refused(message: string): ServingError {
  return new ServingError("INVALID_REQUEST", message, { field: "sheet" });
}
