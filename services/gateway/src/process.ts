/** What a gateway says to the process that spawned it, when one did. */
export type GatewayMessage =
  | { readonly type: "listening"; readonly url: string }
  | { readonly type: "ready" }
  | { readonly type: "failed"; readonly message: string };

/** The process that spawned this one with an IPC channel; without one, all of this does nothing. */
export const parentProcess = {
  tell(message: GatewayMessage): void {
    if (process.connected) process.send?.(message);
  },
  /** Lets this process end: an open channel keeps it alive. */
  leave(): void {
    if (process.connected) process.disconnect();
  },
};

/**
 * Runs `stop` once, on the first of SIGTERM, SIGINT and the loss of the parent process, and then exits: 0 when it went
 * well. The same signal a second time ends the process at once.
 */
export function onShutdown(stop: (cause: string) => Promise<void>): void {
  let stopping = false;
  const begin = (cause: string) => {
    if (stopping) return;
    stopping = true;
    stop(cause).then(
      () => process.exit(0),
      (error) => {
        console.error(error);
        process.exit(1);
      },
    );
  };
  process.once("SIGTERM", () => begin("SIGTERM"));
  process.once("SIGINT", () => begin("SIGINT"));
  if (process.connected) process.once("disconnect", () => begin("the parent process went away"));
}
