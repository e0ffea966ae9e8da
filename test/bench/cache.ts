import { Redis } from "ioredis";
import { startRedis } from "../support/redis.ts";
import { type Bench, count, median, otherLoad, printGoals, printTable, round, warnIfBusy } from "./support/bench.ts";
import {
  BODY,
  JSON_BODY,
  type PictureServer,
  startBare,
  startOurs,
  startPeers,
} from "./support/cached-picture/servers.ts";
import { type LoadResult, wrk } from "./support/wrk.ts";

const GOAL = 0.8;
const PEER_GOAL = 5;
const P99_GOAL_MS = 50;

/** The answers that are compared: a picture's own bytes, and the JSON that holds it in base64. */
const KINDS = { picture: "image/png", json: "application/json" } as const;
type Kind = keyof typeof KINDS;

export const bench: Bench = {
  description: "exact hits per second against bare node:http + ioredis, and other servers, on the same bytes",
  options: {
    bytes: { default: "200000", help: "of a picture; 512x512 in PNG has about so many" },
    connections: { default: "64", help: "each asks again when it is answered" },
    seconds: { default: "4", help: "of a round" },
    rounds: { default: "5", help: "of each server, in turn; medians count" },
    peers: { default: "", help: "a Python environment with fastapi, uvicorn, redis, ray[serve] and bentoml" },
  },
  async run(options) {
    const [bytes, connections] = [count(options, "bytes"), count(options, "connections")];
    const [seconds, rounds] = [count(options, "seconds"), count(options, "rounds")];
    const load = otherLoad();
    warnIfBusy(load);
    const redis = await startRedis();
    const servers: PictureServer[] = [];
    const start = async <T extends PictureServer>(starting: Promise<T>): Promise<T> => {
      const server = await starting;
      servers.push(server);
      return server;
    };
    try {
      const client = new Redis(redis.url);
      // A busy machine is what this looks for, not how a lost Redis is found out.
      const redisEnv = { ATELIER_REDIS: redis.url, ATELIER_REDIS_TIMEOUT_MS: "10000" };
      const ours = await start(startOurs("ours", { bytes, env: redisEnv }));
      const noMemory = await start(
        startOurs("ours, nothing at hand", { bytes, env: { ...redisEnv, ATELIER_CACHE_MEMORY: "0" } }),
      );
      const bare: Record<Kind, PictureServer> = {} as Record<Kind, PictureServer>;
      const results: Record<Kind, Map<string, LoadResult[]>> = { picture: new Map(), json: new Map() };
      const peers: PictureServer[] = [];
      for (const kind of ["picture", "json"] as const) {
        const mediaType = KINDS[kind];
        const key = `bench:${kind}`;
        await client.set(key, await hitOf(ours, mediaType));
        await hitOf(noMemory, mediaType);
        bare[kind] = await start(startBare({ redisUrl: redis.url, key, mediaType }));
        if (kind === "picture" && options["peers"]) {
          for (const peer of await startPeers(options["peers"], { redisUrl: redis.url, key, mediaType })) {
            servers.push(peer);
            peers.push(peer);
          }
        }
        const compared = [bare[kind], ours, noMemory, ...(kind === "picture" ? peers : [])];
        const ask = (server: PictureServer, forSeconds: number) =>
          wrk({
            url: server.url,
            body: BODY,
            headers: { ...JSON_BODY, accept: mediaType },
            connections,
            threads: 1,
            seconds: forSeconds,
          });
        for (const server of compared) await ask(server, 1);
        for (let i = 0; i < rounds; i++) {
          for (const server of compared) {
            const result = await ask(server, seconds);
            results[kind].set(server.name, [...(results[kind].get(server.name) ?? []), result]);
          }
        }
      }
      client.disconnect();

      const rate = (kind: Kind, { name }: PictureServer) => median(results[kind].get(name)!.map((r) => r.perSecond));
      const p99 = (kind: Kind, { name }: PictureServer) => median(results[kind].get(name)!.map((r) => r.p99Ms));
      /** Round by round, since what else the machine does changes from one to the next. */
      const against = (kind: Kind, one: PictureServer, other: PictureServer) => {
        const others = results[kind].get(other.name)!;
        return median(results[kind].get(one.name)!.map((r, i) => r.perSecond / others[i]!.perSecond));
      };
      for (const kind of ["picture", "json"] as const) {
        console.log(
          `\n${KINDS[kind]}, ${bytes} bytes a picture, ${connections} connections, median of ${rounds} rounds:`,
        );
        const row = (name: string) => {
          const of = results[kind].get(name)!;
          const [p50, last] = [median(of.map((r) => r.p50Ms)), median(of.map((r) => r.p99Ms))];
          return [name, median(of.map((r) => r.perSecond)), p50.toFixed(1), last.toFixed(1)];
        };
        printTable([["server", "hits/s", "p50 ms", "p99 ms"], ...[...results[kind].keys()].map(row)]);
      }
      const ratio = against("picture", ours, bare.picture);
      const ratioJson = against("json", ours, bare.json);
      const overPeers = peers.map((peer) => ({ name: peer.name, value: against("picture", ours, peer) }));
      printGoals([
        { name: "picture, ours / bare", value: ratio, atLeast: GOAL },
        { name: "JSON, ours / bare", value: ratioJson, atLeast: GOAL },
        { name: "p99 of pictures, ms", value: p99("picture", ours), atMost: P99_GOAL_MS },
        { name: "p99 of JSON, ms", value: p99("json", ours), atMost: P99_GOAL_MS },
        ...overPeers.map(({ name, value }) => ({ name: `ours / ${name}`, value, atLeast: PEER_GOAL })),
      ]);
      return {
        ratio: round(Math.min(ratio, ratioJson)),
        goal: GOAL,
        ratio_picture: round(ratio),
        ratio_json: round(ratioJson),
        ratio_from_redis: round(against("picture", noMemory, bare.picture)),
        ratio_json_from_redis: round(against("json", noMemory, bare.json)),
        hits_per_s: round(rate("picture", ours), 0),
        bare_per_s: round(rate("picture", bare.picture), 0),
        json_per_s: round(rate("json", ours), 0),
        p99_ms: round(p99("picture", ours), 1),
        ...Object.fromEntries(overPeers.map(({ name, value }) => [`over ${name}`, round(value)])),
        bytes,
        connections,
        rounds,
        load,
      };
    } finally {
      for (const server of servers.reverse()) await server.stop();
      await redis.stop();
    }
  },
};

/** The answer to a hit; the first call makes it one. */
async function hitOf(server: PictureServer, accept: string): Promise<Buffer> {
  for (let attempt = 0; attempt < 20; attempt++) {
    const response = await fetch(server.url, { method: "POST", headers: { ...JSON_BODY, accept }, body: BODY });
    const body = Buffer.from(await response.arrayBuffer());
    if (response.headers.get("x-atelier-cache") === "hit") return body;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${server.name} does not come to answer from its cache`);
}
