import { type Clock, invariant } from "@atelier/core";

interface Event {
  readonly atMs: number;
  readonly order: number;
  run: (() => void) | undefined;
}

/**
 * A world with one thread and one clock. Nothing inside it may call Date.now, setTimeout or Math.random, so a seed names
 * a whole history. Promises run between events: after one that says so, everybody inside who can move has moved.
 */
export class Simulation implements Clock {
  #nowMs = 0;
  #scheduled = 0;
  #stirred = false;
  readonly #heap: Event[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  after(delayMs: number, run: () => void): () => void {
    invariant(delayMs >= 0, "time only moves forward");
    const event: Event = { atMs: this.#nowMs + delayMs, order: this.#scheduled++, run };
    push(this.#heap, event);
    return () => {
      event.run = undefined;
    };
  }

  /** A promise was settled or made: it gets to run before time goes on. */
  stir(): void {
    this.#stirred = true;
  }

  /** Runs until `done` says so. @throws InvariantError where the history does not end. */
  async run({ done, eventsMax }: { done: () => boolean; eventsMax: number }): Promise<void> {
    for (let n = 0; !done(); n++) {
      invariant(n < eventsMax, `the history settles within ${eventsMax} events`);
      const event = pop(this.#heap);
      invariant(event !== undefined, "something is still to happen while not all is done");
      this.#nowMs = event.atMs;
      event.run?.();
      if (!this.#stirred) continue;
      this.#stirred = false;
      await settled();
    }
  }
}

/** Microtasks drain before an immediate runs. */
const settled = () => new Promise<void>((resolve) => setImmediate(resolve));

const before = (a: Event, b: Event) => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

function push(heap: Event[], event: Event): void {
  let at = heap.push(event) - 1;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (!before(event, heap[parent]!)) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = event;
}

function pop(heap: Event[]): Event | undefined {
  const first = heap[0];
  const last = heap.pop();
  if (first === undefined || last === undefined || heap.length === 0) return first;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child += 1;
    if (!before(heap[child]!, last)) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = last;
  return first;
}
