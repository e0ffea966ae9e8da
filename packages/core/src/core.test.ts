import { describe, expect, it } from "vitest";
import { z } from "zod";
import {
  canonicalDigest,
  canonicalText,
  Deadline,
  fromEnv,
  ManualClock,
  newId,
  readConfig,
  ServingError,
  seededRandom,
} from "./index.ts";

describe("newId", () => {
  it("is the prefix and 96 bits that no other id has", () => {
    const ids = Array.from({ length: 1000 }, () => newId("gen"));
    expect(new Set(ids).size).toBe(1000);
    for (const id of ids) expect(id).toMatch(/^gen_[\w-]{16}$/);
  });
});

describe("canonicalText", () => {
  it("gives one text for one meaning, whatever the order of keys and the spelling of accents", () => {
    expect(canonicalText({ b: 1, a: "e\u0301" })).toBe(canonicalText({ a: "\u00e9", b: 1 }));
  });

  it("tells apart what differs", () => {
    expect(canonicalDigest({ seed: 1 })).not.toBe(canonicalDigest({ seed: 2 }));
    expect(canonicalDigest({ seed: 1 })).not.toBe(canonicalDigest({ seed: "1" }));
  });

  it("writes the digest that sha256sum writes", () => {
    // printf '{"a":1}' | sha256sum
    expect(canonicalDigest({ a: 1 })).toBe("sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862");
  });
});

describe("Deadline", () => {
  it("counts down with the clock and never below zero", () => {
    const clock = new ManualClock();
    const deadline = Deadline.after(clock, 100);
    clock.advance(40);
    expect(deadline.leftMs).toBe(60);
    clock.advance(100);
    expect(deadline.leftMs).toBe(0);
    expect(() => deadline.check("denoising")).toThrow(/DEADLINE_EXCEEDED.*denoising/);
  });
});

describe("ManualClock", () => {
  it("runs timers in the order of their times, and not those taken back", () => {
    const clock = new ManualClock();
    const ran: string[] = [];
    clock.after(20, () => ran.push("second"));
    clock.after(10, () => ran.push("first"));
    clock.after(15, () => ran.push("never"))();
    clock.advance(30);
    expect(ran).toEqual(["first", "second"]);
  });
});

describe("readConfig", () => {
  const schema = z.object({
    PORT: fromEnv.port().default(8080),
    THREADS: fromEnv.integer({ min: 1, max: 64 }).default(2),
  });

  it("applies defaults, and treats an empty variable as unset", () => {
    expect(readConfig(schema, { PORT: "" })).toEqual({ PORT: 8080, THREADS: 2 });
  });

  it.each([
    ["8589934592", 2 ** 33],
    ["8GiB", 2 ** 33],
    ["1.5 gib", 1.5 * 2 ** 30],
    ["512MiB", 2 ** 29],
    ["8GB", 8e9],
  ])("reads %s as bytes", (text, bytes) => {
    expect(readConfig(z.object({ ROOM: fromEnv.bytes() }), { ROOM: text })).toEqual({ ROOM: bytes });
  });

  it.each(["8 gigs", "-1GiB", "GiB", "0", "1e9", "0.3"])("does not take %s for bytes", (text) => {
    expect(() => readConfig(z.object({ ROOM: fromEnv.bytes() }), { ROOM: text })).toThrow(/must be bytes, as/);
  });

  it("names every bad variable and its value in one message", () => {
    expect(() => readConfig(schema, { PORT: "http", THREADS: "0" })).toThrow(/PORT=http[\s\S]*THREADS=0/);
  });
});

describe("ServingError", () => {
  it("says whether another worker could help", () => {
    expect(new ServingError("OVERLOADED", "full").retryable).toBe(true);
    expect(new ServingError("INVALID_REQUEST", "width 7", { field: "width" }).retryable).toBe(false);
  });
});

describe("seededRandom", () => {
  it("repeats for one seed and is uniform to a few percent", () => {
    const draws = (seed: number) => {
      const random = seededRandom(seed);
      return Array.from({ length: 10_000 }, () => random.next());
    };
    expect(draws(7)).toEqual(draws(7));
    expect(draws(7)).not.toEqual(draws(8));
    const mean = draws(7).reduce((sum, x) => sum + x, 0) / 10_000;
    expect(mean).toBeGreaterThan(0.48);
    expect(mean).toBeLessThan(0.52);
  });
});
