import { ServingError } from "@atelier/core";
import type { FastifySchemaCompiler } from "fastify";
import { z } from "zod";

/** Checks with zod, and says in one sentence which field holds what, and what it may hold. */
export const strictValidator: FastifySchemaCompiler<z.ZodType> =
  ({ schema, httpPart }) =>
  (data) => {
    const read = schema.safeParse(data);
    return read.success
      ? { value: read.data }
      : { error: refusal(read.error, { schema, data, part: httpPart ?? "body" }) };
  };

/** The value as `schema` reads it. @throws ServingError INVALID_REQUEST as the routes' own check does. */
export function readStrictly<Schema extends z.ZodType>(schema: Schema, data: unknown): z.output<Schema> {
  const read = schema.safeParse(data);
  if (read.success) return read.data;
  throw refusal(read.error, { schema, data, part: "request" });
}

/** What is wrong with a field, for dialects that have a word for each. */
export type FieldFault = "unknown" | "missing" | "invalid";

/** A field that its schema does not let through. */
export class FieldRefusal extends ServingError {
  readonly fault: FieldFault;

  constructor(message: string, { field, fault }: { field?: string; fault: FieldFault }) {
    super("INVALID_REQUEST", message, { field });
    this.fault = fault;
  }
}

interface Refused {
  readonly schema: z.ZodType;
  readonly data: unknown;
  readonly part: string;
}

function refusal({ issues }: z.ZodError, { schema, data, part }: Refused): ServingError {
  const issue = issues[0]!;
  const at = locate(issue.path, { schema, data });
  if (issue.code === "unrecognized_keys") {
    const unknown = issue.keys[0]!;
    const place = at.name === "" ? "" : ` in ${at.name}`;
    const message = `unknown field ${showValue(unknown)}${place}; the fields are ${Object.keys(shapeOf(at.schema)).join(", ")}`;
    return new FieldRefusal(message, { field: at.name === "" ? cut(unknown) : at.name, fault: "unknown" });
  }
  if (at.name === "") {
    return new FieldRefusal(`the ${part} is ${showValue(data)}; it must be a JSON object`, { fault: "invalid" });
  }
  const allowed = at.schema === undefined ? issue.message : allowedText(at.schema);
  const message =
    at.data === undefined
      ? `${at.name} is missing; it must be ${allowed}`
      : `${at.name} is ${showValue(at.data)}; it must be ${allowed}`;
  return new FieldRefusal(message, { field: at.name, fault: at.data === undefined ? "missing" : "invalid" });
}

interface Located {
  /** As a caller would write it: loras[0].weight. */
  readonly name: string;
  /** Undefined where the schema does not say. */
  readonly schema: z.ZodType | undefined;
  readonly data: unknown;
}

/** The field at the end of `path`. */
function locate(path: readonly PropertyKey[], { schema, data }: Pick<Refused, "schema" | "data">): Located {
  let at: Located = { name: "", schema, data };
  for (const key of path) {
    const step = typeof key === "number" ? `[${key}]` : at.name === "" ? String(key) : `.${String(key)}`;
    const bare = at.schema && withoutNull(bareSchema(at.schema));
    const inside = bare instanceof z.ZodArray ? (bare.element as z.ZodType) : shapeOf(bare)[String(key)];
    at = { name: at.name + step, schema: inside, data: (at.data as Record<PropertyKey, unknown> | undefined)?.[key] };
  }
  return at;
}

function shapeOf(schema: z.ZodType | undefined): Readonly<Record<string, z.ZodType>> {
  const bare = schema && bareSchema(schema);
  return bare instanceof z.ZodObject ? bare.shape : {};
}

function bareSchema(schema: z.ZodType): z.ZodType {
  const wrapped = schema instanceof z.ZodDefault || schema instanceof z.ZodOptional;
  return wrapped ? bareSchema(schema.unwrap() as z.ZodType) : schema;
}

function withoutNull(schema: z.ZodType): z.ZodType {
  return schema instanceof z.ZodNullable ? bareSchema(schema.unwrap() as z.ZodType) : schema;
}

/** What a field may hold, read from its schema, so that no message can disagree with the check. */
export function allowedText(schema: z.ZodType): string {
  const bare = bareSchema(schema);
  if (bare instanceof z.ZodNullable) return `${allowedText(bare.unwrap() as z.ZodType)}, or null`;
  if (bare instanceof z.ZodEnum) return `one of ${bare.options.join(", ")}`;
  if (bare instanceof z.ZodString && bare.format !== "regex") {
    return bare.maxLength === null ? "a text" : `a text of ${bare.minLength ?? 0} to ${bare.maxLength} characters`;
  }
  if (bare instanceof z.ZodNumber) {
    const kind = bare.format === "safeint" ? "a whole number" : "a number";
    // A whole number without bounds of its own has those of exact doubles, which say nothing to a caller.
    if (bare.minValue === Number.MIN_SAFE_INTEGER) return kind;
    const from = bare.safeParse(bare.minValue).success ? "from" : "above";
    return `${kind} ${from} ${bare.minValue} to ${bare.maxValue}`;
  }
  if (bare instanceof z.ZodObject) return "an object";
  return schema.description ?? bare.description ?? "of another kind";
}

/** A value as JSON, cut short. */
export function showValue(value: unknown): string {
  if (value === undefined) return "missing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object" && value !== null) return "an object";
  if (typeof value === "string") return JSON.stringify(cut(value));
  return cut(String(value));
}

const SHOWN_MAX = 60;

function cut(text: string): string {
  return text.length <= SHOWN_MAX ? text : `${text.slice(0, SHOWN_MAX).toWellFormed()}... (${text.length} characters)`;
}
