import { ServingError } from "@atelier/core";
import { readStrictly } from "@atelier/http";
import { z } from "zod";
import { type Caller, PRIORITY_CLASSES, ROLES } from "../caller.ts";
import { generateBody } from "../dialects/generate.ts";
import { generationBody } from "../dialects/generations.ts";
import type { Generations } from "../generations/generations.ts";
import type { CompleteRequest } from "../image-request.ts";
import type { Accounts } from "../tenants/accounts.ts";
import type { TenantDirectory } from "../tenants/directory.ts";
import { NAME } from "../tenants/records.ts";
import { priceFor, type Tariff } from "../tenants/tariff.ts";
import { limitsOf } from "../tenants/tenant-gate.ts";

/** One call's worth: some milliseconds of this process. */
const DRAFTS_MAX = 200;

/** The jobs service's `JobCaller`: who asked it, as this gateway found out before. */
const jobCaller = z.strictObject({
  tenant: z.string().regex(NAME),
  keyId: z.string().nullable(),
  role: z.enum(ROLES),
  priority: z.enum(PRIORITY_CLASSES),
  weight: z.number(),
  models: z.array(z.string()).nullable(),
});

/** Its drafts are looked at one by one: what is wrong with one of them is said of that one. */
export const completeBody = z.strictObject({
  caller: jobCaller,
  drafts: z.array(z.unknown()).max(DRAFTS_MAX).describe(`a list of at most ${DRAFTS_MAX} drafts`),
});

const { shape } = generationBody;
const draftBody = z.strictObject({
  model: shape.model,
  width: generateBody.shape.width.unwrap().optional(),
  height: generateBody.shape.height.unwrap().optional(),
  steps: generateBody.shape.steps.unwrap().optional(),
  guidance_scale: shape.guidance_scale,
  sampler: shape.sampler,
  karras_sigmas: shape.karras_sigmas.unwrap().optional(),
  format: shape.format,
  quality: shape.quality,
});

export interface CompleteDraftsOptions {
  readonly generations: Pick<Generations, "complete">;
  readonly predictMs: (asked: CompleteRequest, caller: Caller) => number;
  readonly directory: Pick<TenantDirectory, "tenant">;
  readonly accounts: Pick<Accounts, "month">;
  readonly tariff: Tariff;
}

/** As the jobs service's `Completion`, in services/jobs/src/ports.ts. Rejects with StoreUnavailable. */
export async function completeDrafts(
  { caller: given, drafts }: z.infer<typeof completeBody>,
  options: CompleteDraftsOptions,
) {
  const { directory, accounts, tariff } = options;
  const settings = directory.tenant(given.tenant);
  const limits = limitsOf(settings);
  const limited = limits.imagesPerMonth !== undefined || limits.deviceMsPerMonth !== undefined;
  const month = limited ? await accounts.month(given.tenant) : { images: 0, deviceMs: 0 };
  const left = (limit: number | undefined, used: number) => (limit === undefined ? null : Math.max(0, limit - used));
  const caller = callerOf(given);
  return {
    shapes: drafts.map((draft) => completed(draft, caller, options)),
    pricePerDeviceHour: priceFor(settings, tariff),
    currency: tariff.currency,
    imagesLeft: left(limits.imagesPerMonth, month.images),
    deviceMsLeft: left(limits.deviceMsPerMonth, month.deviceMs),
  };
}

/** Failures that are the draft's own; others are of the moment, and fail the whole call. */
const DRAFTS_FAULTS: readonly string[] = ["INVALID_REQUEST", "MODEL_NOT_FOUND", "FORBIDDEN"];

function completed(draft: unknown, caller: Caller, { generations, predictMs }: CompleteDraftsOptions) {
  try {
    const { guidance_scale, karras_sigmas, format = "png", ...read } = readStrictly(draftBody, draft);
    const asked = generations.complete(
      {
        ...read,
        id: "draft",
        prompt: "a stand-in", // prompts are checked where sheets are read
        negativePrompt: "",
        guidanceScale: guidance_scale,
        karrasSigmas: karras_sigmas,
        format,
        seed: 0,
        numImages: 1,
      } as Parameters<Generations["complete"]>[0],
      caller,
    );
    return {
      ok: true as const,
      shape: {
        model: asked.model,
        width: asked.width,
        height: asked.height,
        steps: asked.steps,
        guidanceScale: asked.guidanceScale,
        sampler: asked.sampler,
        karrasSigmas: asked.karrasSigmas ?? false,
        format: asked.format,
        quality: asked.quality ?? null,
        predictedDeviceMs: predictMs(asked, caller),
      },
    };
  } catch (error) {
    if (!(error instanceof ServingError) || !DRAFTS_FAULTS.includes(error.code)) throw error;
    return { ok: false as const, code: error.code, message: error.detail, field: error.field ?? null };
  }
}

function callerOf({ keyId, models, ...given }: z.infer<typeof jobCaller>): Caller {
  return {
    ...given,
    keyId: keyId ?? undefined,
    models: models === null ? undefined : new Set(models),
    adapters: undefined,
  };
}
