import { ServingError } from "@atelier/core";
import type { JobSource } from "../job.ts";
import { csvRows } from "./csv-rows.ts";
import { decodeText, knownCharset } from "./decode-text.ts";
import { jsonlRows, jsonRows, readJson } from "./json-rows.ts";
import { readOptions, SHEET_FORMATS, type SheetFormat, type SubmissionOptions } from "./options.ts";
import { parsePlaceholders } from "./placeholders.ts";
import type { RowBlock } from "./sheet.ts";

/** A submission's options and rows, whatever it came as. */
export interface Sheet {
  readonly kind: JobSource["kind"];
  readonly options: SubmissionOptions;
  readonly rows: AsyncIterable<RowBlock>;
  readonly lineName: "line" | "row";
}

/** @throws ServingError INVALID_REQUEST, PAYLOAD_TOO_LARGE. */
export async function openSheet(
  { contentType, options: beside }: { readonly contentType: string; readonly options: unknown },
  bytes: AsyncIterable<Uint8Array>,
): Promise<Sheet> {
  const kind = sheetFormat(contentType, beside);
  if (kind === "json") return openJson(beside, decodeText(bytes, namedCharset(contentType, beside)));
  const options = readOptions(beside);
  const text = decodeText(bytes, namedCharset(contentType, options));
  return { kind, options, rows: kind === "csv" ? csvRows(text) : jsonlRows(text), lineName: "line" };
}

/** A body of JSON says both: its options, and `items` or `rows`. */
async function openJson(beside: unknown, text: AsyncIterable<string>): Promise<Sheet> {
  const body = await readJson(text);
  const { items, rows, ...own } = (Array.isArray(body) ? { rows: body } : (body ?? {})) as Record<string, unknown>;
  const options = readOptions(typeof body === "object" ? { ...(beside as object | undefined), ...own } : body);
  if (items !== undefined && rows !== undefined)
    throw refused("items and rows are one thing: give one of them", "rows");
  const values = items ?? rows ?? withoutRows(options);
  const field = items === undefined ? "rows" : "items";
  if (!Array.isArray(values)) throw refused(`${field} must be a list of objects`, field);
  return { kind: "json", options, rows: asyncBlocks(jsonRows(values)), lineName: "row" };
}

/** A template that needs no row has one. */
function withoutRows({ template }: SubmissionOptions): readonly unknown[] {
  if (template?.prompt !== undefined && parsePlaceholders(template.prompt, "template.prompt").columns.length === 0) {
    return [{}];
  }
  throw refused('there are no rows: give "rows" (or "items"), a list of objects with the template\'s columns', "rows");
}

async function* asyncBlocks(blocks: Iterable<RowBlock>): AsyncIterable<RowBlock> {
  yield* blocks;
}

const FORMATS: Readonly<Record<string, SheetFormat>> = {
  "text/csv": "csv",
  "text/tab-separated-values": "csv",
  "application/csv": "csv",
  // What browsers on Windows call a CSV file.
  "application/vnd.ms-excel": "csv",
  "application/x-ndjson": "jsonl",
  "application/ndjson": "jsonl",
  "application/jsonl": "jsonl",
  "application/x-jsonlines": "jsonl",
  "application/json": "json",
};

/** @throws ServingError INVALID_REQUEST. */
export function sheetFormat(contentType: string, options: unknown): SheetFormat {
  const asked = (options as { format?: unknown } | null | undefined)?.format;
  const named = SHEET_FORMATS.find((format) => format === asked);
  if (named !== undefined) return named;
  const type = contentType.split(";")[0]!.trim().toLowerCase();
  const format = Object.hasOwn(FORMATS, type) ? FORMATS[type] : undefined;
  if (format !== undefined) return format;
  if (type.startsWith("application/vnd.openxmlformats")) {
    throw refused("the sheet is a workbook (.xlsx); save it as CSV UTF-8 and send that", "sheet");
  }
  const message = `the sheet is of type ${JSON.stringify(type.slice(0, 100))}; send text/csv, application/x-ndjson or application/json, or name its format (${SHEET_FORMATS.join(", ")}). A workbook (.xlsx) is saved as CSV UTF-8 first`;
  throw refused(message, "format");
}

/** `utf-8` in a header is what clients say of files that they did not look into; anything else somebody meant. */
function namedCharset(contentType: string, options: unknown): string | undefined {
  const asked = (options as { charset?: unknown } | null | undefined)?.charset;
  if (typeof asked === "string") return knownCharset(asked);
  const said = /;\s*charset="?([^";\s]+)"?/i.exec(contentType)?.[1];
  const charset = said === undefined ? undefined : knownCharset(said);
  return charset === "utf-8" ? undefined : charset;
}

function refused(message: string, field: string): ServingError {
  return new ServingError("INVALID_REQUEST", message, { field });
}
