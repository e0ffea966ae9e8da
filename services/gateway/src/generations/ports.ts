import type { Deadline } from "@atelier/core";
import type { Caller, PriorityClass } from "../caller.ts";
import type { CompleteRequest, Generation, GenerationEvent, ImageRequest } from "../image-request.ts";
import type { Standing } from "../tenants/accounts.ts";

/** How a request was served: from the cache, by somebody else's generation, from a similar one's latent, or anew. */
export const CACHE_OUTCOMES = ["hit", "shared", "approximate", "miss", "bypass"] as const;
export type CacheOutcome = (typeof CACHE_OUTCOMES)[number];

/** What a request allows the caches to do. Source: RFC 9111, section 5.2.1 (no-cache, no-store). */
export interface CacheUse {
  /** An earlier answer will do. */
  readonly read: boolean;
  /** The answer may be kept for others. */
  readonly store: boolean;
  /** A similar prompt's latent will do to begin with; it changes the picture, so it is the caller's choice. */
  readonly approximate: boolean;
}

/** All about a request but what it draws. */
export interface GenerationContext {
  readonly caller: Caller;
  readonly deadline: Deadline;
  /** Aborted with a ServingError when the caller went away or took the request back. */
  readonly signal: AbortSignal;
  /** Undefined: the caller's own. */
  readonly priority: PriorityClass | undefined;
  readonly cache: CacheUse;
  /** Told of the request's way while it lasts, in order. Must not throw. */
  readonly onEvent?: ((event: GenerationEvent) => void) | undefined;
  /** Told how it was served, once it was. Must not throw. */
  readonly onServed?: ((outcome: CacheOutcome) => void) | undefined;
  /** Told how the caller's rate limits stand once the request was counted or refused. Must not throw. */
  readonly onStanding?: ((standing: Standing) => void) | undefined;
}

/** Whose turn a request is, at the gateway and on the worker. */
export interface ServiceOrder {
  readonly priority: PriorityClass;
  readonly tenant: string;
  /** The tenant's share of a busy device against that of others of its class; 1 where it is absent. */
  readonly weight?: number | undefined;
}

/** One making of pictures: whoever it is for, for as long as anybody waits. */
export interface MakeLimits {
  readonly order: ServiceOrder;
  readonly deadline: Deadline;
  /** Aborted with a ServingError when nobody wants the answer any more. */
  readonly signal: AbortSignal;
  readonly onEvent?: ((event: GenerationEvent) => void) | undefined;
  /** Sees where each picture stands after some of its steps. Must not throw, nor keep what it does not want long. */
  readonly onCheckpoint?: ((passing: PassingLatent) => void) | undefined;
  /** So many steps apart at most, and at each multiple; absent: as the dispatch sees fit. */
  readonly checkpointEvery?: number | undefined;
}

/** A picture on its way, between two steps. */
export interface PassingLatent {
  /** Which of the request's pictures. */
  readonly imageIndex: number;
  /** Of the bundle that makes it. */
  readonly modelDigest: string;
  /** 0 at native size; 1 where a larger picture is refined. */
  readonly phase: number;
  /** The next step to run, of the phase's plan. */
  readonly stepIndex: number;
  readonly channels: number;
  /** Of the latent: pixels / 8. */
  readonly height: number;
  readonly width: number;
  /** float32, [channels, height, width] row-major, little-endian. */
  readonly latent: Uint8Array;
}

export type Make = (image: ImageRequest, limits: MakeLimits) => Promise<Generation>;

export interface Served {
  /** With the seed that its pictures have. */
  readonly request: ImageRequest;
  readonly generation: Generation;
  readonly outcome: CacheOutcome;
}

/** Answers from what was made before or is being made for another, and otherwise has it made. */
export interface ResultCache {
  /** Rejects as `make` does, or with the reason of the context's signal. What it cannot reach it does without. */
  serve(
    asked: CompleteRequest,
    context: GenerationContext & { readonly order: ServiceOrder },
    make: Make,
  ): Promise<Served>;
}

/** Has pictures begin from what was made for similar prompts, where that is allowed. */
export interface SimilarStarts {
  /** Whether a request that uses the caches so may be begun so. */
  allowed(use: CacheUse): boolean;
  /** As `make`, which may be given a start. Rejects as that does. */
  make(image: ImageRequest, limits: MakeLimits, use: CacheUse, make: Make): Promise<Generation>;
}

/** A tenant's own limits and its account. */
export interface TenantLimits {
  /**
   * @throws ServingError RATE_LIMITED or QUOTA_EXCEEDED with a time to come back at, FORBIDDEN naming a field where it
   * could never be let in.
   */
  enter(caller: Caller, asked: CompleteRequest, onStanding?: (standing: Standing) => void): Promise<TenantTicket>;
}

export interface TenantTicket {
  /** Aborted with a ServingError when the caller lost its right meanwhile, as by a revoked key. */
  readonly signal: AbortSignal;
  /** Once, with what was served or nothing where it failed: frees the caller's place and books its use. */
  leave(served: Served | undefined): void;
}

/** Refuses at the door what would come too late. */
export interface Admission {
  /** The request as it is taken in: with less asked of it where the system is overloaded and configured to do so. */
  adjust(asked: CompleteRequest, order: ServiceOrder): CompleteRequest;
  /**
   * @throws ServingError OVERLOADED with a time to come back at, DEADLINE_EXCEEDED where not even an idle system would
   * finish it in time.
   */
  enter(image: ImageRequest, limits: Pick<MakeLimits, "order" | "deadline">): AdmissionTicket;
}

export interface AdmissionTicket {
  leave(): void;
}
