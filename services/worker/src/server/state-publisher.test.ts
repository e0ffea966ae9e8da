import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { StatePublisher } from "./state-publisher.ts";

describe("StatePublisher", () => {
  it("tells a new watcher the state at once", () => {
    const { watch } = publisher();
    expect(watch()).toEqual(["0ms: a #1"]);
  });

  it("tells a change at once after a quiet time, and those that follow within 50 ms as one", () => {
    const { watch, change, clock } = publisher();
    const heard = watch();
    clock.advance(500);
    for (const state of ["b", "c", "d", "e"]) {
      change(state);
      clock.advance(15);
    }
    clock.advance(100);
    expect(heard).toEqual(["0ms: a #1", "500ms: b #2", "550ms: e #3"]);
  });

  it("tells sooner that work was taken on, whatever else was due: within 5 ms of what it told last", () => {
    const { watch, change, takeOn, clock } = publisher();
    const heard = watch();
    clock.advance(500);
    change("b");
    clock.advance(1);
    change("c");
    clock.advance(1);
    takeOn("d");
    clock.advance(1);
    change("e");
    clock.advance(200);
    expect(heard).toEqual(["0ms: a #1", "500ms: b #2", "505ms: e #3"]);
  });

  it("is heard every second when nothing changes", () => {
    const { watch, clock } = publisher();
    const heard = watch();
    clock.advance(2500);
    expect(heard).toEqual(["0ms: a #1", "1000ms: a #2", "2000ms: a #3"]);
  });

  it("never stops for a state that changes all the time", () => {
    const { watch, change, clock } = publisher();
    const heard = watch();
    for (let i = 0; i < 100; i++) {
      change(`s${i}`);
      clock.advance(10);
    }
    expect(heard.length).toBeGreaterThanOrEqual(20);
  });

  it("gives all watchers ever higher sequence numbers", () => {
    const { watch, clock } = publisher();
    const first = watch();
    clock.advance(1000);
    const second = watch();
    clock.advance(1000);
    expect(first.map(sequenceOf)).toEqual([1, 2, 4]);
    expect(second.map(sequenceOf)).toEqual([3, 4]);
  });

  it("numbers what is told in other ways between the states before and those after", () => {
    const { watch, subject, clock } = publisher();
    const heard = watch();
    expect(subject.nextSequence()).toBe(2n);
    clock.advance(1000);
    expect(heard.map(sequenceOf)).toEqual([1, 3]);
  });

  it("leaves no timer behind its last watcher", () => {
    const { subject, clock, describes } = publisher();
    const end = subject.watch(() => {});
    end();
    subject.changed();
    clock.advance(5000);
    expect(describes()).toBe(1);
  });
});

function publisher() {
  const clock = new ManualClock();
  let state = "a";
  let described = 0;
  const subject = new StatePublisher<string>(clock, (sequence) => {
    described += 1;
    return `${clock.nowMs()}ms: ${state} #${sequence}`;
  });
  return {
    subject,
    clock,
    describes: () => described,
    watch() {
      const heard: string[] = [];
      subject.watch((text) => heard.push(text));
      return heard;
    },
    takeOn(to: string) {
      state = to;
      subject.tookOn();
    },
    change(to: string) {
      state = to;
      subject.changed();
    },
  };
}

function sequenceOf(text: string): number {
  return Number(text.split("#")[1]);
}
