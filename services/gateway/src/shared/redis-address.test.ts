import { describe, expect, it } from "vitest";
import { describeRedis, parseRedisAddress } from "./redis-address.ts";

describe("the address of Redis", () => {
  it("names one server, with the usual port and database left out", () => {
    expect(parseRedisAddress("redis://cache")).toEqual({
      kind: "single",
      nodes: [{ host: "cache", port: 6379 }],
      tls: false,
      username: undefined,
      password: undefined,
      database: 0,
      masterName: undefined,
    });
  });

  it("carries a user, a password in which anything may stand, a database and TLS", () => {
    expect(parseRedisAddress("rediss://atelier:p%40ss%2F:word@[::1]:6380/2")).toMatchObject({
      nodes: [{ host: "::1", port: 6380 }],
      tls: true,
      username: "atelier",
      password: "p@ss/:word",
      database: 2,
    });
    expect(parseRedisAddress("redis://:pa@ss@cache")).toMatchObject({ username: undefined, password: "pa@ss" });
  });

  it("names some nodes of a cluster, or the sentinels and their group", () => {
    expect(parseRedisAddress("redis-cluster://:p@a:1,b:2,c")).toMatchObject({
      kind: "cluster",
      nodes: [
        { host: "a", port: 1 },
        { host: "b", port: 2 },
        { host: "c", port: 6379 },
      ],
      password: "p",
    });
    expect(parseRedisAddress("rediss-sentinel://a,b:2/main")).toMatchObject({
      kind: "sentinel",
      nodes: [
        { host: "a", port: 26_379 },
        { host: "b", port: 2 },
      ],
      tls: true,
      masterName: "main",
    });
  });

  it.each(["redis://cache:6379", "rediss://[::1]:6380/2", "redis-cluster://a:1,b:2", "redis-sentinel://a:1,b:2/main"])(
    "is told as %s, without its password",
    (text) => {
      expect(describeRedis(parseRedisAddress(text))).toBe(text);
      expect(describeRedis(parseRedisAddress(text.replace("://", "://user:s3cr3t@")))).toBe(text);
    },
  );

  it.each([
    ["no URL", "cache:6379", /must be redis:/],
    ["another scheme", "http://cache", /must be redis:/],
    ["no host", "redis://", /must be redis:/],
    ["a port out of range", "redis://cache:65536", /"cache:65536" is not a host/],
    ["several servers that are no cluster", "redis://a,b", /form of their own/],
    ["a database that is not a number", "redis://a/first", /"first" is not a number/],
    ["a database in a cluster", "redis-cluster://a/1", /one database/],
    ["sentinels without a group", "redis-sentinel://a:1", /group's name/],
    ["a password without a colon", "redis://s3cr3t@a", /after a colon/],
    ["a password that is not encoded", "redis://:s3cr3t%@a", /percent-encoded/],
  ])("is refused with %s", (_what, text, message) => {
    expect(() => parseRedisAddress(text)).toThrow(message);
    expect(() => parseRedisAddress(text)).not.toThrow(/s3cr3t/);
  });
});
