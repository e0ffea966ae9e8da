/**
 * Redis as a child process of ours: speaks with its parent as our services do and ends with it. What it holds lies in
 * memory only, and goes with it.
 */
import { tellParent, untilAskedToStop } from "@atelier/lifecycle";
import { DaemonEnded, startRedisServer } from "./daemons.ts";

const stopping = untilAskedToStop();
const { ATELIER_REDIS_LISTEN: listen = "127.0.0.1:0" } = process.env;
const [host, port] = listen.split(":");
try {
  const redis = await startRedisServer({ host: host!, port: Number(port) });
  tellParent({ type: "listening", address: redis.address });
  tellParent({ type: "ready" });
  await Promise.race([
    stopping,
    redis.ended.then((how) => {
      throw new DaemonEnded(`redis-server ${how}`);
    }),
  ]);
  await redis.stop();
  process.exit(0);
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  if (!process.connected) console.error(message);
  tellParent({ type: "failed", message });
  process.exitCode = 1;
  if (process.connected) process.disconnect();
}
