import { Resolver } from "node:dns/promises";
import { ManualClock } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import { describe, expect, it, onTestFinished } from "vitest";
import { DnsServer } from "../testing/dns-server.ts";
import { dnsDirectory } from "./dns-directory.ts";
import { joinedDirectory, staticDirectory } from "./worker-directory.ts";

const NAME = "workers.atelier.test";

describe("a directory of a name's addresses, asked of a name server", () => {
  it("lists every A and AAAA record with the port, in order", async () => {
    const { lists, next } = await watched(["10.0.0.2", "10.0.0.1", "fd00::7"]);
    await next();
    expect(lists).toEqual([[], ["10.0.0.1:7001", "10.0.0.2:7001", "[fd00::7]:7001"]]);
  });

  it("asks again every five seconds, and tells only what has changed", async () => {
    const { lists, next, clock, server, asked } = await watched(["10.0.0.1"]);
    await next();
    clock.advance(5_000);
    await asked(4);
    server.records.set(NAME, ["10.0.0.1", "10.0.0.3"]);
    clock.advance(5_000);
    await next();
    expect(lists.slice(1)).toEqual([["10.0.0.1:7001"], ["10.0.0.1:7001", "10.0.0.3:7001"]]);
  });

  it.each<[string, (server: DnsServer) => void]>([
    ["does not exist any more", (server) => server.records.clear()],
    ["has no address", (server) => server.records.set(NAME, [])],
    ["cannot be asked for", (server) => Object.assign(server, { failing: true })],
  ])("keeps the last list when the name %s, and goes on asking", async (_what, fail) => {
    const { lists, next, clock, server, asked } = await watched(["10.0.0.1"]);
    await next();
    fail(server);
    clock.advance(5_000);
    await asked(4);
    expect(lists).toEqual([[], ["10.0.0.1:7001"]]);
    server.failing = false;
    server.records.set(NAME, ["10.0.0.9"]);
    clock.advance(5_000);
    await next();
    expect(lists.at(-1)).toEqual(["10.0.0.9:7001"]);
  });

  it("asks no more once it is ended", async () => {
    const { next, clock, server, end } = await watched(["10.0.0.1"]);
    await next();
    end();
    clock.advance(60_000);
    await new Promise((resolve) => setImmediate(resolve));
    expect(server.questions).toBe(2);
  });
});

describe("a directory of addresses and names together", () => {
  it("lists each address once, and follows the names", () => {
    let tell: (addresses: readonly string[]) => void = () => {};
    const lists: (readonly string[])[] = [];
    const named = {
      watch: (listener: typeof tell) => {
        tell = listener;
        listener([]);
        return () => lists.push(["ended"]);
      },
    };
    const end = joinedDirectory([staticDirectory(["a:1", "b:1"]), named]).watch((addresses) => lists.push(addresses));
    tell(["b:1", "c:1"]);
    end();
    expect(lists).toEqual([["a:1", "b:1"], ["a:1", "b:1", "c:1"], ["ended"]]);
  });
});

/** A watch that asks a real name server, with a clock of the test's and no jitter. */
async function watched(addresses: readonly string[]) {
  const server = await DnsServer.start();
  onTestFinished(() => server.stop());
  server.records.set(NAME, addresses);
  const resolver = new Resolver({ timeout: 500, tries: 1 });
  resolver.setServers([server.address]);
  const clock = new ManualClock();
  const lists: (readonly string[])[] = [];
  let heard = () => {};
  const directory = dnsDirectory({
    name: { host: NAME, port: 7001 },
    clock,
    random: { next: () => 0.5 },
    log: createLogger("gateway", "silent"),
    resolver,
  });
  const end = directory.watch((list) => {
    lists.push(list);
    heard();
  });
  onTestFinished(end);
  return {
    lists,
    clock,
    server,
    end,
    /** Resolves when another list has come, and the next question is due. */
    next: () => new Promise<void>((resolve) => (heard = () => setImmediate(resolve))),
    /** Resolves when the server was asked so often and its answers were read. */
    asked: async (questions: number) => {
      while (server.questions < questions) await new Promise((resolve) => setTimeout(resolve, 2));
      await new Promise((resolve) => setTimeout(resolve, 30));
    },
  };
}
