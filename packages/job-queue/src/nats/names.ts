import { createHash } from "node:crypto";
import { PriorityClass } from "@atelier/proto";

const CLASS_NAMES: Readonly<Record<PriorityClass, string>> = {
  [PriorityClass.UNSPECIFIED]: "standard",
  [PriorityClass.INTERACTIVE]: "interactive",
  [PriorityClass.STANDARD]: "standard",
  [PriorityClass.BULK]: "bulk",
};

/** Names of streams, subjects and durables; all of one queue begin with its prefix. */
export function natsNames(prefix: string) {
  return {
    work: `${prefix}_WORK`,
    dead: `${prefix}_DEAD`,
    events: `${prefix}_EVENTS`,
    records: `${prefix}_RECORDS`,
    forgiven: `${prefix}_FORGIVEN`,

    /** One subject for each item: the stream then takes no second one while the first lies there. */
    item: (lane: Lane, item: ItemName) => `${prefix}.work.${laneName(lane, ".")}.${itemWords(item)}`,
    itemsOfLane: (lane: Lane) => `${prefix}.work.${laneName(lane, ".")}.>`,
    itemsOfLaneAndJob: (lane: Lane, jobId: string) => `${prefix}.work.${laneName(lane, ".")}.${word(jobId)}.>`,
    itemsOfJob: (jobId: string) => `${prefix}.work.*.*.${word(jobId)}.>`,
    allItems: `${prefix}.work.>`,
    durable: (lane: Lane) => laneName(lane, "-"),

    letter: (jobId: string, itemIndex: number | "*") => `${prefix}.dead.${word(jobId)}.${itemIndex}`,
    allLetters: `${prefix}.dead.>`,

    event: (jobId: string) => `${prefix}.events.${word(jobId)}`,
    allEvents: `${prefix}.events.>`,

    record: (key: string) => `${prefix}.records.${key}`,
    allRecords: `${prefix}.records.>`,

    forgivenOf: (item: ItemName) => `${prefix}.forgiven.${itemWords(item)}`,
    allForgiven: `${prefix}.forgiven.>`,

    /** Without a stream: told to whoever listens. */
    progress: `${prefix}.progress`,
    stopped: `${prefix}.stopped`,
    remade: `${prefix}.remade`,
  };
}

export type NatsNames = ReturnType<typeof natsNames>;

export interface Lane {
  readonly priorityClass: PriorityClass;
  readonly model: string;
}

interface ItemName {
  readonly jobId: string;
  readonly itemIndex: number;
  readonly round: number;
}

function itemWords({ jobId, itemIndex, round }: ItemName): string {
  return `${word(jobId)}.${itemIndex}.${round}`;
}

function laneName({ priorityClass, model }: Lane, separator: string): string {
  return `${CLASS_NAMES[priorityClass]}${separator}${word(model)}`;
}

/** `text` as one word of a subject and of a durable's name; what is not one becomes its digest. */
function word(text: string): string {
  if (/^[A-Za-z0-9_-]{1,64}$/.test(text)) return text;
  return `~${createHash("sha256").update(text).digest("base64url").slice(0, 22)}`;
}
