import { ServingError, sha256 } from "@atelier/core";
import { z } from "zod";
import type { CacheOutcome, Served } from "../generations/ports.ts";
import type { GeneratedPicture, GenerationReceipt, Reduced, StageProgress } from "../image-request.ts";

export const GENERATION_STATUSES = ["queued", "running", "succeeded", "failed", "cancelled"] as const;
export type GenerationStatus = (typeof GENERATION_STATUSES)[number];

/** All that is known of a generation that nobody waits for on a connection, but its pictures' bytes. */
export interface GenerationRecord {
  readonly id: string;
  readonly tenant: string;
  /** The gateway that sees to it. */
  readonly gateway: string;
  readonly status: GenerationStatus;
  readonly createdAtMs: number;
  /** When it is forgotten. */
  readonly expiresAtMs: number;
  /** Known once a worker has accepted it. */
  readonly seed?: number | undefined;
  readonly model?: string | undefined;
  readonly progress?: StageProgress | undefined;
  readonly result?: GenerationResult | undefined;
  /** Why it failed. */
  readonly error?: RecordedError | undefined;
}

export interface GenerationResult {
  readonly receipt: GenerationReceipt;
  readonly outcome: CacheOutcome;
  readonly reduced?: Reduced | undefined;
  readonly pictures: readonly RecordedPicture[];
}

export interface RecordedPicture extends Omit<GeneratedPicture, "data"> {
  /** "sha256:..." of its bytes, which lie elsewhere. */
  readonly digest: string;
}

export interface RecordedError {
  readonly code: string;
  readonly message: string;
  readonly field?: string | undefined;
}

/** Nothing happens to it any more. */
export function hasEnded({ status }: Pick<GenerationRecord, "status">): boolean {
  return status !== "queued" && status !== "running";
}

export function resultOf({ request, generation, outcome }: Served): GenerationResult {
  const { receipt, pictures } = generation;
  return {
    receipt,
    outcome,
    ...(request.reduced && { reduced: request.reduced }),
    pictures: pictures.map(({ data, mediaType, width, height, seed }) => {
      return { mediaType, width, height, seed, digest: sha256(data) };
    }),
  };
}

/** Undefined for what is no record: a damaged one is one that is not there. */
export function parseRecord(value: Buffer): GenerationRecord | undefined {
  try {
    const read: unknown = JSON.parse(value.toString());
    return essentials.safeParse(read).success ? (read as GenerationRecord) : undefined;
  } catch {
    return undefined;
  }
}

const essentials = z.object({
  id: z.string(),
  tenant: z.string(),
  gateway: z.string(),
  status: z.enum(GENERATION_STATUSES),
  createdAtMs: z.number(),
  expiresAtMs: z.number(),
});

export function noSuchGeneration(id: string): ServingError {
  const shown = JSON.stringify(id.slice(0, 64));
  return new ServingError("NOT_FOUND", `there is no generation ${shown}, or it is no longer kept`);
}
