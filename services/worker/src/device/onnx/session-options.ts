import type { InferenceSession } from "onnxruntime-node";
import type { ProviderName } from "./providers.ts";

/** In order of preference: what the first cannot run goes to the next. The CPU's is always there. */
export const PROVIDERS_USED: Readonly<Record<ProviderName, readonly ProviderName[]>> = {
  cpu: ["cpu"],
  cuda: ["cuda", "cpu"],
  tensorrt: ["tensorrt", "cuda", "cpu"],
  webgpu: ["webgpu", "cpu"],
};

export interface SessionOptions {
  readonly provider: ProviderName;
  readonly threads: number;
}

/**
 * How a session is opened.
 *
 * Its threads spin between the operators of one run and sleep between runs. Never spinning cost a lone request 1.4
 * times its time on 2 threads of an idle machine; spinning between runs, onnxruntime's default, would take the cores
 * from the other sessions. The price: where other work wants the same cores during a run, spinning made 25 U-Net steps
 * 2.2 times slower with 2 threads and 4.5 times with 4, so give a worker threads that are its own (ATELIER_THREADS),
 * and run no narrow lane beside the wide one. A session of one thread has nobody to wait for.
 */
export function sessionOptions({ provider, threads }: SessionOptions): InferenceSession.SessionOptions {
  return {
    executionProviders: [...PROVIDERS_USED[provider]],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    executionMode: "sequential",
    graphOptimizationLevel: "all",
    logSeverityLevel: 3,
    extra: { session: { intra_op: { allow_spinning: "1" }, force_spinning_stop: "1" } },
  };
}
