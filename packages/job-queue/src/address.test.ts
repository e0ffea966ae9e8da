import { describe, expect, it } from "vitest";
import { parseQueueAddress } from "./address.ts";

describe("a queue's address", () => {
  it("is a file of this machine", () => {
    expect(parseQueueAddress("sqlite:/var/lib/atelier/queue.db")).toEqual({
      kind: "sqlite",
      path: "/var/lib/atelier/queue.db",
    });
  });

  it("is one NATS server or several, in clear or with TLS", () => {
    expect(parseQueueAddress("nats://a:4222,nats://b:4223, c")).toEqual({
      kind: "nats",
      servers: ["a:4222", "b:4223", "c:4222"],
      tls: false,
      credentials: undefined,
    });
    expect(parseQueueAddress("tls://[::1]:4222")).toMatchObject({ servers: ["[::1]:4222"], tls: true });
  });

  it("carries a user and a password", () => {
    expect(parseQueueAddress("nats://jobs:a%40b@host:4222")).toMatchObject({
      servers: ["host:4222"],
      credentials: { user: "jobs", password: "a@b" },
    });
  });

  it.each([
    ["redis://h:1", /begins "redis:\/\/h:1"/],
    ["sqlite:queue.db", /needs its whole path, got "queue.db"/],
    ["sqlite:/var/lib/", /names a file/],
    ["nats://a:4222,tls://b:4222", /tls:\/\/b:4222 should be nats:\/\//],
    ["nats://a:99999", /nats:\/\/a:99999 should be nats:\/\/host:port/],
    ["nats://a:1/path", /should be nats:\/\/host:port/],
    ["nats://", /should be nats:\/\/host:port/],
  ])("is not %s", (text, message) => {
    expect(() => parseQueueAddress(text)).toThrow(RangeError);
    expect(() => parseQueueAddress(text)).toThrow(message);
  });

  it("keeps the password out of what it says", () => {
    expect(() => parseQueueAddress("nats://jobs:hush@host:4222/x")).toThrow(/^(?!.*hush).*host:4222/);
  });
});
