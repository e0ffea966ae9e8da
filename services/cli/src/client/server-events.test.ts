import { describe, expect, it } from "vitest";
import { serverEvents } from "./server-events.ts";

describe("serverEvents", () => {
  it("reads names, data and ids, and passes over comments and what it does not know", async () => {
    const text = ': hello\n\nevent: progress\ndata: {"a":1}\nid: 7\n\nretry: 5\ndata:x\ndata: y\n\n';
    expect(await read([text])).toEqual([
      { name: "progress", data: '{"a":1}', id: "7" },
      { name: "message", data: "x\ny" },
    ]);
  });

  it("does not care where the pieces of a stream are cut, nor whether its lines end in LF or CRLF", async () => {
    const text = "event: completed\ndata: 国潮风\u2028T恤\n\nevent: b\ndata: :\n\n";
    for (const bytes of [Buffer.from(text), Buffer.from(text.replaceAll("\n", "\r\n"))]) {
      const single = Array.from(bytes, (byte) => Uint8Array.of(byte));
      expect(await read(single)).toEqual([
        { name: "completed", data: "国潮风\u2028T恤" },
        { name: "b", data: ":" },
      ]);
    }
  });

  it("leaves out an event that was cut off", async () => {
    expect(await read(["event: a\ndata: 1\n\nevent: completed\ndata: {"])).toEqual([{ name: "a", data: "1" }]);
  });
});

async function read(pieces: readonly (string | Uint8Array)[]) {
  async function* body() {
    for (const piece of pieces) yield Buffer.from(piece as string);
  }
  const events = [];
  for await (const event of serverEvents(body())) events.push(event);
  return events;
}
