import { tellParent, untilAskedToStop } from "@atelier/lifecycle";
import { type Daemon, DaemonEnded } from "./daemons.ts";

/** Runs somebody else's server as a child process of ours: speaks with its parent as our services do and ends with it. */
export async function runAsChild(name: string, start: () => Promise<Daemon>): Promise<void> {
  const stopping = untilAskedToStop();
  try {
    const daemon = await start();
    tellParent({ type: "listening", address: daemon.address });
    tellParent({ type: "ready" });
    await Promise.race([
      stopping,
      daemon.ended.then((how) => {
        throw new DaemonEnded(`${name} ${how}`);
      }),
    ]);
    await daemon.stop();
    process.exit(0);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    if (!process.connected) console.error(message);
    tellParent({ type: "failed", message });
    process.exitCode = 1;
    if (process.connected) process.disconnect();
  }
}

/** Of `host:port`. */
export function readListen(text: string): { host: string; port: number } {
  const [host, port] = text.split(":");
  return { host: host!, port: Number(port) };
}
