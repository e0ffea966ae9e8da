/**
 * A stand-in for the gateway, with the answers that the command line reads, in the form that the gateway documents.
 * A request's body is written to FAKE_LOG. The prompt "refuse" is refused; "hang" is never answered; "lose" fails after
 * its first steps; "cut" ends its events there; "plain" is answered without events, as an older gateway does.
 */
import { appendFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";

const { ATELIER_LISTEN: listen, ATELIER_WORKERS: workers, ATELIER_REDIS: redis, FAKE_GATEWAY: fault } = process.env;
const [host, port] = listen!.split(":");
const note = (line: string) => appendFileSync(process.env["FAKE_LOG"]!, `gateway ${line}\n`);

note(`started with ${workers!.split(",").length} workers${redis === undefined ? "" : ` and ${redis}`}`);
if (process.env["ATELIER_JOBS"])
  note(`jobs at ${process.env["ATELIER_JOBS"]} with ${process.env["ATELIER_INTERNAL_TOKEN"]}`);
if (process.env["ATELIER_DATA_DIR"]) note(`keeps in ${process.env["ATELIER_DATA_DIR"]}`);
process.on("SIGTERM", () => {
  note("SIGTERM");
  process.exit(0);
});
process.on("disconnect", () => process.exit(0));

const server = createServer((request, response) => void answer(request, response));
server.listen(Number(port), host, () => {
  note(`listens, pid ${process.pid} at ${(server.address() as AddressInfo).port}`);
  process.send?.({ type: "listening", address: `http://${host}:${(server.address() as AddressInfo).port}` });
  process.send?.({ type: "ready" });
  if (fault === "dies-later") setTimeout(() => process.exit(5), 200);
});

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const reply = (status: number, body: unknown) => {
    response.writeHead(status, { "content-type": "application/json", "x-atelier-request-id": "req-1" });
    response.end(JSON.stringify(body));
  };
  if (request.url === "/healthz" || request.url === "/readyz") return reply(200, { ready: true });
  if (request.url === "/v1/models" && fault === "asks-for-keys") return reply(401, {});
  if (request.url === "/v1/models") return reply(200, { models: [MODEL] });

  const body = JSON.parse(await text(request));
  note(`drew ${JSON.stringify(body)}`);
  request.socket.once("close", () => note("caller gone"));
  if (body.prompt === "hang") return;
  if (body.prompt === "refuse") {
    return reply(400, {
      error: { code: "INVALID_REQUEST", message: "steps is 0", field: "steps", request_id: "req-1" },
    });
  }
  const images = Array.from({ length: body.num_images ?? 1 }, (_, i) => Buffer.from(`picture ${i}`).toString("base64"));
  const progress = (stage: string, stepsDone: number) =>
    `event: progress\ndata: {"stage":"${stage}","steps_done":${stepsDone},"steps_total":37,"image_index":0}\n\n`;
  const picture = {
    image: images[0],
    ...(images.length > 1 ? { images } : {}),
    format: body.format ?? "png",
    width: body.width ?? 512,
    height: body.height ?? 512,
    seed: body.seed ?? 41,
    model: "fake",
    receipt: { steps: 25, simulated: false },
  };
  if (body.prompt === "plain") return reply(200, picture);

  response.writeHead(200, { "content-type": "text/event-stream", "x-atelier-request-id": "req-1" });
  response.write(
    'event: accepted\ndata: {"request_id":"req-1","seed":41,"model":"fake","steps_total":37}\n\n: keep-alive\n\n',
  );
  response.write(progress("text_encode", 0) + progress("denoise", 12));
  if (body.prompt === "cut") return void response.end();
  if (body.prompt === "lose") {
    const error = { code: "WORKER_LOST", message: "worker w1 was lost", field: "prompt", request_id: "req-1" };
    return void response.end(`event: error\ndata: ${JSON.stringify({ error })}\n\n`);
  }
  response.end(`${progress("image_decode", 37)}event: completed\ndata: ${JSON.stringify(picture)}\n\n`);
}

const MODEL = {
  id: "fake",
  name: "Fake",
  family: "sd",
  license: "Apache-2.0",
  native_width: 256,
  native_height: 256,
  limits: { size_max: 1024, size_multiple: 8 },
  defaults: { steps: 25, sampler: "dpmpp_2m", guidance_scale: 2.5 },
  status: "loading",
  progress: 0.42,
  weights_bytes: 150_000_000,
  workers_ready: 1,
};
