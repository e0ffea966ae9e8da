import { type Clock, ServingError } from "@atelier/core";
import type { GatewayApp } from "./app.ts";
import type { GrpcServer } from "./grpc/grpc-server.ts";
import type { InFlight } from "./in-flight.ts";

export interface StopOptions {
  readonly inFlight: InFlight;
  readonly grpc: Pick<GrpcServer, "close" | "forceClose"> | undefined;
  readonly clock: Clock;
  readonly timeoutMs: number;
}

/**
 * Stops listening, refuses what still arrives on open connections, and waits for what is in flight, at most
 * `timeoutMs`; what runs longer is cancelled and its caller told so. Resolves when every connection is closed.
 */
export async function stopGracefully(
  app: GatewayApp,
  { inFlight, grpc, clock, timeoutMs }: StopOptions,
): Promise<void> {
  inFlight.stop();
  const tooLong = new ServingError(
    "DRAINING",
    `this gateway stopped and the image was not finished within ${timeoutMs} ms`,
  );
  const cancelTimers = [
    clock.after(timeoutMs, () => inFlight.abortAll(tooLong)),
    // The refusals just caused get a moment to leave; a connection that is still open then belongs to nobody.
    clock.after(timeoutMs + LAST_ANSWERS_MS, () => {
      app.server.closeAllConnections();
      grpc?.forceClose();
    }),
  ];
  try {
    await Promise.all([app.close(), grpc?.close()]);
  } finally {
    for (const cancel of cancelTimers) cancel();
  }
}

const LAST_ANSWERS_MS = 500;
