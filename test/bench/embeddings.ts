import { availableParallelism } from "node:os";
import { join } from "node:path";
import { type Bench, count, median, otherLoad, printTable, round, warnIfBusy } from "./support/bench.ts";
import { mixedRequests } from "./support/picture-request.ts";
import { WorkerProcess } from "./support/worker-process.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");

/** Each prompt is asked for twice, with other seeds, in turns; the receipts say what the text stage took. */
export const bench: Bench = {
  description: "what a repeated prompt saves of the text stage",
  options: {
    prompts: { default: "40", help: "prompts, each asked for twice" },
    threads: { default: String(Math.min(4, availableParallelism())), help: "CPU threads" },
    model: { default: embeddedModel, help: "model bundle" },
  },
  async run(options) {
    const threads = count(options, "threads");
    const load = otherLoad();
    warnIfBusy(load);
    const worker = await WorkerProcess.start({ model: options["model"]!, threads });
    try {
      const newMs: number[] = [];
      const repeatedMs: number[] = [];
      let saved = 0;
      for (const request of mixedRequests(count(options, "prompts"))) {
        const picture = { ...request, width: 256, height: 256, steps: 2, negativePrompt: `not ${request.prompt}` };
        const first = (await worker.drawPicture(picture)).receipt!;
        const second = (await worker.drawPicture({ ...picture, seed: picture.seed + 1 })).receipt!;
        if (first.embeddingsCached)
          throw new Error(`"${picture.prompt}" is new, and the receipt says that it was cached`);
        if (second.embeddingsCached) saved += 1;
        newMs.push(first.times!.textEncodeMs);
        repeatedMs.push(second.times!.textEncodeMs);
      }
      console.log("text stage, waiting and threads included, ms:");
      printTable([
        ["prompt", "median", "most"],
        ["new", median(newMs).toFixed(2), Math.max(...newMs).toFixed(2)],
        ["repeated", median(repeatedMs).toFixed(2), Math.max(...repeatedMs).toFixed(2)],
      ]);
      console.log(`runs of the text encoder saved: ${saved} of ${newMs.length} repeated prompts`);
      return {
        ratio: round(saved / newMs.length, 3),
        goal: 1,
        new_ms: round(median(newMs), 2),
        repeated_ms: round(median(repeatedMs), 2),
        prompts: newMs.length,
        threads,
        load,
      };
    } finally {
      await worker.stop();
    }
  },
};
