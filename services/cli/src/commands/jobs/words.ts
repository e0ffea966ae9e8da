import type { JobJson } from "../../client/job-json.ts";
import { duration, grouped } from "../../terminal/amounts.ts";
import { bar } from "../../terminal/status-line.ts";

/** "running ████░░░░ 1,200 of 4,000  3 failed  350 a minute  8 min left". */
export function progressOf(job: JobJson, { bar: withBar }: { readonly bar: boolean }): string {
  const { counts, item_count: all } = job;
  const ended = endedCount(job);
  return [
    [statusOf(job), withBar ? bar(all === 0 ? 1 : ended / all, 24) : undefined, `${grouped(ended)} of ${grouped(all)}`]
      .filter((part) => part !== undefined)
      .join(" "),
    ...(counts.failed > 0 ? [`${grouped(counts.failed)} failed`] : []),
    ...(counts.filtered > 0 ? [`${grouped(counts.filtered)} held back`] : []),
    ...(job.items_per_minute > 0 && job.ended_at === null ? [`${rate(job.items_per_minute)} a minute`] : []),
    ...(job.eta_ms === null ? [] : [`${duration(job.eta_ms)} left`]),
  ].join("  ");
}

export function statusOf({ status, held_for: heldFor }: JobJson): string {
  return heldFor === null ? status : `${status}, held (${heldFor})`;
}

/** Those that were made or tried; of a cancelled job the rest was neither. */
export function endedCount({ counts }: JobJson): number {
  return counts.done + counts.failed + counts.filtered;
}

/** "1 picture", "1,200 pictures". */
export function pictures(count: number): string {
  return `${grouped(count)} ${count === 1 ? "picture" : "pictures"}`;
}

const rate = (perMinute: number) => (perMinute < 10 ? perMinute.toFixed(1) : grouped(Math.round(perMinute)));
