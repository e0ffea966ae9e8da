import { ManualClock } from "@atelier/core";
import Fastify from "fastify";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Served } from "../generations/ports.ts";
import type { CompleteRequest, GenerationEvent, ImageRequestDraft } from "../image-request.ts";
import { sendOpenAiEvents } from "./send-openai-events.ts";

const accepted: GenerationEvent = { type: "accepted", seed: 7, model: "m", stepsTotal: 4 };

describe("a stream of OpenAI's events", () => {
  it("is begun when a worker has the request, before there is any event", async () => {
    const ends = Promise.withResolvers<Served>();
    // The clock stands still: no keep-alive comes to its help.
    const response = await answered((onEvent) => {
      onEvent(accepted);
      return ends.promise;
    });
    expect(response.status).toBe(200);
    expect(response.headers.get("x-atelier-seed")).toBe("7");
    ends.reject(new Error("enough"));
    await response.text();
  });

  it("keeps its status when it fails in the moment that it begins", async () => {
    const response = await answered((onEvent) => {
      onEvent(accepted);
      return Promise.reject(new Error("out of luck"));
    });
    expect(response.status).toBe(200);
    expect(await response.text()).toBe(
      ': open\n\nevent: error\ndata: {"type":"error","error":{"message":"out of luck"}}\n\n',
    );
  });

  it("is none where no worker takes the request", async () => {
    const response = await answered(() => Promise.reject(new Error("no worker")));
    expect(response.status).toBe(500);
    expect(response.headers.get("content-type")).toContain("json");
  });
});

/** The answer where a generation goes as `run` says. */
async function answered(run: (onEvent: (event: GenerationEvent) => void) => Promise<Served>): Promise<Response> {
  const app = Fastify();
  app.get("/", (_request, reply) =>
    sendOpenAiEvents(reply, {
      clock: new ManualClock(),
      kind: "image_generation",
      parts: [{ draft: { numImages: 1 } as ImageRequestDraft, first: 0 }],
      complete: () => ({ steps: 4 }) as CompleteRequest,
      run: (_draft, onEvent) => run(onEvent),
      partialImages: 0,
      ignored: [],
      createdAt: 0,
      fail: (thrown) => {
        reply.raw.statusCode = 500; // as a failure is noted
        return { error: { message: (thrown as Error).message } };
      },
    }),
  );
  onTestFinished(() => app.close());
  const url = await app.listen({ host: "127.0.0.1", port: 0 });
  return fetch(url, { signal: AbortSignal.timeout(5_000) });
}
