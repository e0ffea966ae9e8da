import { ServingError } from "@atelier/core";
import { checkColumns, columnName } from "./columns.ts";
import { type BadRow, BLOCK_ROWS, ROW_CHARS_MAX, type RowBlock, RowProblem, type SheetRow, shown } from "./sheet.ts";

/**
 * Rows of a CSV file by RFC 4180: cells in quotes may hold delimiters, line ends and doubled quotes. The delimiter is the
 * one of comma, semicolon and tab that the header has most of, or what Excel's first line `sep=;` says. Quotes inside an
 * unquoted cell are text. Rows of empty cells alone are left out.
 *
 * A parser of our own, since a quote that is never closed must cost one row and not all that follow: a bad row ends at
 * its first line end, and the next line is read as if nothing had been.
 *
 * @throws ServingError INVALID_REQUEST of a sheet that is empty or whose header is bad.
 */
export async function* csvRows(text: AsyncIterable<string>): AsyncIterable<RowBlock> {
  const parser = new CsvParser();
  for await (const part of text) {
    for (const block of parser.take(part)) yield block;
  }
  for (const block of parser.end()) yield block;
}

interface Record {
  readonly line: number;
  readonly cells: readonly string[];
}

class CsvParser {
  #text = "";
  #at = 0;
  #line = 1;
  #end = false;
  #delimiter: string | undefined;
  #columns: readonly string[] | undefined;
  /** The rest of an over-long line is passed over. */
  #passing = false;

  *take(text: string): Iterable<RowBlock> {
    this.#text = this.#text.slice(this.#at) + text;
    this.#at = 0;
    yield* this.#blocks();
  }

  *end(): Iterable<RowBlock> {
    this.#end = true;
    yield* this.take("");
    if (this.#columns === undefined) throw refused("the sheet is empty: it has no header");
  }

  *#blocks(): Iterable<RowBlock> {
    if (this.#delimiter === undefined && !this.#findDelimiter()) return;
    let block: (SheetRow | BadRow)[] = [];
    for (;;) {
      const record = this.#record();
      if (record === undefined) break;
      const row = this.#row(record);
      if (row !== undefined) block.push(row);
      if (block.length < BLOCK_ROWS) continue;
      yield block;
      block = [];
    }
    if (block.length > 0) yield block;
  }

  #row(record: Record | BadRow): SheetRow | BadRow | undefined {
    if (this.#columns === undefined) {
      if ("problem" in record) throw refused(`line ${record.line}, the header: ${record.problem.message}`);
      if (record.cells.every((cell) => cell.trim() === "")) return undefined;
      const names = record.cells.map(columnName);
      while (names.at(-1) === "") names.pop();
      checkColumns(names);
      this.#columns = names;
      return undefined;
    }
    if ("problem" in record) return record;
    return rowOf(record, this.#columns);
  }

  /** Of the first line that says anything. False where it has not come yet. */
  #findDelimiter(): boolean {
    let header = this.#text.indexOf("\n", this.#at);
    while (header === this.#at) {
      this.#skipLine(header);
      header = this.#text.indexOf("\n", this.#at);
    }
    if (header === -1 && !this.#end && this.#text.length < ROW_CHARS_MAX) return false;
    const line = this.#text.slice(this.#at, header === -1 ? undefined : header);
    const said = /^"?sep=([,;\t|])"?$/i.exec(line)?.[1];
    if (said !== undefined && header !== -1) {
      this.#skipLine(header);
      this.#delimiter = said;
      return true;
    }
    const bare = line.replace(/"(?:[^"]|"")*"/g, "");
    const counts = [",", ";", "\t"].map((delimiter) => ({ delimiter, count: bare.split(delimiter).length }));
    this.#delimiter = counts.reduce((most, other) => (other.count > most.count ? other : most)).delimiter;
    return true;
  }

  #skipLine(lineEnd: number): void {
    this.#at = lineEnd + 1;
    this.#line++;
  }

  /** The next one; undefined where the text so far does not have it whole. */
  #record(): Record | BadRow | undefined {
    const lineEnd = this.#text.indexOf("\n", this.#at);
    if (this.#passing) {
      this.#at = lineEnd === -1 ? this.#text.length : this.#at;
      if (lineEnd === -1) return undefined;
      this.#passing = false;
      this.#skipLine(lineEnd);
      return this.#record();
    }
    if (lineEnd === -1 && !this.#end) {
      if (this.#text.length - this.#at <= ROW_CHARS_MAX) return undefined;
      this.#passing = true;
      const bad = { line: this.#line, problem: new RowProblem(TOO_LONG) };
      this.#at = this.#text.length;
      return bad;
    }
    if (lineEnd === -1 && this.#at >= this.#text.length) return undefined;
    const line = this.#text.slice(this.#at, lineEnd === -1 ? undefined : lineEnd);
    if (line.includes('"')) return this.#quoted(lineEnd);
    const record = { line: this.#line, cells: line.split(this.#delimiter!) };
    this.#pass(lineEnd);
    return line.length > ROW_CHARS_MAX ? { line: record.line, problem: new RowProblem(TOO_LONG) } : record;
  }

  #pass(lineEnd: number): void {
    this.#at = lineEnd === -1 ? this.#text.length : lineEnd + 1;
    this.#line++;
  }

  #quoted(lineEnd: number): Record | BadRow | undefined {
    const text = this.#text;
    const delimiter = this.#delimiter!;
    const cells: string[] = [];
    const line = this.#line;
    const bad = (message: string): BadRow => {
      this.#pass(lineEnd);
      return { line, problem: new RowProblem(message) };
    };
    for (let at = this.#at; ; ) {
      let next: number;
      if (text[at] === '"') {
        const close = closingQuote(text, at + 1);
        // The last character so far may be half of a doubled quote.
        if (close === -1 || (close + 1 >= text.length && !this.#end)) {
          if (text.length - this.#at > ROW_CHARS_MAX) return bad(`cell ${cells.length + 1} ${NEVER_CLOSED}`);
          if (!this.#end) return undefined;
          return bad(`cell ${cells.length + 1} begins with a quote that is never closed`);
        }
        cells.push(text.slice(at + 1, close).replaceAll('""', '"'));
        next = close + 1;
        while (text[next] === " ") next++;
        if (next >= text.length && !this.#end) return undefined;
        if (next < text.length && text[next] !== delimiter && text[next] !== "\n") {
          const found = shown(text.slice(next, next + 10).split("\n")[0]!);
          return bad(`cell ${cells.length} goes on after its closing quote with ${found}; double quotes inside a cell`);
        }
      } else {
        const toDelimiter = text.indexOf(delimiter, at);
        const toEnd = text.indexOf("\n", at);
        if (toEnd === -1 && toDelimiter === -1 && !this.#end) return undefined;
        next = Math.min(...[toDelimiter, toEnd, text.length].filter((place) => place !== -1));
        cells.push(text.slice(at, next));
      }
      if (text[next] === delimiter) {
        at = next + 1;
        continue;
      }
      const whole = text.slice(this.#at, next);
      if (whole.length > ROW_CHARS_MAX) return bad(TOO_LONG);
      this.#line += whole.split("\n").length;
      this.#at = next + 1;
      return { line, cells };
    }
  }
}

const TOO_LONG = `the row has more than ${ROW_CHARS_MAX} characters`;
const NEVER_CLOSED = `begins with a quote that is not closed within ${ROW_CHARS_MAX} characters`;

/** Place of the quote that ends a cell whose text begins at `from`; -1 where it has not come. */
function closingQuote(text: string, from: number): number {
  for (let at = text.indexOf('"', from); at !== -1; at = text.indexOf('"', at + 2)) {
    if (text[at + 1] !== '"') return at;
  }
  return -1;
}

function rowOf({ line, cells }: Record, columns: readonly string[]): SheetRow | BadRow | undefined {
  const found = new Map<string, string>();
  let empty = true;
  for (let i = 0; i < cells.length; i++) {
    const cell = cells[i]!.trim();
    const column = columns[i];
    if (cell !== "") {
      empty = false;
      if (column === undefined || column === "") return { line, problem: beyond(i, cell, columns) };
    }
    if (column !== undefined && column !== "") found.set(column, cell);
  }
  if (empty) return undefined;
  if (cells.length < columns.length) {
    const message = `the row has ${cells.length} cells and the header ${columns.length}`;
    return { line, problem: new RowProblem(message) };
  }
  return { line, cells: found };
}

function beyond(place: number, cell: string, columns: readonly string[]): RowProblem {
  if (place < columns.length) return new RowProblem(`cell ${place + 1} is ${shown(cell)}, and its column has no name`);
  return new RowProblem(`cell ${place + 1} is ${shown(cell)}, and the header has ${columns.length} columns`);
}

function refused(message: string): ServingError {
  return new ServingError("INVALID_REQUEST", message, { field: "sheet" });
}
