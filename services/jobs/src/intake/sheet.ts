/** A row of a sheet. Cells are text whatever they were, trimmed; a cell that the sheet lacks is absent. */
export interface SheetRow {
  /** Of the file, from 1, where the row begins; of JSON, the row's own number. */
  readonly line: number;
  readonly cells: ReadonlyMap<string, string>;
}

/** Something that should have been a row. */
export interface BadRow {
  readonly line: number;
  readonly problem: RowProblem;
}

/** What is wrong with a row: its message is a whole sentence without the line. */
export class RowProblem {
  readonly message: string;
  readonly column: string | undefined;

  constructor(message: string, column?: string) {
    this.message = message;
    this.column = column;
  }
}

/** Rows come in blocks, so that nobody waits for a promise for each. */
export type RowBlock = readonly (SheetRow | BadRow)[];

export const COLUMNS_MAX = 200;
export const COLUMN_NAME_CHARS_MAX = 200;
/** In characters. The longest row that makes sense has two prompts of 10,000 bytes. */
export const ROW_CHARS_MAX = 256 * 1024;
export const BLOCK_ROWS = 500;

/** For messages: quoted, and cut where it is long. */
export function shown(value: string): string {
  const text = JSON.stringify(value.length > SHOWN_CHARS_MAX ? value.slice(0, SHOWN_CHARS_MAX) : value);
  return value.length > SHOWN_CHARS_MAX ? `${text}... (${value.length} characters)` : text;
}

/** A value of JSON, for messages. */
export function shownJson(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > SHOWN_CHARS_MAX ? `${text.slice(0, SHOWN_CHARS_MAX)}... (${text.length} characters)` : text;
}

const SHOWN_CHARS_MAX = 80;
