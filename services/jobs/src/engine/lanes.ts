import { Pace, windowOf } from "./pace.ts";

/** Of what a window is learned from. */
const PACE_MS = 10_000;

interface Lane {
  out: number;
  readonly pace: Pace;
  /** Times in a row that the queue had none of what is out. */
  emptyLooks: number;
}

/** Looks that find none of a lane in the queue before what is out is taken for lost: events may be on their way. */
const EMPTY_LOOKS = 3;

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
      lane = { out: 0, pace: new Pace(PACE_MS), emptyLooks: 0 };
      this.#lanes.set(name, lane);
    }
    lane.out++;
    lane.emptyLooks = 0;
  }

  ended(name: string, nowMs: number): void {
    const lane = this.#lanes.get(name)!;
    lane.out--;
    lane.emptyLooks = 0;
    lane.pace.note(nowMs, 0);
  }

  putBack(name: string): void {
    this.#lanes.get(name)!.out--;
  }

  /** Given those that the queue has something of: those of which something is out that is not in the queue any more. */
  lost(queued: ReadonlySet<string>): readonly string[] {
    const lost: string[] = [];
    for (const [name, lane] of this.#lanes) {
      lane.emptyLooks = lane.out > 0 && !queued.has(name) ? lane.emptyLooks + 1 : 0;
      if (lane.emptyLooks < EMPTY_LOOKS) continue;
      lane.emptyLooks = 0;
      lost.push(name);
    }
    return lost;
  }
}
