import type { JobView } from "../ports.ts";
import type { WebhookEvent } from "./hook-url.ts";

/** What a job's receiver has been told so far: kept as JSON under `webhooks.jobs.<job id>`. */
export interface HookState {
  /** Failed items are told up to this number of the event log. */
  readonly cursor: number;
  /** Waits for its beginning; goes on, whatever of it runs; or as its status says. */
  readonly told: "waiting" | "going" | "paused" | "done" | "cancelled";
  readonly started: boolean;
  /** Changes so far: each is a call of its own, also where a job is paused twice. */
  readonly changes: number;
  /** The receiver wanted no more. */
  readonly stopped: boolean;
}

export const NOTHING_TOLD: HookState = { cursor: 0, told: "waiting", started: false, changes: 0, stopped: false };

/** A call that is to be made: `atMs` null is now. */
export interface ChangeToTell {
  readonly event: WebhookEvent;
  readonly atMs: number | null;
}

/**
 * What there is to tell of a job, and the state once it is told. From states and not from changes, so that nothing is lost
 * where nobody was there to see them; what came and went meanwhile is not told.
 */
export function changesTo(
  job: Pick<JobView, "status" | "startedAtMs" | "endedAtMs">,
  state: HookState,
): { readonly changes: readonly ChangeToTell[]; readonly state: HookState } {
  const now = standing(job, state);
  if (now === state.told) return { changes: [], state };
  const changes: ChangeToTell[] = [];
  const starts = !state.started && (now === "going" || now === "done");
  if (starts) changes.push({ event: "job.started", atMs: job.startedAtMs });
  else if (now === "going" || now === "waiting") changes.push({ event: "job.resumed", atMs: null });
  if (now === "paused") changes.push({ event: "job.paused", atMs: null });
  if (now === "done" || now === "cancelled") changes.push({ event: `job.${now}`, atMs: job.endedAtMs });
  const after = { ...state, told: now, started: state.started || starts, changes: state.changes + changes.length };
  return { changes, state: after };
}

/**
 * A job whose last item has ended is not done before its manifest is there, which its end says. One that had begun goes on
 * even while none of its items happens to run.
 */
function standing({ status, endedAtMs }: Pick<JobView, "status" | "endedAtMs">, state: HookState): HookState["told"] {
  if (status === "paused") return "paused";
  if (status === "done" || status === "cancelled") return endedAtMs === null ? state.told : status;
  return status === "running" || state.started ? "going" : "waiting";
}
