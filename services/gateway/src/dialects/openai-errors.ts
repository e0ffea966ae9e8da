import type { ErrorCode, ServingError } from "@atelier/core";
import { type ErrorBody, type ErrorReply, errorBody, FieldRefusal } from "@atelier/http";
import { z } from "zod";

/** Source: OpenAI's API reference, "Error codes", and the error classes of its clients, which go by the status. */
export const openAiError = z
  .object({
    error: z.object({
      message: z.string().describe("For people. Names the value at fault and what is allowed."),
      type: z.string().describe("The kind of failure."),
      param: z.string().nullable().describe("The request field at fault, when one is."),
      code: z.string().nullable().describe("What exactly it is; branch on this."),
    }),
  })
  .meta({ id: "OpenAiError", description: "The request failed, in OpenAI's schema." });

export type OpenAiError = z.infer<typeof openAiError>;

/** `answer` in OpenAI's schema, under the same status. */
export function wordAsOpenAi(error: ServingError, { status, headers }: ErrorReply): ErrorReply {
  return { status, headers, body: openAiErrorBody(error, status) };
}

export function openAiErrorBody(error: ServingError, status: number): OpenAiError {
  return { error: { message: error.detail, type: typeOf(error, status), param: paramOf(error), code: codeOf(error) } };
}

/** Of the route that our own clients and OpenAI's share: our schema, and OpenAI's fields that it has not. */
export const sharedError = z
  .object({
    error: errorBody.shape.error.extend({
      type: openAiError.shape.error.shape.type,
      param: openAiError.shape.error.shape.param,
    }),
  })
  .meta({ id: "SharedError", description: "The request failed; `error.code` says how, in our words." });

export function wordForBoth(error: ServingError, { status, headers, body }: ErrorReply): ErrorReply {
  const ours = (body as ErrorBody).error;
  return {
    status,
    headers,
    body: { error: { ...ours, type: typeOf(error, status), param: paramOf(error) } },
  };
}

function typeOf({ code }: ServingError, status: number): string {
  if (status >= 500) return "server_error";
  return TYPES[code] ?? "invalid_request_error";
}

const TYPES: Partial<Record<ErrorCode, string>> = {
  UNAUTHENTICATED: "authentication_error",
  FORBIDDEN: "permission_error",
  RATE_LIMITED: "rate_limit_error",
  QUOTA_EXCEEDED: "insufficient_quota",
};

const CODES: Partial<Record<ErrorCode, string>> = {
  UNAUTHENTICATED: "invalid_api_key",
  RATE_LIMITED: "rate_limit_exceeded",
  QUOTA_EXCEEDED: "insufficient_quota",
};

const FAULT_CODES = { unknown: "unknown_parameter", missing: "missing_required_parameter", invalid: "invalid_value" };

function codeOf(error: ServingError): string {
  if (error instanceof FieldRefusal) return FAULT_CODES[error.fault];
  if (error.code === "INVALID_REQUEST") return error.field === undefined ? "invalid_request" : "invalid_value";
  return CODES[error.code] ?? error.code.toLowerCase();
}

/** Under which of its names the caller gave the field at fault. */
function paramOf({ field }: ServingError): string | null {
  if (field === undefined) return null;
  return PARAMS[field] ?? field;
}

const PARAMS: Readonly<Record<string, string>> = {
  width: "size",
  height: "size",
  num_images: "n",
  init_image: "image",
  format: "output_format",
};
