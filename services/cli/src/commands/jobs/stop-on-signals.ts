import { onStopSignals } from "../../terminal/signals.ts";

export interface Stop {
  readonly signal: AbortSignal;
  /** Takes the handlers away. */
  end(): void;
}

/** Ctrl-C ends what is under way here; a second one the process. */
export function stopOnSignals(): Stop {
  const controller = new AbortController();
  const end = onStopSignals({ first: () => controller.abort(), again: () => process.exit(130) });
  return { signal: controller.signal, end };
}
