import { WorkItemSchema } from "@atelier/proto";
import { NO_SPAN, type Span, type SpanOptions, type TraceContext } from "@atelier/telemetry";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import type { JobRecord } from "./job.ts";
import { type Published, publishing } from "./publish-traces.ts";

const SUBMITTED = { traceparent: "of the submission", tracestate: "vendor=1" };

describe("items on their way to the queue", () => {
  it("go on with the trace that submitted them, the first hundred of a job; the others begin one that is linked to it", () => {
    const { start, lines } = recorder();
    const batch = [98, 99, 100, 101].map((index) => item("mugs", index, SUBMITTED));
    publishing(batch, start)();
    expect(lines).toEqual([
      "1 goes on with of the submission",
      "2 begins, linked to of the submission",
      '1 {"messaging.batch.message_count":2}',
      "1 ends",
      '2 {"messaging.batch.message_count":2}',
      "2 ends",
    ]);
    expect(batch.map(({ work }) => [work.traceparent, work.tracestate])).toEqual([
      ["1", "vendor=1"],
      ["1", "vendor=1"],
      ["2", ""],
      ["2", ""],
    ]);
  });

  it("are told apart by their jobs, of which some know no trace", () => {
    const { start, lines } = recorder();
    const batch = [item("mugs", 0, SUBMITTED), item("bowls", 0), item("mugs", 1, SUBMITTED)];
    publishing(batch, start)(new Error("the queue is away"));
    expect(lines.slice(0, 2)).toEqual(["1 goes on with of the submission", "2 begins"]);
    expect(lines.filter((line) => line.includes("fails"))).toHaveLength(2);
    expect(batch.map(({ work }) => work.traceparent)).toEqual(["1", "2", "1"]);
  });

  it("are left as they are where tracing is off", () => {
    const batch = [item("mugs", 0, SUBMITTED)];
    publishing(batch, () => NO_SPAN)();
    expect(batch[0]!.work.traceparent).toBe("");
  });
});

function item(id: string, itemIndex: number, trace?: TraceContext): Published {
  const record = { id, tenant: "shop", ...(trace && { origin: { requestId: "r", trace } }) } as JobRecord;
  return { job: { record }, work: create(WorkItemSchema, { jobId: id, itemIndex }) };
}

/** Spans by number, and what is done with them. */
function recorder() {
  const lines: string[] = [];
  let count = 0;
  const start = (_name: string, { links = [] }: SpanOptions = {}, parent?: TraceContext): Span => {
    const name = String(++count);
    const linked = links.flatMap((link) => link?.traceparent ?? []);
    const from = parent === undefined ? "begins" : `goes on with ${parent.traceparent}`;
    lines.push([`${name} ${from}`, ...linked.map((link) => `linked to ${link}`)].join(", "));
    return {
      ...NO_SPAN,
      recording: true,
      context: { traceparent: name, ...(parent?.tracestate !== undefined && { tracestate: parent.tracestate }) },
      set: (attributes) => void lines.push(`${name} ${JSON.stringify(attributes)}`),
      fail: () => void lines.push(`${name} fails`),
      end: () => void lines.push(`${name} ends`),
    };
  };
  return { start, lines };
}
