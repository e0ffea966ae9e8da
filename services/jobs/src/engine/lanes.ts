import { Pace, windowOf } from "./pace.ts";

/** Of what a window is learned from. */
const PACE_MS = 10_000;

interface Lane {
  out: number;
  readonly pace: Pace;
}

/** How many items of each class and model are out, and how many may be. A model that nobody serves fills its own window only. */
export class Lanes {
  readonly #lanes = new Map<string, Lane>();

  hasRoom(name: string, nowMs: number): boolean {
    const lane = this.#lanes.get(name);
    return lane === undefined || lane.out < windowOf(lane.pace, nowMs);
  }

  handedOut(name: string): void {
    let lane = this.#lanes.get(name);
    if (lane === undefined) {
      lane = { out: 0, pace: new Pace(PACE_MS) };
      this.#lanes.set(name, lane);
    }
    lane.out++;
  }

  ended(name: string, nowMs: number): void {
    const lane = this.#lanes.get(name)!;
    lane.out--;
    lane.pace.note(nowMs, 0);
  }

  putBack(name: string): void {
    this.#lanes.get(name)!.out--;
  }
}
