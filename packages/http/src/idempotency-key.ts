import { ServingError } from "@atelier/core";

export const IDEMPOTENCY_HEADER = "idempotency-key";

/**
 * The key itself. By the draft the header is a structured text, in quotes; most clients send it bare.
 *
 * @throws ServingError INVALID_REQUEST.
 */
export function readIdempotencyKey(header: string): string {
  const key = /^"(.*)"$/.exec(header)?.[1] ?? header;
  if (/^[\x21\x23-\x5b\x5d-\x7e]{1,255}$/.test(key)) return key;
  const message = `${IDEMPOTENCY_HEADER} has ${key.length} characters; it must be 1 to 255 printable ASCII characters without spaces, quotes or backslashes`;
  throw new ServingError("INVALID_REQUEST", message, { field: IDEMPOTENCY_HEADER });
}
