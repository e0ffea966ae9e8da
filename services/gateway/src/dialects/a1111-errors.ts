import type { ServingError } from "@atelier/core";
import { type ErrorBody, type ErrorReply, FieldRefusal } from "@atelier/http";
import { z } from "zod";

/** Source: stable-diffusion-webui's modules/api/api.py, its exception handler, and FastAPI's own of what is not valid. */
export const a1111Error = z
  .object({
    error: z.string().describe("The kind of failure, as the web UI names it."),
    detail: z
      .union([z.string(), z.array(z.object({ loc: z.array(z.string()), msg: z.string(), type: z.string() }))])
      .describe("The sentence; with status 422 a list of fields and what is wrong with them."),
    body: z.string(),
    errors: z.string().describe("The sentence."),
    code: z.string().describe("Atelier's code; branch on this."),
    field: z.string().optional().describe("The request field at fault, when one is."),
    request_id: z.string(),
  })
  .meta({ id: "A1111Error", description: "The request failed, in the schema of AUTOMATIC1111's API." });

export type A1111Error = z.infer<typeof a1111Error>;

/** `answer` as AUTOMATIC1111's API words it. What is wrong with the request itself is 422 there, and not 400. */
export function wordAsA1111(error: ServingError, { status, headers, body }: ErrorReply): ErrorReply {
  const { request_id: requestId } = (body as ErrorBody).error;
  const field = fieldOf(error);
  const said = { body: "", errors: error.detail, code: error.code, ...(field && { field }), request_id: requestId };
  if (status === 400) {
    const loc = ["body", ...(field === undefined ? [] : field.split("."))];
    const detail = [{ loc, msg: error.detail, type: typeOf(error) }];
    return { status: 422, headers, body: { error: "RequestValidationError", detail, ...said } satisfies A1111Error };
  }
  const kind = error.code === "OUT_OF_MEMORY" ? "OutOfMemoryError" : "HTTPException";
  return {
    status,
    headers:
      status === 401 ? { ...headers, "www-authenticate": 'Basic realm="atelier", Bearer realm="atelier"' } : headers,
    body: { error: kind, detail: error.detail, ...said } satisfies A1111Error,
  };
}

function typeOf(error: ServingError): string {
  const fault = error instanceof FieldRefusal ? error.fault : "invalid";
  return { unknown: "extra_forbidden", missing: "missing", invalid: "value_error" }[fault];
}

/** Under the name that the caller gave it. */
function fieldOf({ field }: ServingError): string | undefined {
  return field === undefined || !Object.hasOwn(FIELDS, field) ? field : FIELDS[field];
}

const FIELDS: Readonly<Record<string, string | undefined>> = {
  deadline_ms: undefined, // a call cannot say it
  guidance_scale: "cfg_scale",
  num_images: "batch_size",
  init_image: "init_images",
  strength: "denoising_strength",
  sampler: "sampler_name",
  karras_sigmas: "scheduler",
  loras: "prompt",
  model: "override_settings.sd_model_checkpoint",
};
