import type { ServingError } from "@atelier/core";
import type { GenerateRequestSchema, GenerateResponse } from "@atelier/proto";
import type { CallContext } from "@atelier/rpc";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { WorkerClient } from "../fleet/worker-client.ts";

/** A call to a worker, from the request to the end of its stream. */
export interface WorkerCall {
  /** How it failed; nothing where the worker ended it well. Rejects with the signal's reason. */
  readonly ended: Promise<ServingError | undefined>;
  /** Ends it from this side, as failed for this reason. */
  takeBack(why: ServingError): void;
}

export function callWorker(
  client: Pick<WorkerClient, "generate">,
  request: MessageInitShape<typeof GenerateRequestSchema>,
  limits: {
    deadlineAtMs: number;
    context: CallContext;
    signal: AbortSignal;
    take: (message: GenerateResponse) => void;
  },
): WorkerCall {
  const { deadlineAtMs, context, signal, take } = limits;
  if (signal.aborted) return { ended: Promise.reject(signal.reason), takeBack: () => {} };
  const { promise: ended, resolve, reject } = Promise.withResolvers<ServingError | undefined>();
  const over = (failure: ServingError | undefined) => {
    signal.removeEventListener("abort", abort);
    resolve(failure);
  };
  const cancel = client.generate(request, { deadlineAtMs, context }, { message: take, end: over });
  const abort = () => {
    cancel();
    reject(signal.reason);
  };
  signal.addEventListener("abort", abort, { once: true });
  return {
    ended,
    takeBack: (why) => {
      cancel();
      over(why);
    },
  };
}
