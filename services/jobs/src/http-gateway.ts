import { isErrorCode, ServingError } from "@atelier/core";
import { currentRequestId, currentSpan } from "@atelier/telemetry";
import { z } from "zod";
import type { Completion, Gateway, JobCaller, ShapeDraft, TenantStanding, UsageTotal } from "./ports.ts";

const TIMEOUT_MS = 10_000;

const itemShape = z.object({
  model: z.string(),
  width: z.number(),
  height: z.number(),
  steps: z.number(),
  guidanceScale: z.number(),
  sampler: z.string(),
  karrasSigmas: z.boolean(),
  format: z.enum(["png", "jpeg", "webp"]),
  quality: z.number().nullable(),
  predictedDeviceMs: z.number(),
});

const completion = z.object({
  shapes: z.array(
    z.discriminatedUnion("ok", [
      z.object({ ok: z.literal(true), shape: itemShape }),
      z.object({ ok: z.literal(false), code: z.string(), message: z.string(), field: z.string().nullable() }),
    ]),
  ),
  pricePerDeviceHour: z.number(),
  currency: z.string(),
  imagesLeft: z.number().nullable(),
  deviceMsLeft: z.number().nullable(),
});

const standings = z.array(z.object({ tenant: z.string(), exhausted: z.string().nullable() }));

/** The gateways' internal API, over HTTP: the first that answers. */
export class HttpGateway implements Gateway {
  readonly #urls: readonly string[];
  readonly #token: string | undefined;
  /** Of the one that answered last. */
  #next = 0;

  constructor({ urls, token }: { readonly urls: readonly string[]; readonly token: string | undefined }) {
    this.#urls = urls;
    this.#token = token;
  }

  complete(caller: JobCaller, drafts: readonly ShapeDraft[]): Promise<Completion> {
    return this.#post("/internal/v1/complete", { caller, drafts }, completion);
  }

  book(totals: readonly UsageTotal[]): Promise<readonly TenantStanding[]> {
    return this.#post("/internal/v1/usage", { totals }, standings);
  }

  /** @throws ServingError as the gateway says, or NO_WORKER-like: OVERLOADED where none answers. */
  async #post<T>(path: string, body: unknown, schema: z.ZodType<T>): Promise<T> {
    let last: unknown;
    const requestId = currentRequestId();
    for (let tried = 0; tried < this.#urls.length; tried++) {
      const url = this.#urls[this.#next]!;
      try {
        const response = await fetch(new URL(path, url), {
          method: "POST",
          headers: {
            "content-type": "application/json",
            ...(requestId !== undefined && { "x-request-id": requestId }),
            ...currentSpan().context,
            ...(this.#token !== undefined && { authorization: `Bearer ${this.#token}` }),
          },
          body: JSON.stringify(body),
          signal: AbortSignal.timeout(TIMEOUT_MS),
          redirect: "error",
        });
        const answer: unknown = await response.json();
        if (response.ok) return schema.parse(answer);
        last = errorOf(answer, response.status);
        if (response.status < 500) throw last;
      } catch (error) {
        if (error instanceof ServingError || error instanceof z.ZodError) throw error;
        last = error;
      }
      this.#next = (this.#next + 1) % this.#urls.length;
    }
    if (last instanceof ServingError) throw last;
    const why =
      last instanceof Error ? (last.cause instanceof Error ? last.cause.message : last.message) : String(last);
    throw new ServingError("OVERLOADED", `no gateway answers at ${this.#urls.join(", ")}: ${why}`, { cause: last });
  }
}

const errorBody = z.object({
  error: z.object({ code: z.string(), message: z.string(), field: z.string().optional() }),
});

function errorOf(answer: unknown, status: number): ServingError {
  const { data } = errorBody.safeParse(answer);
  const code = data !== undefined && isErrorCode(data.error.code) ? data.error.code : "INTERNAL";
  const message = data?.error.message ?? `the gateway answered ${status}`;
  return new ServingError(code, message, { field: data?.error.field });
}
