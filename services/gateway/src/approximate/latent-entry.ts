import { invariant } from "@atelier/core";
import { z } from "zod";
import type { Subject } from "../cache/kept-result.ts";

/** A picture on its way that others may begin from: all that is known of it but its latents. */
export interface LatentEntry {
  readonly id: string;
  /** Only requests of the same scope begin from it: see scopeDigest. */
  readonly scope: string;
  readonly subject: Subject;
  /** The newest purge that was known when its making began. */
  readonly bornAt: number;
  readonly modelDigest: string;
  /** No model ran. */
  readonly simulated: boolean;
  readonly seed: number;
  /** Milliseconds since the Unix epoch. */
  readonly untilMs: number;
  /** Of the prompt; of length 1. */
  readonly embedding: Float32Array;
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  /** Ascending. */
  readonly steps: readonly KeptStep[];
}

export interface KeptStep {
  /** The next step to run. */
  readonly stepIndex: number;
  /** SHA-256 of the latent's bytes. */
  readonly digest: string;
}

/** Longer news are not told: other gateways do without such an entry. */
const NEWS_CHARS_MAX = 32 * 1024;
const SIZE_MAX = 4_096;

/** Of one of its latents. */
export function latentBytes({ channels, height, width }: Pick<LatentEntry, "channels" | "height" | "width">): number {
  return channels * height * width * Float32Array.BYTES_PER_ELEMENT;
}

/** The entry for other gateways; undefined where it is too long to be told. */
export function writeNews(entry: LatentEntry): string | undefined {
  const { buffer, byteOffset, byteLength } = entry.embedding;
  const embedding = Buffer.from(buffer, byteOffset, byteLength).toString("base64");
  const text = JSON.stringify({ ...entry, embedding });
  return text.length > NEWS_CHARS_MAX ? undefined : text;
}

/** Undefined where it is not what writeNews writes. */
export function readNews(text: string): LatentEntry | undefined {
  if (text.length > NEWS_CHARS_MAX) return undefined;
  try {
    return news.parse(JSON.parse(text));
  } catch (error) {
    invariant(error instanceof SyntaxError || error instanceof z.ZodError, "reading fails in these ways only");
    return undefined;
  }
}

const hex = z.string().regex(/^(sha256:)?[0-9a-f]{64}$/);
const size = z.int().min(1).max(SIZE_MAX);
const news = z.object({
  id: z.string().min(1).max(100),
  scope: hex,
  subject: z.object({
    keeper: z.string(),
    model: z.string(),
    adapters: z.array(z.string()),
    prompt: z.string(),
  }),
  bornAt: z.number(),
  modelDigest: z.string(),
  simulated: z.boolean(),
  seed: z.int().min(0),
  untilMs: z.number(),
  embedding: z.base64().transform((text, context) => {
    const bytes = Buffer.from(text, "base64");
    if (bytes.length > 0 && bytes.length % Float32Array.BYTES_PER_ELEMENT === 0) {
      return new Float32Array(new Uint8Array(bytes).buffer);
    }
    context.addIssue({ code: "custom", message: "is no list of floats" });
    return z.NEVER;
  }),
  channels: size,
  height: size,
  width: size,
  steps: z
    .array(z.object({ stepIndex: z.int().min(1), digest: hex }))
    .min(1)
    .max(32),
});
