/** S3 takes 5 MiB at least, and 10,000 parts of one object at most: these are objects of up to 78 GiB. */
export const PART_BYTES = 8 * 1024 * 1024;

/** `body` cut into parts of PART_BYTES, the last of them shorter or empty. One is held at a time. */
export async function* inParts(
  body: Uint8Array | AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): AsyncIterable<{ readonly part: Uint8Array; readonly last: boolean }> {
  let held: Uint8Array[] = [];
  let heldBytes = 0;
  for await (const chunk of body instanceof Uint8Array ? [body] : body) {
    signal?.throwIfAborted();
    for (let from = 0; from < chunk.length; ) {
      if (heldBytes === PART_BYTES) {
        yield { part: joined(held), last: false };
        held = [];
        heldBytes = 0;
      }
      const piece = chunk.subarray(from, from + PART_BYTES - heldBytes);
      held.push(piece);
      heldBytes += piece.length;
      from += piece.length;
    }
  }
  signal?.throwIfAborted();
  yield { part: joined(held), last: true };
}

function joined(pieces: readonly Uint8Array[]): Uint8Array {
  return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
}
