import { ServingError } from "@atelier/core";
import { HttpRefusal } from "@atelier/http";
import multipart from "@fastify/multipart";
import type { FastifyInstance, FastifyRequest } from "fastify";

export const FORM_TYPE = "multipart/form-data";

/** A prompt at its longest, with room. */
const TEXT_BYTES_MAX = 64 * 1024;
const TEXTS_MAX = 64;

export interface FormRules {
  readonly bodyMaxBytes: number;
  /** Texts that stand for numbers, true or false, or JSON. */
  readonly numbers: readonly string[];
  readonly booleans: readonly string[];
  readonly json: readonly string[];
  /** The one file, and what else callers call it. */
  readonly file: { readonly name: string; readonly others: readonly string[] };
  /** Files that there is a reason not to take, by name. */
  readonly refused: Readonly<Record<string, string>>;
}

/**
 * Bodies of the routes in `scope` are forms and nothing else. Each becomes an object for the route's schema, with its
 * file in base64: nothing of it touches a disk.
 */
export async function acceptFormsOnly(scope: FastifyInstance, rules: FormRules): Promise<void> {
  scope.removeAllContentTypeParsers();
  await scope.register(multipart, {
    limits: {
      fileSize: rules.bodyMaxBytes,
      fieldSize: TEXT_BYTES_MAX,
      fields: TEXTS_MAX,
      files: 2,
      fieldNameSize: 100,
    },
  });
  scope.addContentTypeParser("*", (request, _body, done) => {
    done(
      new HttpRefusal(
        415,
        `content-type ${JSON.stringify(request.headers["content-type"] ?? "")} is not read here; send ${FORM_TYPE}`,
      ),
    );
  });
  scope.addHook("preValidation", async (request) => {
    if (request.isMultipart()) request.body = await readForm(request, rules);
  });
}

async function readForm(request: FastifyRequest, rules: FormRules): Promise<Record<string, unknown>> {
  const { bodyMaxBytes, file, refused } = rules;
  if (Number(request.headers["content-length"] ?? 0) > bodyMaxBytes) throw tooLarge(bodyMaxBytes);
  const body: Record<string, unknown> = {};
  try {
    for await (const part of request.parts()) {
      const name = file.others.includes(part.fieldname) ? file.name : part.fieldname;
      if (Object.hasOwn(refused, name)) throw invalid(name, refused[name]!);
      if (Object.hasOwn(body, name))
        throw invalid(
          name,
          `${name} is there twice; ${name === file.name ? "pictures start from one" : "once will do"}`,
        );
      if (part.type === "file") {
        if (name !== file.name)
          throw invalid(name, `${name} is a file; the only one that is read here is ${file.name}`);
        body[name] = (await part.toBuffer()).toString("base64");
      } else {
        if (part.valueTruncated) throw invalid(name, `${name} is longer than ${TEXT_BYTES_MAX} bytes`);
        if (name === file.name) throw invalid(name, `${name} is a text; it must be a file`);
        body[name] = fieldValue(name, String(part.value), rules);
      }
    }
  } catch (error) {
    // What is left of the body is let go: nothing behind it on the connection would be heard otherwise.
    request.raw.unpipe();
    request.raw.resume();
    throw readable(error, bodyMaxBytes);
  }
  return body;
}

/** What is no number or JSON stays a text, which the route's schema then refuses by name. */
function fieldValue(name: string, text: string, { numbers, booleans, json }: FormRules): unknown {
  if (numbers.includes(name) && /^-?\d+(?:\.\d+)?$/.test(text)) return Number(text);
  if (booleans.includes(name) && (text === "true" || text === "false")) return text === "true";
  if (!json.includes(name)) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The parser's own complaints are the caller's to mend. */
function readable(error: unknown, bodyMaxBytes: number): unknown {
  if (error instanceof ServingError) return error;
  const { code = "", message } = error as { code?: string; message: string };
  if (code === "FST_REQ_FILE_TOO_LARGE") return tooLarge(bodyMaxBytes);
  return new ServingError("INVALID_REQUEST", `the form cannot be read: ${message}`, { cause: error });
}

const tooLarge = (bodyMaxBytes: number) =>
  new ServingError("PAYLOAD_TOO_LARGE", `the body is larger than ${bodyMaxBytes} bytes, which is the limit`);

const invalid = (field: string, message: string) => new ServingError("INVALID_REQUEST", message, { field });
