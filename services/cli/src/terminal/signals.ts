/**
 * One Ctrl-C may arrive several times: from the terminal, from npm, and from the launcher, each passing it on. What
 * comes this soon after the first is the same Ctrl-C.
 */
const SAME_SIGNAL_MS = 400;

/**
 * Calls `first` at the first SIGINT, SIGTERM or SIGHUP and `again` at each later one. Returns a function that
 * takes the handlers away.
 */
export function onStopSignals({ first, again }: { first: () => void; again: () => void }): () => void {
  let firstAtMs: number | undefined;
  const handle = () => {
    if (firstAtMs === undefined) {
      firstAtMs = Date.now();
      first();
    } else if (Date.now() - firstAtMs > SAME_SIGNAL_MS) {
      again();
    }
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) process.on(signal, handle);
  return () => {
    for (const signal of signals) process.off(signal, handle);
  };
}

/**
 * Calls `run` when the shell that npm put between itself and us is gone. A signal sent to npm alone reaches that
 * shell, which ends without passing it on, and we would run for ever.
 */
export function onShellGone(run: () => void): () => void {
  const shell = process.ppid;
  const timer = setInterval(() => {
    if (process.ppid === shell) return;
    clearInterval(timer);
    run();
  }, 500);
  timer.unref();
  return () => clearInterval(timer);
}
