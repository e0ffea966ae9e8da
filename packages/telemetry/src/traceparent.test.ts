import { describe, expect, it } from "vitest";
import { parseTraceparent, traceContextOf, traceparentOf } from "./traceparent.ts";

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const SPAN = "b7ad6b7169203331";

/** Examples and rules of W3C Trace Context, sections 3.2.2, 3.3.1 and 4.3. */
describe("a traceparent header", () => {
  it("is written as it is read", () => {
    for (const flags of ["00", "01"]) {
      const header = `00-${TRACE}-${SPAN}-${flags}`;
      expect(parseTraceparent(header)).toEqual({ traceId: TRACE, spanId: SPAN, sampled: flags === "01" });
      expect(traceparentOf(parseTraceparent(header)!)).toBe(header);
    }
  });

  it.each([
    ["nothing", ""],
    ["a forbidden version", `ff-${TRACE}-${SPAN}-01`],
    ["more than its version has", `00-${TRACE}-${SPAN}-01-more`],
    ["capitals", `00-${TRACE.toUpperCase()}-${SPAN}-01`],
    ["an id of zeros", `00-${"0".repeat(32)}-${SPAN}-01`],
    ["a parent of zeros", `00-${TRACE}-${"0".repeat(16)}-01`],
    ["an id that is too short", `00-${TRACE.slice(1)}-${SPAN}-01`],
    ["no flags", `00-${TRACE}-${SPAN}`],
    ["a line break", `00-${TRACE}-${SPAN}-01\n`],
  ])("is ignored where it has %s", (_what, header) => {
    expect(parseTraceparent(header)).toBeUndefined();
    expect(traceContextOf({ traceparent: header, tracestate: "vendor=1" })).toBeUndefined();
  });

  it("of a later version is read as far as it is known, and other flags are left aside", () => {
    expect(parseTraceparent(`cc-${TRACE}-${SPAN}-01-what-the-future-will-be-like`)?.traceId).toBe(TRACE);
    expect(parseTraceparent(`00-${TRACE}-${SPAN}-03`)?.sampled).toBe(true);
    expect(parseTraceparent(`00-${TRACE}-${SPAN}-02`)?.sampled).toBe(false);
  });

  it("brings tracestate along, where that is text of bearable length", () => {
    const traceparent = `00-${TRACE}-${SPAN}-01`;
    const of = (tracestate: string | readonly string[]) => traceContextOf({ traceparent, tracestate })?.tracestate;
    expect(of("a=1,b=2")).toBe("a=1,b=2");
    expect(of(["a=1", "b=2"])).toBe("a=1,b=2");
    expect([of(""), of("x".repeat(513)), of("a=\u0007")]).toEqual([undefined, undefined, undefined]);
  });
});
