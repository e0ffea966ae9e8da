import type { Msg } from "@nats-io/transport-node";
import type { NatsLink } from "./nats-link.ts";

/** Why a pull ended with less than was asked for. */
export type PullEnd = "complete" | "nothing more" | "stopped" | "no consumer" | "no answer";

export interface Pulled {
  readonly messages: readonly Msg[];
  readonly end: PullEnd;
  /** As the server said it. */
  readonly said: string;
}

/** Beyond the time that the server has. */
const ANSWER_MS = 2_000;

/**
 * One pull request of a durable consumer: what there is at once, up to `max`, or else the first that comes within `waitMs`.
 * With the request itself and not with the client library's `fetch`, which waits until it has `max` or the time is over.
 * What comes after `signal` goes to `late`.
 *
 * Source: NATS ADR-37 (simplified consumers) and `processNextMsgRequest` in nats-server/server/consumer.go: with no_wait and
 * expires a request is answered with what there is, as soon as there is something.
 */
export function pullOnce(
  link: NatsLink,
  ask: {
    readonly stream: string;
    readonly durable: string;
    readonly max: number;
    readonly waitMs: number;
    readonly signal: AbortSignal;
    readonly late: (message: Msg) => void;
  },
): Promise<Pulled> {
  return new Promise((resolve) => {
    const { connection } = link;
    const messages: Msg[] = [];
    const inbox = `_INBOX.${nextInbox()}`;
    let over = false;
    const finish = (end: PullEnd, said = "") => {
      if (over) return;
      over = true;
      clearTimeout(timer);
      ask.signal.removeEventListener("abort", stop);
      stopListening();
      if (end === "complete" || end === "nothing more") subscription.unsubscribe();
      // What is on its way is let in, and given back.
      else if (!connection.isClosed()) subscription.drain().catch(() => {});
      resolve({ messages, end, said });
    };
    const subscription = connection.subscribe(inbox, {
      callback: (error, message) => {
        if (error !== null) return finish("no answer", error.message);
        const status = message.data.length === 0 ? (message.headers?.code ?? 0) : 0;
        if (status === 100) return;
        if (status !== 0) return finish(endOf(status, message), `${status} ${message.headers?.description}`);
        if (over) return ask.late(message);
        messages.push(message);
        if (messages.length === ask.max) finish("complete");
      },
    });
    const stop = () => finish("stopped");
    const stopListening = link.onConnection((lost) => {
      if (lost !== undefined) finish("no answer", lost);
    });
    const timer = setTimeout(() => finish("no answer", "no answer in time"), ask.waitMs + ANSWER_MS);
    ask.signal.addEventListener("abort", stop);
    if (ask.signal.aborted) return stop();
    const request = {
      batch: ask.max,
      no_wait: true,
      ...(ask.waitMs > 0 ? { expires: Math.ceil(ask.waitMs) * 1e6 } : {}),
    };
    connection.publish(`$JS.API.CONSUMER.MSG.NEXT.${ask.stream}.${ask.durable}`, JSON.stringify(request), {
      reply: inbox,
    });
  });
}

function endOf(status: number, message: Msg): PullEnd {
  if (status === 404 || status === 408) return "nothing more";
  if (status === 503) return "no consumer";
  // 409: the consumer was deleted, or it has too many pulls that wait, which is worth another try.
  return /deleted|push/i.test(message.headers?.description ?? "") ? "no consumer" : "nothing more";
}

let inboxes = 0;
const ours = crypto.randomUUID().replaceAll("-", "");

function nextInbox(): string {
  inboxes += 1;
  return `${ours}.${inboxes}`;
}
