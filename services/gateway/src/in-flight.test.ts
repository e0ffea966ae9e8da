import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { InFlight } from "./in-flight.ts";

describe("InFlight", () => {
  it("refuses what is beyond its limit, and has room again when one leaves", () => {
    const inFlight = new InFlight({ max: 2 });
    const first = inFlight.enter();
    inFlight.enter();
    expect(() => inFlight.enter()).toThrow(/OVERLOADED.*2 generations/);
    first.leave();
    expect(inFlight.enter().signal.aborted).toBe(false);
  });

  it("lets nothing in once it stops, and keeps what is in", () => {
    const inFlight = new InFlight({ max: 2 });
    const ticket = inFlight.enter();
    inFlight.stop();
    expect(() => inFlight.enter()).toThrow(/DRAINING/);
    expect([inFlight.count, ticket.signal.aborted]).toEqual([1, false]);
  });

  it("aborts everything with the reason given", () => {
    const inFlight = new InFlight({ max: 2 });
    const tickets = [inFlight.enter(), inFlight.enter()];
    const reason = new ServingError("DRAINING", "too long");
    inFlight.abortAll(reason);
    expect(tickets.map((ticket) => ticket.signal.reason)).toEqual([reason, reason]);
  });
});
