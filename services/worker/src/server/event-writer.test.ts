import { describe, expect, it } from "vitest";
import { EventWriter } from "./event-writer.ts";

describe("EventWriter", () => {
  it("writes everything to a reader that keeps up", () => {
    const { writer, written } = slowStream({ room: 10 });
    writer.writeNewest("step", "step 1");
    writer.writeNewest("step", "step 2");
    writer.write("image");
    expect(written).toEqual(["step 1", "step 2", "image"]);
  });

  it("keeps only the newest for a reader that does not, until it does", () => {
    const { writer, written, drain } = slowStream({ room: 1 });
    for (const step of [1, 2, 3, 4]) writer.writeNewest("step", `step ${step}`);
    expect(written).toEqual(["step 1"]);
    drain();
    expect(written).toEqual(["step 1", "step 4"]);
    drain();
    expect(written).toEqual(["step 1", "step 4"]);
  });

  it("writes what waits before what nothing replaces, and nothing older after it", () => {
    const { writer, written, drain } = slowStream({ room: 1 });
    writer.writeNewest("step", "step 1");
    writer.writeNewest("step", "step 2");
    writer.write("image");
    drain();
    expect(written).toEqual(["step 1", "step 2", "image"]);
  });

  // The last checkpoint of an image was lost when another image of its request was finished before the reader caught up.
  it("loses no checkpoint to another image's picture", () => {
    const { writer, written } = slowStream({ room: 1 });
    writer.write("accepted");
    writer.writeNewest("checkpoint 1", "checkpoint 1 at 2");
    writer.write("image 0");
    writer.flush();
    expect(written).toEqual(["accepted", "checkpoint 1 at 2", "image 0"]);
  });

  it("keeps the newest of each kind", () => {
    const { writer, written, drain } = slowStream({ room: 1 });
    writer.write("accepted");
    for (const step of [1, 2]) {
      writer.writeNewest("step", `step ${step}`);
      writer.writeNewest("checkpoint 0", `checkpoint 0 at ${step}`);
      writer.writeNewest("checkpoint 1", `checkpoint 1 at ${step}`);
    }
    drain();
    expect(written).toEqual(["accepted", "step 2", "checkpoint 0 at 2", "checkpoint 1 at 2"]);
  });

  it("writes what waits when it is told that nothing newer will come", () => {
    const { writer, written } = slowStream({ room: 1 });
    writer.write("accepted");
    writer.writeNewest("checkpoint", "checkpoint at 2");
    writer.flush();
    expect(written).toEqual(["accepted", "checkpoint at 2"]);
  });
});

/** A stream that says it is full after `room` messages, as often as it is drained. */
function slowStream({ room }: { room: number }) {
  const written: string[] = [];
  let inBuffer = 0;
  let onDrain = () => {};
  const writer = new EventWriter<string>({
    write: (message) => {
      written.push(message);
      inBuffer += 1;
      return inBuffer < room;
    },
    on: (_, listener) => {
      onDrain = listener;
    },
  });
  const drain = () => {
    inBuffer = 0;
    onDrain();
  };
  return { writer, written, drain };
}
