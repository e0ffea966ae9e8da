import { ServingError } from "@atelier/core";
import { PriorityClass, type WorkItem } from "@atelier/proto";

export const RECORD_KEY_MAX = 256;
export const RECORD_BYTES_MAX = 512 * 1024;
const KEY = /^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/;
const PREFIX = /^([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?)?$/;

/** How long the same item, or the same event, is known to be the same after it was done with. */
export const REPEATS_KNOWN_MS = 120_000;

/** @throws ServingError INVALID_REQUEST. */
export function checkRecordKey(key: string): void {
  if (key.length <= RECORD_KEY_MAX && KEY.test(key)) return;
  throw invalid(
    "key",
    `a record's key is letters, digits, "-" and "_", with "." between parts, ${RECORD_KEY_MAX} characters at most`,
    key,
  );
}

/** @throws ServingError INVALID_REQUEST. */
export function checkRecordPrefix(prefix: string): void {
  if (prefix.length <= RECORD_KEY_MAX && PREFIX.test(prefix)) return;
  throw invalid("prefix", "no record's key begins so", prefix);
}

/** @throws ServingError INVALID_REQUEST. */
export function checkRecordValue(key: string, value: string): void {
  const bytes = Buffer.byteLength(value);
  if (bytes <= RECORD_BYTES_MAX) return;
  const message = `record ${key} has ${bytes} bytes and may have ${RECORD_BYTES_MAX}`;
  throw new ServingError("INVALID_REQUEST", message, { field: "value" });
}

/** What makes an item the same item, and its outcome the same event. */
export function itemId(item: Pick<WorkItem, "jobId" | "itemIndex" | "round">): string {
  return `${item.jobId}.${item.itemIndex}.${item.round}`;
}

/** The class and model that an item is pulled by. */
export function laneOf(item: WorkItem): { readonly priorityClass: PriorityClass; readonly model: string } {
  const priorityClass = item.order?.priorityClass ?? PriorityClass.UNSPECIFIED;
  return {
    priorityClass: priorityClass === PriorityClass.UNSPECIFIED ? PriorityClass.STANDARD : priorityClass,
    model: item.parameters?.model ?? "",
  };
}

function invalid(field: string, rule: string, value: string): ServingError {
  return new ServingError("INVALID_REQUEST", `${rule}: got ${JSON.stringify(value.slice(0, 80))}`, { field });
}
