import { ServingError } from "@atelier/core";
import type { FastifyReply } from "fastify";

/** Aborted when the caller leaves without its answer. */
export function goneSignal({ raw }: FastifyReply): AbortSignal {
  const gone = new AbortController();
  const leave = () => {
    if (!raw.writableFinished) gone.abort(new ServingError("CANCELLED", "the caller went away"));
  };
  // It may have left while its body was read.
  if (raw.closed) leave();
  else raw.once("close", leave);
  return gone.signal;
}
