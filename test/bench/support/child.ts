import type { ChildProcess } from "node:child_process";

/** Ends `child` in order, or by force after `graceMs`; resolves when it is gone. */
export async function end(child: ChildProcess, { graceMs = 20_000 } = {}): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), graceMs);
  await gone;
  clearTimeout(timer);
}

/** `work`, or a failure that names `child` and shows what it said, if it ends or `timeoutMs` passes before. */
export async function whileRunning<T>(
  child: ChildProcess,
  work: Promise<T>,
  { name, timeoutMs, output = () => "" }: { name: string; timeoutMs: number; output?: () => string },
): Promise<T> {
  const failure = Promise.withResolvers<never>();
  const fail = (how: string) => failure.reject(new Error(`${name} ${how}\n${output()}`));
  const onExit = (code: number | null, signal: string | null) => fail(`ended with ${signal ?? code}`);
  child.once("exit", onExit);
  const timer = setTimeout(() => fail(`did not answer within ${timeoutMs} ms`), timeoutMs);
  try {
    return await Promise.race([work, failure.promise]);
  } finally {
    clearTimeout(timer);
    child.off("exit", onExit);
  }
}
