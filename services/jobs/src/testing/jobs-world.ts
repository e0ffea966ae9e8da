import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { seededRandom, systemClock } from "@atelier/core";
import { type JobQueue, type Lease, openJobQueue } from "@atelier/job-queue";
import { type ObjectStore, openObjectStore } from "@atelier/object-store";
import { type ItemOutcome, ItemOutcomeSchema, JobEventSchema, PriorityClass } from "@atelier/proto";
import { createLogger } from "@atelier/telemetry";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { buildJobs } from "../build-jobs.ts";
import { readJobsConfig } from "../config.ts";
import type { JobCaller, ShapeDraft } from "../ports.ts";

export const SHOP: JobCaller = {
  tenant: "shop",
  keyId: "key1",
  role: "user",
  priority: "interactive",
  weight: 1,
  models: null,
};

export type JobsWorld = Awaited<ReturnType<typeof startJobs>>;

/**
 * The whole jobs service on a queue file and files of objects, listening; a gateway that knows one model, "tiny"; and hands
 * that do what a worker does.
 */
export async function startJobs(env: Readonly<Record<string, string>> = {}, { port = 0 } = {}) {
  const folder = await mkdtemp(join(tmpdir(), "atelier-jobs-"));
  const gateway = await fakeGateway();
  const config = readJobsConfig({
    ATELIER_GATEWAY: gateway.url,
    ATELIER_QUEUE: `sqlite:${join(folder, "queue.db")}`,
    ATELIER_OBJECTS: `file:${join(folder, "objects")}`,
    ...env,
  });
  const service = await buildJobs(config, {
    clock: systemClock,
    random: seededRandom(1),
    log: createLogger("jobs", "silent"),
    onBug: (bug) => {
      throw bug;
    },
    onReplaced: (why) => {
      throw new Error(why);
    },
    stopping: new AbortController().signal,
  });
  const { app, close } = service!;
  const url = await app.listen({ host: "127.0.0.1", port });
  const objects = await openObjectStore(config.objects, { clock: systemClock }, config.s3);
  const queue = await openJobQueue(config.queue, { clock: systemClock, onProblem: () => {} });
  return {
    app,
    url,
    objects,
    queue,
    /** As the gateway passes a request on. */
    ask: (path: string, init: RequestInit & { caller?: Partial<JobCaller>; duplex?: "half" } = {}) => {
      const { caller, ...rest } = init;
      const said = Buffer.from(JSON.stringify({ ...SHOP, ...caller })).toString("base64url");
      return fetch(`${url}${path}`, { ...rest, headers: { ...(rest.headers as object), "x-atelier-caller": said } });
    },
    work: new Hands(queue, objects),
    stop: async () => {
      app.server.closeAllConnections();
      await app.close();
      await close();
      await queue.close();
      await objects.close();
      gateway.stop();
      await rm(folder, { recursive: true });
    },
  };
}

/** Pulls items and ends them as a test says. */
class Hands {
  readonly #queue: JobQueue;
  readonly #objects: ObjectStore;

  constructor(queue: JobQueue, objects: ObjectStore) {
    this.#queue = queue;
    this.#objects = objects;
  }

  /** The next `count` items, waited for. */
  async take(count: number, model = "tiny"): Promise<Lease[]> {
    const leases: Lease[] = [];
    while (leases.length < count) {
      const ask = { priorityClass: PriorityClass.BULK, model, max: count - leases.length, waitMs: 5_000 };
      const more = await this.#queue.work.pull(ask);
      if (more.length === 0) throw new Error(`${leases.length} of ${count} items came`);
      leases.push(...more);
    }
    return leases;
  }

  /** Makes the next `count` items; their pictures are their prompts. */
  async make(count: number, model = "tiny"): Promise<void> {
    for (const lease of await this.take(count, model)) await this.finish(lease);
  }

  async finish(lease: Lease): Promise<void> {
    const { item, attempt } = lease;
    const { jobId, itemIndex: index, round, objectKey, parameters } = item;
    const picture = Buffer.from(`PNG of ${parameters!.prompt}`);
    await this.#objects.put(objectKey, picture);
    await this.#tell(jobId, {
      itemIndex: index,
      round,
      attempts: attempt,
      result: {
        case: "done",
        value: {
          objectKey,
          sha256: createHash("sha256").update(picture).digest("hex"),
          bytes: BigInt(picture.length),
          mediaType: "image/png",
          receipt: {
            parameters: { model: parameters!.model },
            modelDigest: "sha256:tiny",
            workerId: "w1",
            deviceMs: 12.5,
          },
        },
      },
    });
    await lease.ack();
  }

  async fail(lease: Lease, code = "NUMERIC_FAILURE", message = "NaN at step 3") {
    const { jobId, itemIndex, round } = lease.item;
    await this.#tell(jobId, {
      itemIndex,
      round,
      attempts: lease.attempt,
      result: { case: "failed", value: { code, message } },
    });
    await lease.ack();
  }

  async bury(lease: Lease) {
    const { jobId, itemIndex, round } = lease.item;
    const reason = { code: "DEVICE_UNAVAILABLE", message: "it kills workers" };
    const failed = { ...reason, deadLetter: true };
    await this.#tell(jobId, { itemIndex, round, attempts: 5, result: { case: "failed", value: failed } });
    await lease.bury({ ...reason, workerId: "w1" });
  }

  async #tell(jobId: string, outcome: MessageInitShape<typeof ItemOutcomeSchema>): Promise<void> {
    const value: ItemOutcome = create(ItemOutcomeSchema, outcome);
    const event = create(JobEventSchema, { jobId, atMs: BigInt(Date.now()), event: { case: "outcome", value } });
    await this.#queue.events.append(event, `${jobId}.${value.itemIndex}.${value.round}`);
  }
}

async function fakeGateway() {
  const server = createServer(async (request, response) => {
    const body = JSON.parse((await buffer(request)).toString()) as {
      drafts?: ShapeDraft[];
      totals?: { tenant: string }[];
    };
    const answer = body.totals?.map(({ tenant }) => ({ tenant, exhausted: null })) ?? {
      shapes: (body.drafts ?? []).map(completed),
      pricePerDeviceHour: 3.6,
      currency: "EUR",
      imagesLeft: null,
      deviceMsLeft: null,
    };
    response.setHeader("content-type", "application/json").end(JSON.stringify(answer));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url,
    stop: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

function completed({ width = 512, height = 512, steps = 20, format = "png", ...draft }: ShapeDraft) {
  const shape = {
    model: draft.model ?? "tiny",
    width,
    height,
    steps,
    guidanceScale: draft.guidance_scale ?? 7.5,
    sampler: draft.sampler ?? "dpmpp_2m",
    karrasSigmas: draft.karras_sigmas ?? false,
    format,
    quality: draft.quality ?? null,
    predictedDeviceMs: 1_000,
  };
  return { ok: true, shape };
}
