import { ServingError } from "@atelier/core";
import type {} from "@fastify/multipart";
import type { FastifyRequest } from "fastify";
import type { Submission } from "../intake/index.ts";

/** Options with a template and its presets, with room. */
const OPTIONS_BYTES_MAX = 1024 * 1024;

/**
 * A form's options and its sheet, which goes on arriving while it is read. What comes behind the sheet is not looked at: by
 * then the sheet is read, and its job kept.
 *
 * @throws ServingError INVALID_REQUEST naming the field.
 */
export async function readSheetForm(
  request: FastifyRequest,
): Promise<Pick<Submission, "contentType" | "body" | "options">> {
  let options: unknown;
  try {
    // The intake counts the sheet's bytes.
    const limits = { fieldSize: OPTIONS_BYTES_MAX, fileSize: Number.POSITIVE_INFINITY, files: 1, fields: 2 };
    for await (const part of request.parts({ limits })) {
      if (part.type === "file") {
        if (part.fieldname !== "sheet") {
          throw invalid(part.fieldname, `${part.fieldname} is a file; the only one that is read here is sheet`);
        }
        return { contentType: contentTypeOf(part), body: part.file, options: options ?? {} };
      }
      if (part.fieldname !== "job") {
        throw invalid(part.fieldname, `unknown field ${part.fieldname}; the fields are job, and then sheet, a file`);
      }
      if (options !== undefined) throw invalid("job", "job is there twice; once will do");
      if (part.valueTruncated) throw invalid("job", `job is longer than ${OPTIONS_BYTES_MAX} bytes`);
      // Of a part that says to be JSON it is parsed.
      options = typeof part.value === "string" ? parseOptions(part.value) : part.value;
    }
  } catch (error) {
    if (error instanceof ServingError) throw error;
    throw new ServingError("INVALID_REQUEST", `the form cannot be read: ${(error as Error).message}`, { cause: error });
  }
  throw invalid("sheet", "sheet is missing; it must be a file, behind the field job");
}

/** Programs that know no better say octet-stream; the name tells more. */
function contentTypeOf({ mimetype, filename }: { mimetype: string; filename: string }): string {
  if (mimetype !== "application/octet-stream") return mimetype;
  const extension = /\.(csv|tsv|jsonl|ndjson|json)$/i.exec(filename)?.[1]?.toLowerCase();
  return TYPES[extension ?? ""] ?? mimetype;
}

const TYPES: Readonly<Record<string, string>> = {
  csv: "text/csv",
  tsv: "text/tab-separated-values",
  jsonl: "application/jsonl",
  ndjson: "application/x-ndjson",
  json: "application/json",
};

function parseOptions(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ServingError("INVALID_REQUEST", `job is not JSON: ${(cause as Error).message}`, { field: "job", cause });
  }
}

const invalid = (field: string, message: string) => new ServingError("INVALID_REQUEST", message, { field });
