import type { ItemSpec, ItemState } from "../job.ts";
import type { ItemSource, Jobs, JobView } from "../ports.ts";
import { manifestEntry } from "./manifest.ts";
import type { PictureBook } from "./picture-book.ts";

export const CSV_TYPE = "text/csv";

const COLUMNS = [
  "index",
  "row",
  "sku",
  "variant",
  "preset",
  "state",
  "file",
  "prompt",
  "negative_prompt",
  "seed",
  "model",
  "width",
  "height",
  "steps",
  "code",
  "message",
  "attempts",
  "sha256",
  "bytes",
  "device_ms",
  "worker",
] as const;

/** Spreadsheets on many desks take a file without it for one in the desk's own encoding. */
const BYTE_ORDER_MARK = "\ufeff";
const ROWS_TOGETHER = 200;

/** A job's items as a table, all of them or those in `state`, read as it is taken. */
export async function* itemsCsv(
  { record }: JobView,
  { items, jobs, book }: { items: ItemSource; jobs: Pick<Jobs, "states">; book: PictureBook },
  state: ItemState | undefined,
): AsyncIterable<string> {
  const pictures = await book.of(record);
  let text = `${BYTE_ORDER_MARK}${COLUMNS.join(",")}\r\n`;
  let rows = 0;
  for await (const item of items.read(record.id, 0)) {
    const states = jobs.states(record.id);
    if (states === undefined) return; // deleted
    const entry = manifestEntry(item, { record, states, pictures });
    if (state !== undefined && entry.state !== state) continue;
    text += rowOf(item, entry);
    if (++rows % ROWS_TOGETHER !== 0) continue;
    yield text;
    text = "";
  }
  if (text !== "") yield text;
}

function rowOf({ index }: ItemSpec, entry: ReturnType<typeof manifestEntry>): string {
  const { parameters, reason } = entry;
  const cells: Record<(typeof COLUMNS)[number], unknown> = {
    ...entry,
    index,
    width: parameters.width,
    height: parameters.height,
    steps: parameters.steps,
    code: reason?.code,
    message: reason?.message,
  };
  return `${COLUMNS.map((column) => csvCell(cells[column])).join(",")}\r\n`;
}

/**
 * A cell that no spreadsheet runs: what would begin a formula there begins with an apostrophe.
 *
 * Source: RFC 4180; OWASP, "CSV Injection".
 */
export function csvCell(value: unknown): string {
  const text = value === null || value === undefined ? "" : String(value);
  const harmless = typeof value === "string" && /^[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}
