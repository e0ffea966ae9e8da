/** What a worker tells the process that spawned it with an IPC channel. */
export type ParentMessage =
  | { readonly type: "listening"; readonly address: string; readonly metricsAddress: string }
  | { readonly type: "ready" }
  | { readonly type: "failed"; readonly message: string };

/** Does nothing where there is no parent that listens. */
export function tellParent(message: ParentMessage): void {
  if (process.connected) process.send?.(message);
}

/**
 * Resolves with the reason once somebody asks this process to stop: SIGTERM, SIGINT, or the end of the IPC channel,
 * which is how a worker notices that its parent died.
 */
export function untilAskedToStop(): Promise<string> {
  return new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => resolve(signal));
    process.on("disconnect", () => resolve("the parent process is gone"));
  });
}
