import type { ServingError } from "@atelier/core";
import type { GenerateRequestSchema, GenerateResponse } from "@atelier/proto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { WorkerClient } from "../fleet/worker-client.ts";

/**
 * One call, from the request to the end of its stream. Resolves with how it failed, with nothing where the worker ended it
 * well; rejects with the reason of `signal`, which takes it back.
 */
export function callWorker(
  client: Pick<WorkerClient, "generate">,
  request: MessageInitShape<typeof GenerateRequestSchema>,
  limits: { deadlineAtMs: number; signal: AbortSignal; take: (message: GenerateResponse) => void },
): Promise<ServingError | undefined> {
  const { deadlineAtMs, signal, take } = limits;
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const cancel = client.generate(
      request,
      { deadlineAtMs },
      {
        message: take,
        end: (failure) => {
          signal.removeEventListener("abort", abort);
          resolve(failure);
        },
      },
    );
    const abort = () => {
      cancel();
      reject(signal.reason);
    };
    signal.addEventListener("abort", abort, { once: true });
  });
}
