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

interface Refused {
  readonly schema: z.ZodType;
  readonly data: unknown;
  readonly part: string;
}

function refusal({ issues }: z.ZodError, { schema, data, part }: Refused): ServingError {
  const issue = issues[0]!;
  const name = issue.path[0];
  const fields = schema instanceof z.ZodObject ? schema.shape : {};
  if (issue.code === "unrecognized_keys") {
    const unknown = issue.keys[0]!;
    const message = `unknown field ${showValue(unknown)}; the fields are ${Object.keys(fields).join(", ")}`;
    return new ServingError("INVALID_REQUEST", message, { field: cut(unknown) });
  }
  if (name === undefined) {
    return new ServingError("INVALID_REQUEST", `the ${part} is ${showValue(data)}; it must be a JSON object`);
  }
  const field = String(name);
  const value = (data as Record<string, unknown>)[field];
  const allowed = fields[field] instanceof z.ZodType ? allowedText(fields[field]) : issue.message;
  const message =
    value === undefined
      ? `${field} is missing; it must be ${allowed}`
      : `${field} is ${showValue(value)}; it must be ${allowed}`;
  return new ServingError("INVALID_REQUEST", message, { field });
}

/** What a field may hold, read from its schema, so that no message can disagree with the check. */
export function allowedText(schema: z.ZodType): string {
  if (schema instanceof z.ZodDefault || schema instanceof z.ZodOptional)
    return allowedText(schema.unwrap() as z.ZodType);
  if (schema instanceof z.ZodEnum) return `one of ${schema.options.join(", ")}`;
  if (schema instanceof z.ZodString) return "a text";
  if (schema instanceof z.ZodNumber) {
    const kind = schema.format === "safeint" ? "a whole number" : "a number";
    // A whole number without bounds of its own has those of exact doubles, which say nothing to a caller.
    if (schema.minValue === Number.MIN_SAFE_INTEGER) return kind;
    const from = schema.safeParse(schema.minValue).success ? "from" : "above";
    return `${kind} ${from} ${schema.minValue} to ${schema.maxValue}`;
  }
  return schema.description ?? "of another kind";
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
