import { basename, dirname } from "node:path";
import { ServingError } from "@atelier/core";
import { InferenceSession, type Tensor } from "onnxruntime-node";
import type { ProviderName } from "./providers.ts";

export interface SessionOptions {
  readonly provider: ProviderName;
  readonly threads: number;
}

/**
 * Opens one graph.
 *
 * Its threads spin between the operators of one run and sleep between runs. Never spinning cost a lone request 1.4
 * times its time on 2 threads of an idle machine; spinning between runs, onnxruntime's default, would take the cores
 * from the other stages. The price: where other work wants the same cores during a run, spinning made 25 U-Net steps
 * 2.2 times slower with 2 threads and 4.5 times with 4, so give a worker threads that are its own (ATELIER_THREADS).
 *
 * @throws ServingError INVALID_BUNDLE naming the file and onnxruntime's reason.
 */
export async function openSession(path: string, { provider, threads }: SessionOptions): Promise<InferenceSession> {
  try {
    return await InferenceSession.create(path, {
      executionProviders: provider === "cpu" ? ["cpu"] : [provider, "cpu"],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      executionMode: "sequential",
      graphOptimizationLevel: "all",
      logSeverityLevel: 3,
      extra: { session: { intra_op: { allow_spinning: "1" }, force_spinning_stop: "1" } },
    });
  } catch (cause) {
    throw invalidGraph(path, (cause as Error).message.split("\n")[0] ?? "unreadable", cause);
  }
}

/** "unet/model.onnx: ..." as an INVALID_BUNDLE. */
export function invalidGraph(path: string, complaint: string, cause?: unknown): ServingError {
  const file = `${basename(dirname(path))}/${basename(path)}`;
  return new ServingError("INVALID_BUNDLE", `${file}: ${complaint}`, { cause });
}

/**
 * Runs a session, and says in our words what went wrong.
 *
 * @throws ServingError OUT_OF_MEMORY when the device had none left, INTERNAL with onnxruntime's message otherwise.
 */
export async function runSession(
  session: InferenceSession,
  feeds: Record<string, Tensor>,
  fetches?: Record<string, Tensor>,
): Promise<InferenceSession.OnnxValueMapType> {
  try {
    return await (fetches === undefined ? session.run(feeds) : session.run(feeds, fetches));
  } catch (cause) {
    const message = (cause as Error).message;
    const outOfMemory = /out of memory|failed to allocate|bad_alloc|BFCArena/i.test(message);
    throw new ServingError(outOfMemory ? "OUT_OF_MEMORY" : "INTERNAL", `onnxruntime: ${message}`, { cause });
  }
}
