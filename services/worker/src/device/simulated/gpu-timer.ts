/** Time as a GPU's queue sees it. `sleep` may wake late, as timers do. */
export interface TimerPort {
  nowMs(): number;
  sleep(ms: number): Promise<void>;
}

const SYSTEM: TimerPort = {
  nowMs: () => performance.now(),
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
};

/**
 * Makes a run last as long as a GPU's would.
 *
 * A timer wakes up to a millisecond late, and 30 steps would add that up: each run gives back by how much the one before
 * overslept. What the caller does between runs is not given back; a GPU would wait for it as well.
 */
export class GpuTimer {
  readonly #timer: TimerPort;
  readonly #speed: number;
  #lateMs = 0;

  constructor({ timer = SYSTEM, speed = 1 }: { timer?: TimerPort; speed?: number } = {}) {
    this.#timer = timer;
    this.#speed = speed;
  }

  /** Does `work` and comes back `ms` / speed after the call: the work is what stands in for the GPU's. */
  async run<Result>(ms: number, work: () => Result): Promise<Result> {
    const endMs = this.#timer.nowMs() + ms / this.#speed - this.#lateMs;
    const result = work();
    const leftMs = endMs - this.#timer.nowMs();
    if (leftMs > 0) await this.#timer.sleep(leftMs);
    // Work that alone takes longer than the GPU would is not made up for later.
    this.#lateMs = Math.min(LATE_MAX_MS, this.#timer.nowMs() - endMs);
    return result;
  }
}

/** More than this is no timer's lateness but a machine that is too busy. */
const LATE_MAX_MS = 5;
