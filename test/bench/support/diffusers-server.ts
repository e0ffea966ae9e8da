import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { end, whileRunning } from "./child.ts";
import type { PictureRequest } from "./picture-request.ts";

const root = join(import.meta.dirname, "../../..");
const START_MAX_MS = 180_000;
const PICTURE_MAX_MS = 300_000;

/** diffusers on torch behind FastAPI, in a process of its own, with its model loaded. */
export class DiffusersServer {
  readonly versions: Readonly<Record<string, string>>;
  readonly #child: ChildProcess;
  readonly #url: string;

  private constructor(child: ChildProcess, url: string, versions: Record<string, string>) {
    this.#child = child;
    this.#url = url;
    this.versions = versions;
  }

  /** @param bundle the ONNX bundle; its diffusers layout, same weights, is written to `folder`. */
  static async start(options: {
    bundle: string;
    folder: string;
    threads: number;
    /** Where the pipeline runs: see diffusers_server.py. */
    lock: "main" | "thread";
  }): Promise<DiffusersServer> {
    const { bundle, folder, threads, lock } = options;
    const environment = execFileSync("bash", [join(root, "scripts/python-env.sh")], { encoding: "utf8" }).trim();
    const python = join(environment, "bin/python");
    const env = {
      ...process.env,
      PYTHONPATH: join(root, "services/trainer"),
      OMP_NUM_THREADS: String(threads),
      TRANSFORMERS_VERBOSITY: "error",
      HF_HUB_DISABLE_PROGRESS_BARS: "1",
    };
    execFileSync(python, ["-m", "atelier_trainer.to_diffusers", bundle, folder], { env, stdio: ["ignore", 2, 2] });

    const port = await freePort();
    const script = join(root, "test/bench/diffusers_server.py");
    const args = ["-W", "ignore", script, folder, String(threads), String(port), lock];
    const child = spawn(python, args, { env, stdio: ["ignore", 2, 2] });
    const url = `http://127.0.0.1:${port}`;
    const versions = await whileRunning(child, answering(url), { name: "diffusers", timeoutMs: START_MAX_MS });
    return new DiffusersServer(child, url, versions);
  }

  async draw(request: PictureRequest): Promise<Uint8Array> {
    const response = await fetch(`${this.#url}/generate`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        ...request,
        negative_prompt: request.negativePrompt,
        guidance_scale: request.guidanceScale,
      }),
      signal: AbortSignal.timeout(PICTURE_MAX_MS),
    });
    if (!response.ok) throw new Error(`diffusers answered ${response.status}: ${await response.text()}`);
    return new Uint8Array(await response.arrayBuffer());
  }

  stop(): Promise<void> {
    return end(this.#child);
  }
}

async function answering(url: string): Promise<Record<string, string>> {
  for (;;) {
    try {
      return (await (await fetch(`${url}/versions`)).json()) as Record<string, string>;
    } catch {
      await sleep(200); // not listening yet; `whileRunning` ends this
    }
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
