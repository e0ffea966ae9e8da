/** Redis as a child process of ours. What it holds lies in memory only, and goes with it. */
import { readListen, runAsChild } from "./child-daemon.ts";
import { startRedisServer } from "./daemons.ts";

const { ATELIER_REDIS_LISTEN: listen = "127.0.0.1:0" } = process.env;
await runAsChild("redis-server", () => startRedisServer(readListen(listen)));
