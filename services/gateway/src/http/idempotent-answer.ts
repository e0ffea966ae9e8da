import { sha256 } from "@atelier/core";
import { z } from "zod";

/** An answer as it can be given again. */
export interface IdempotentAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
}

const head = z.object({
  fingerprint: z.string(),
  status: z.int(),
  headers: z.record(z.string(), z.string()),
  /** Of the body. */
  digest: z.string(),
});

const NEWLINE = 0x0a;

/** One value, so that nobody ever finds half of it: a line of JSON, then the body's bytes as they were sent. */
export function writeAnswer({ status, headers, body }: IdempotentAnswer, fingerprint: string): Buffer {
  const line = JSON.stringify({ fingerprint, status, headers, digest: sha256(body) } satisfies z.infer<typeof head>);
  return Buffer.concat([Buffer.from(`${line}\n`), body]);
}

/** Undefined for a value that is damaged: it is then as if nothing had been answered. */
export function readAnswer(value: Buffer): { answer: IdempotentAnswer; fingerprint: string } | undefined {
  const end = value.indexOf(NEWLINE);
  if (end < 0) return undefined;
  const body = value.subarray(end + 1);
  let line: unknown;
  try {
    line = JSON.parse(value.toString("utf8", 0, end));
  } catch {
    return undefined;
  }
  const read = head.safeParse(line);
  if (!read.success || read.data.digest !== sha256(body)) return undefined;
  const { fingerprint, status, headers } = read.data;
  return { answer: { status, headers, body }, fingerprint };
}
