import type { Clock } from "@atelier/core";
import { failuresAs } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import { type A1111Calls, idleProgress } from "../dialects/a1111-calls.ts";
import { a1111Error, wordAsA1111 } from "../dialects/a1111-errors.ts";

interface ProgressOptions {
  readonly calls: A1111Calls;
  readonly clock: Clock;
}

const taskId = z.string().max(128).optional().describe("The force_task_id of a call; the tenant's newest when absent.");

/** The same under both of its names. */
const whichCall = z.strictObject({ force_task_id: taskId, id_task: taskId });
type WhichCall = z.infer<typeof whichCall>;

/** As clients write it in an address; some spell booleans as Python does. */
const flag = z.enum(["true", "false", "True", "False", "1", "0"]);

const config = { wordFailure: wordAsA1111 };

const progressReply = z
  .object({
    progress: z.number().describe("0..1, over all pictures of the call."),
    eta_relative: z.number().describe("Seconds left, if it goes on as it did."),
    state: z.looseObject({
      job: z.string(),
      job_count: z.int().describe("0: nothing runs."),
      job_no: z.int(),
      sampling_step: z.int(),
      sampling_steps: z.int(),
      interrupted: z.boolean(),
      skipped: z.boolean(),
    }),
    current_image: z.string().nullable().meta({ contentEncoding: "base64" }).describe("A small PNG."),
    textinfo: z.string().nullable(),
  })
  .meta({ id: "A1111Progress" });

/** GET progress, POST interrupt and skip: of calls that this gateway is in the middle of, and of the caller's own tenant. */
export function a1111ProgressRoutes(app: GatewayApp, { calls, clock }: ProgressOptions): void {
  const progress = {
    operationId: "a1111Progress",
    summary: "How far a call of txt2img or img2img has come",
    querystring: z.strictObject({ ...whichCall.shape, skip_current_image: flag.optional() }),
    response: { 200: progressReply, ...failuresAs(a1111Error, 401, 403, 422, 500) },
  };
  app.get("/sdapi/v1/progress", { schema: progress, config }, async ({ caller, query }) => {
    const call = calls.find({ tenant: caller.tenant, taskId: taskOf(query) });
    const image = !["true", "True", "1"].includes(query.skip_current_image ?? "");
    return call?.progress({ image }) ?? idleProgress(clock.nowMs());
  });

  for (const what of ["interrupt", "skip"] as const) {
    const schema = {
      operationId: `a1111${what === "skip" ? "Skip" : "Interrupt"}`,
      summary:
        what === "skip"
          ? "Give up the part of a call that runs, and go on with its next one"
          : "End a call, which is answered with the pictures that were finished",
      querystring: whichCall,
      body: whichCall.nullish(),
      response: {
        200: z.object({ found: z.boolean().describe("Whether there was such a call.") }).meta({ id: "A1111Found" }),
        ...failuresAs(a1111Error, 401, 403, 413, 415, 422, 500),
      },
    };
    app.post(`/sdapi/v1/${what}`, { schema, config }, async ({ caller, query, body }) => {
      const call = calls.find({ tenant: caller.tenant, taskId: taskOf(query) ?? taskOf(body ?? {}) });
      call?.[what]();
      return { found: call !== undefined };
    });
  }
}

/** An empty id is what forms send for none. */
function taskOf({ force_task_id: forced, id_task: id }: WhichCall): string | undefined {
  return forced || id || undefined;
}
