import { describe, expect, it } from "vitest";
import { Lanes } from "./lanes.ts";

describe("Lanes", () => {
  it("have room for a window of items each, so that a model that nobody serves holds up no other", () => {
    const lanes = new Lanes();
    for (let i = 0; i < 64; i++) lanes.handedOut("unserved");
    expect([lanes.hasRoom("unserved", 0), lanes.hasRoom("served", 0)]).toEqual([false, true]);
    lanes.ended("unserved", 0);
    expect(lanes.hasRoom("unserved", 0)).toBe(true);
    lanes.handedOut("unserved");
    lanes.putBack("unserved");
    expect(lanes.hasRoom("unserved", 0)).toBe(true);
  });

  it("are lost where the queue has nothing of what is out, three looks in a row without an end", () => {
    const lanes = new Lanes();
    for (const name of ["lost", "queued", "ending"]) lanes.handedOut(name);
    lanes.handedOut("ending");
    const look = () => lanes.lost(new Set(["queued"]));
    expect([look(), look()]).toEqual([[], []]);
    lanes.ended("ending", 0);
    expect(look()).toEqual(["lost"]);
    expect(look()).toEqual([]); // it is counted anew
  });
});
