/**
 * The rules of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2), as its controller's source has them: what each kind of
 * metric asks for, the tolerance, the limits of growth, and the highest wish of a while before anything is taken away.
 */
export interface ScalerRules {
  readonly min: number;
  readonly max: number;
  /** Nothing is done for less than this share of difference. */
  readonly tolerance: number;
  /** Growth within `periodMs`: twice as many, or so many more, whichever is more. */
  readonly growth: { readonly factor: number; readonly pods: number; readonly periodMs: number };
  /** Fewer only when nothing within so long asked for more. */
  readonly stabilisationMs: number;
}

/** The defaults of kube-controller-manager. */
export const DEFAULT_RULES: Omit<ScalerRules, "min" | "max"> = {
  tolerance: 0.1,
  growth: { factor: 2, pods: 4, periodMs: 15_000 },
  stabilisationMs: 300_000,
};

/** What a metric says now. */
export type Reading =
  /** A resource's share in use, of each ready pod. */
  | { readonly utilisation: readonly number[]; readonly target: number; readonly starting: number }
  /** A sum that is shared among the pods (External metric, AverageValue). */
  | { readonly total: number; readonly averageValue: number };

export class HorizontalScaler {
  readonly #rules: ScalerRules;
  /** Wishes of the stabilisation window. */
  #wishes: { atMs: number; replicas: number }[] = [];
  /** Sizes of the growth period. */
  #sizes: { atMs: number; replicas: number }[] = [];

  constructor(rules: ScalerRules) {
    this.#rules = rules;
  }

  /** How many pods there should be, of `replicas` that there are or that are on their way. */
  decide(reading: Reading, replicas: number, nowMs: number): number {
    const { min, max, growth, stabilisationMs } = this.#rules;
    const wish = clamp(this.#wished(reading, replicas), min, max);

    this.#wishes = this.#wishes.filter(({ atMs }) => atMs > nowMs - stabilisationMs);
    this.#wishes.push({ atMs: nowMs, replicas: wish });
    const stable = wish < replicas ? Math.min(replicas, Math.max(...this.#wishes.map((each) => each.replicas))) : wish;

    this.#sizes = this.#sizes.filter(({ atMs }) => atMs > nowMs - growth.periodMs);
    this.#sizes.push({ atMs: nowMs, replicas });
    const from = this.#sizes[0]!.replicas;
    return Math.min(stable, Math.max(replicas, Math.ceil(from * growth.factor), from + growth.pods));
  }

  #wished(reading: Reading, replicas: number): number {
    const { tolerance } = this.#rules;
    const within = (ratio: number) => Math.abs(ratio - 1) <= tolerance;
    if ("total" in reading) {
      const { total, averageValue } = reading;
      return within(total / (averageValue * replicas)) ? replicas : Math.ceil(total / averageValue);
    }
    const { utilisation, target, starting } = reading;
    const ready = utilisation.length;
    if (ready === 0) return replicas;
    const sum = utilisation.reduce((total, share) => total + share, 0);
    const ratio = sum / ready / target;
    if (starting === 0 || ratio < 1) return within(ratio) ? replicas : Math.ceil(ratio * ready);
    // Pods that are not ready count as idle before more are asked for.
    const cautious = sum / (ready + starting) / target;
    return cautious < 1 || within(cautious) ? replicas : Math.ceil(cautious * (ready + starting));
  }
}

function clamp(value: number, min: number, max: number): number {
  return Math.min(max, Math.max(min, value));
}
