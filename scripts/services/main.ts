/**
 * `npm run services`: the servers of others that development wants, on loopback until Ctrl-C. Redis is needed; NATS is
 * started where it can be had, and where it cannot that is said.
 */
import { parseArgs } from "node:util";
import { untilAskedToStop } from "@atelier/lifecycle";
import { NotToBeHad } from "./cache-folder.ts";
import { type Daemon, DaemonEnded, startNatsServer, startRedisServer } from "./daemons.ts";

const HELP = `npm run services [-- options]

Starts Redis and NATS (with JetStream) on this machine until Ctrl-C, and prints their addresses.
在本机启动 Redis 和 NATS，按 Ctrl-C 停止。

  --redis-port <n>   port of Redis (6379; 0 takes a free one)
  --nats-port <n>    port of NATS (4222; 0 takes a free one)
  --only <name>      redis or nats
  -h, --help         print this

Each program is taken from PATH. Where it is not there: from the image redis:7 or nats:2, where docker or podman has it
already; else redis-server is unpacked from the Debian package, and nats-server is built by the Go on PATH, once, into
~/.cache/atelier (or the folder that ATELIER_CACHE names).
Both listen on 127.0.0.1 only and ask for no password. What they hold goes when they stop.

Examples · 示例:
  npm run services
  npm run services -- --only redis --redis-port 0
  npm start -- --redis redis://127.0.0.1:6379
  npm start -- --nats nats://127.0.0.1:4222`;

class Usage extends Error {}

const stopping = untilAskedToStop();
try {
  process.exitCode = await run();
} catch (error) {
  if (!(error instanceof NotToBeHad || error instanceof DaemonEnded || isUsage(error))) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = isUsage(error) ? 2 : 1;
}

async function run(): Promise<number> {
  const { values } = parseArgs({
    options: {
      "redis-port": { type: "string", default: "6379" },
      "nats-port": { type: "string", default: "4222" },
      only: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    return 0;
  }
  const { only } = values;
  if (only !== undefined && only !== "redis" && only !== "nats") throw new Usage(`--only ${only}: redis or nats`);
  const ports = { redis: port("redis-port", values["redis-port"]), nats: port("nats-port", values["nats-port"]) };
  const host = "127.0.0.1";
  const running: Daemon[] = [];
  try {
    if (only !== "nats") {
      const redis = await startRedisServer({ host, port: ports.redis });
      running.push(redis);
      console.log(`Redis at redis://${redis.address}`);
    }
    if (only !== "redis") {
      const nats = await startNatsServer({ host, port: ports.nats }).catch((error: unknown) => {
        if (only === "nats" || !(error instanceof NotToBeHad)) throw error;
        console.log(`NATS is not started: ${error.message}`);
        return undefined;
      });
      if (nats !== undefined) running.push(nats);
      if (nats !== undefined) console.log(`NATS at nats://${nats.address}`);
    }
    console.log("Ctrl-C stops them · 按 Ctrl-C 停止");
    const lost = Promise.race(running.map(async (daemon) => `${daemon.address}: ${await daemon.ended}`));
    const outcome = await Promise.race([stopping.then(() => undefined), lost]);
    if (outcome !== undefined) throw new DaemonEnded(outcome);
    return 0;
  } finally {
    await Promise.all(running.map((daemon) => daemon.stop()));
  }
}

function port(name: string, text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value <= 65_535) return value;
  throw new Usage(`--${name} ${text}: it must be a whole number from 0 to 65535`);
}

function isUsage(error: unknown): error is Error {
  return error instanceof Usage || (error instanceof TypeError && "code" in error);
}
