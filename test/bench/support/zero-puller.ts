/**
 * A worker's side of bulk jobs whose engine costs nothing, as a child process: the real puller, queue and object store, and
 * a maker that answers at once with a few bytes that are the item's own.
 *
 * Arguments: queue address, objects address, model, items held at one time, milliseconds of a lease. Says when it is ready;
 * told "stop" it gives up what it has and says how many items it ended.
 */
import { createHash } from "node:crypto";
import { systemClock, systemRandom } from "@atelier/core";
import { itemId, openJobQueue } from "@atelier/job-queue";
import { openObjectStore } from "@atelier/object-store";
import { ReceiptSchema } from "@atelier/proto";
import { type ItemMaker, Puller } from "@atelier/worker/bulk";
import { create } from "@bufbuild/protobuf";

const [queueAddress, objectsAddress, model, held, leaseMs] = process.argv.slice(2);
const heldMax = Number(held);
const workerId = `zero-${process.pid}`;
const queue = await openJobQueue(
  { address: queueAddress!, leaseMs: Number(leaseMs), timeoutMs: 10_000 },
  { clock: systemClock, onProblem: (text) => console.error(text) },
);
const store = await openObjectStore(objectsAddress!, { clock: systemClock });

const maker: ItemMaker = {
  make: async (item) => ({
    bytes: createHash("sha256").update(itemId(item)).digest(),
    mediaType: "image/png",
    receipt: create(ReceiptSchema, {
      parameters: { ...item.parameters!, prompt: "", negativePrompt: "" },
      workerId,
      device: "none",
      simulated: true,
      deviceMs: 1,
    }),
  }),
};

let ended = 0;
const puller = new Puller({
  queue,
  store,
  maker,
  view: () => ({
    // As a step batch of half of what may be held: the puller asks for twice as many as run side by side.
    models: [{ id: model!, resident: true, fits: true, loadMs: 0, sideBySide: heldMax / 2 }],
    requestsDenoising: 0,
  }),
  clock: systemClock,
  random: systemRandom,
  workerId,
  attemptsMax: 5,
  heldMax,
  observer: {
    pulled: () => {},
    took: () => {},
    ended: (end) => {
      if (end === "done") ended += 1;
    },
    waited: () => {},
    paused: (pillar, error) => console.error(`${pillar}: ${error.message}`),
    wentOn: () => {},
    notMade: (_item, error) => console.error(error.message),
  },
});
puller.start();
process.send!({ type: "ready" });

process.on("message", async (message) => {
  if (message !== "stop") return;
  puller.stop();
  await puller.settled();
  process.send!({ type: "ended", items: ended });
  await queue.close();
  await store.close();
  process.disconnect();
});
process.on("disconnect", () => process.exit(0));
