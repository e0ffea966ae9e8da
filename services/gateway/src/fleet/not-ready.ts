import type { WorkerView } from "./worker-view.ts";

/** Why nobody takes requests, worker by worker; a long fleet is cut short. */
export function notReadyMessage(fleet: readonly WorkerView[]): string {
  const shown = fleet.slice(0, 4).map((worker) => `${worker.id}: ${worker.notReadyReason}`);
  if (fleet.length > shown.length) shown.push(`and ${fleet.length - shown.length} more`);
  return `no worker is ready (${shown.join("; ") || "none is known"})`;
}
